//! Mounts: Docker's `--mount` and SwarmKit's short forms.

use swarm_proto::pb::Driver;
use swarm_proto::pb::Mount;
use swarm_proto::pb::mount::bind_options::Propagation;
use swarm_proto::pb::mount::{BindOptions, Consistency, TmpfsOptions, Type, VolumeOptions};

use super::text::{fields, needed, path, switch};
use super::{Form, value};

/// Docker's long form.
pub(super) const MOUNT: Form<Mount> = Form {
    accepted: "type=bind|volume|tmpfs|npipe|cluster,source=…,target=/…[,readonly][,bind-propagation=…][,volume-…=…][,tmpfs-size=…]",
    parse: long,
};

/// SwarmKit's `--bind`.
pub(super) const BIND: Form<Mount> = Form {
    accepted: "SOURCE:TARGET[:ro], both absolute paths",
    parse: bind,
};

/// SwarmKit's `--volume`.
pub(super) const VOLUME: Form<Mount> = Form {
    accepted: "an absolute path in the container; for a named volume give --mount type=volume,source=NAME,target=PATH",
    parse: |text| {
        Ok(Mount {
            r#type: Type::Volume.into(),
            target: path(text)?,
            ..Default::default()
        })
    },
};

/// SwarmKit's `--tmpfs`.
pub(super) const TMPFS: Form<Mount> = Form {
    accepted: "TARGET[:size=SIZE,mode=OCTAL,ro,noexec,…]",
    parse: tmpfs,
};

/// SwarmKit's `--npipe`.
pub(super) const NPIPE: Form<Mount> = Form {
    accepted: "SOURCE:TARGET",
    parse: |text| {
        let (source, target) = text.rsplit_once(':').ok_or("there is no :")?;
        if source.is_empty() || target.is_empty() {
            return Err("a side is empty".to_owned());
        }
        Ok(mount(Type::Npipe, source, target))
    },
};

fn mount(kind: Type, source: &str, target: &str) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.to_owned(),
        target: target.to_owned(),
        ..Default::default()
    }
}

fn bind(text: &str) -> Result<Mount, String> {
    let mut parts = text.split(':');
    let source =
        path(parts.next().unwrap_or_default()).map_err(|e| format!("the source is {e}"))?;
    let target = parts.next().ok_or("the target is missing")?;
    let target = path(target).map_err(|e| format!("the target is {e}"))?;
    let mut mount = mount(Type::Bind, &source, &target);
    mount.readonly = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(format!("unknown option {other:?}")),
    };
    if parts.next().is_some() {
        return Err("has more than three parts".to_owned());
    }
    Ok(mount)
}

fn tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = mount(Type::Tmpfs, "", &path(target)?);
    let mut tmpfs = TmpfsOptions::default();
    let mut rest = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => tmpfs.size_bytes = (value::SIZE.parse)(size)?,
            Some(("mode", mode)) => tmpfs.mode = octal(mode)?,
            Some((key, _)) => return Err(format!("unknown option {key:?}")),
            None => match option {
                "ro" => mount.readonly = true,
                "rw" => mount.readonly = false,
                "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" | "sync" | "async"
                | "dirsync" | "atime" | "noatime" | "diratime" | "nodiratime" => rest.push(option),
                other => return Err(format!("unknown option {other:?}")),
            },
        }
    }
    tmpfs.options = rest.join(",");
    mount.tmpfs_options = Some(tmpfs);
    Ok(mount)
}

fn long(text: &str) -> Result<Mount, String> {
    let mut mount = Mount {
        r#type: Type::Volume.into(),
        ..Default::default()
    };
    for (key, value) in fields(text)? {
        let handled = general(&mut mount, &key, value.as_ref())?
            || bind_field(&mut mount, &key, value.as_ref())?
            || volume_field(&mut mount, &key, value.as_ref())?
            || tmpfs_field(&mut mount, &key, value.as_ref())?;
        if !handled {
            return Err(format!("unknown field {key:?}"));
        }
    }
    check(&mount)?;
    Ok(mount)
}

fn general(mount: &mut Mount, key: &str, value: Option<&String>) -> Result<bool, String> {
    match key {
        "type" => mount.r#type = kind(&needed(key, value.cloned())?)?.into(),
        "source" | "src" => mount.source = needed(key, value.cloned())?,
        "target" | "dst" | "destination" => mount.target = needed(key, value.cloned())?,
        "readonly" | "ro" => mount.readonly = switch(key, value.map(String::as_str))?,
        "consistency" => {
            mount.consistency = match needed(key, value.cloned())?.as_str() {
                "default" => Consistency::Default,
                "consistent" => Consistency::Consistent,
                "cached" => Consistency::Cached,
                "delegated" => Consistency::Delegated,
                other => return Err(format!("unknown consistency {other:?}")),
            }
            .into();
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn bind_field(mount: &mut Mount, key: &str, value: Option<&String>) -> Result<bool, String> {
    if !key.starts_with("bind-") {
        return Ok(false);
    }
    let options = mount.bind_options.get_or_insert_with(BindOptions::default);
    match key {
        "bind-propagation" => options.set_propagation(propagation(&needed(key, value.cloned())?)?),
        "bind-nonrecursive" => options.nonrecursive = switch(key, value.map(String::as_str))?,
        "bind-create-src" => options.createmountpoint = switch(key, value.map(String::as_str))?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn volume_field(mount: &mut Mount, key: &str, value: Option<&String>) -> Result<bool, String> {
    if !key.starts_with("volume-") {
        return Ok(false);
    }
    let options = mount
        .volume_options
        .get_or_insert_with(VolumeOptions::default);
    match key {
        "volume-nocopy" => options.nocopy = switch(key, value.map(String::as_str))?,
        "volume-subpath" => options.subpath = needed(key, value.cloned())?,
        "volume-driver" => {
            options
                .driver_config
                .get_or_insert_with(Driver::default)
                .name = needed(key, value.cloned())?;
        }
        "volume-label" | "volume-opt" => {
            let pair = needed(key, value.cloned())?;
            let (name, content) = pair.split_once('=').unwrap_or((&pair, ""));
            let map = if key == "volume-label" {
                &mut options.labels
            } else {
                &mut options
                    .driver_config
                    .get_or_insert_with(Driver::default)
                    .options
            };
            map.insert(name.to_owned(), content.to_owned());
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn tmpfs_field(mount: &mut Mount, key: &str, value: Option<&String>) -> Result<bool, String> {
    if !key.starts_with("tmpfs-") {
        return Ok(false);
    }
    let options = mount
        .tmpfs_options
        .get_or_insert_with(TmpfsOptions::default);
    match key {
        "tmpfs-size" => options.size_bytes = (value::SIZE.parse)(&needed(key, value.cloned())?)?,
        "tmpfs-mode" => options.mode = octal(&needed(key, value.cloned())?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// What can't be right whatever node the task goes to.
fn check(mount: &Mount) -> Result<(), String> {
    if mount.target.is_empty() {
        return Err("target is missing".to_owned());
    }
    let kind = mount.r#type();
    if mount.bind_options.is_some() && kind != Type::Bind {
        return Err("bind- fields need type=bind".to_owned());
    }
    if mount.volume_options.is_some() && kind != Type::Volume {
        return Err("volume- fields need type=volume".to_owned());
    }
    if mount.tmpfs_options.is_some() && kind != Type::Tmpfs {
        return Err("tmpfs- fields need type=tmpfs".to_owned());
    }
    match kind {
        Type::Bind | Type::Npipe | Type::Cluster if mount.source.is_empty() => {
            Err("source is missing".to_owned())
        }
        Type::Bind if !mount.source.starts_with('/') => {
            Err("the source is not an absolute path".to_owned())
        }
        Type::Tmpfs if !mount.source.is_empty() => Err("a tmpfs has no source".to_owned()),
        Type::Bind | Type::Volume | Type::Tmpfs | Type::Cluster
            if !mount.target.starts_with('/') =>
        {
            Err("the target is not an absolute path".to_owned())
        }
        Type::Bind | Type::Volume | Type::Tmpfs | Type::Npipe | Type::Cluster => Ok(()),
    }
}

fn kind(text: &str) -> Result<Type, String> {
    match text {
        "bind" => Ok(Type::Bind),
        "volume" => Ok(Type::Volume),
        "tmpfs" => Ok(Type::Tmpfs),
        "npipe" => Ok(Type::Npipe),
        "cluster" => Ok(Type::Cluster),
        other => Err(format!("unknown type {other:?}")),
    }
}

fn propagation(text: &str) -> Result<Propagation, String> {
    match text {
        "rprivate" => Ok(Propagation::Rprivate),
        "private" => Ok(Propagation::Private),
        "rshared" => Ok(Propagation::Rshared),
        "shared" => Ok(Propagation::Shared),
        "rslave" => Ok(Propagation::Rslave),
        "slave" => Ok(Propagation::Slave),
        other => Err(format!("unknown propagation {other:?}")),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        Ok(_) | Err(_) => Err(format!("the mode {text:?} is not octal, like 1777")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_form() {
        let got = long("type=bind,src=/a,dst=/b,ro,bind-propagation=rslave").unwrap();
        assert_eq!(
            (got.r#type(), got.source.as_str(), got.readonly),
            (Type::Bind, "/a", true)
        );
        assert_eq!(got.bind_options.unwrap().propagation(), Propagation::Rslave);
        let got = long("source=data,target=/d,volume-driver=nfs,volume-opt=o=rw,volume-label=a=b")
            .unwrap();
        let options = got.volume_options.unwrap();
        assert_eq!(options.driver_config.unwrap().options["o"], "rw");
        assert_eq!(options.labels["a"], "b");
        let got = long("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1777").unwrap();
        assert_eq!(got.tmpfs_options.unwrap().mode, 0o1777);
    }

    #[test]
    fn wrong_mounts_say_why() {
        let reason = |text: &str| long(text).unwrap_err();
        assert_eq!(reason("type=bind,target=/b"), "source is missing");
        assert_eq!(
            reason("type=bind,source=a,target=/b"),
            "the source is not an absolute path"
        );
        assert_eq!(reason("type=volume,source=a"), "target is missing");
        assert_eq!(reason("type=disk,target=/b"), "unknown type \"disk\"");
        assert_eq!(reason("target=/b,colour=red"), "unknown field \"colour\"");
        assert_eq!(
            reason("target=/b,bind-nonrecursive"),
            "bind- fields need type=bind"
        );
        assert_eq!(
            reason("target=/b,readonly=maybe"),
            "readonly is true or false, not \"maybe\""
        );
    }

    #[test]
    fn short_forms() {
        assert!(bind("/a:/b:ro").unwrap().readonly);
        assert!(bind("a:/b").is_err() && bind("/a").is_err() && bind("/a:/b:x").is_err());
        let got = tmpfs("/t:size=1m,mode=700,noexec,ro").unwrap();
        assert!(got.readonly);
        let options = got.tmpfs_options.unwrap();
        assert_eq!(
            (options.size_bytes, options.mode, options.options.as_str()),
            (1 << 20, 0o700, "noexec")
        );
        assert!(tmpfs("t").is_err() && tmpfs("/t:size=x").is_err() && tmpfs("/t:what").is_err());
    }
}
