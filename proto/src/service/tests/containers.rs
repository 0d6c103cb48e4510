//! What a spec says of its containers.

use super::*;

#[test]
fn what_runs() {
    check("task", "is missing", |s| s.task = None);
    check("task", "no runtime", |s| {
        s.task.as_mut().unwrap().runtime = None
    });
    check("task.attachment", "attachments have no service", |s| {
        let attachment = pb::NetworkAttachmentSpec::default();
        s.task.as_mut().unwrap().runtime = Some(pb::task_spec::Runtime::Attachment(attachment));
    });
    let generic = |kind: &'static str, type_url: &'static str| {
        move |s: &mut pb::ServiceSpec| {
            let payload = wkt::Any {
                type_url: type_url.to_owned(),
                value: Vec::new(),
            };
            let spec = pb::GenericRuntimeSpec {
                kind: kind.to_owned(),
                payload: Some(payload),
            };
            s.task.as_mut().unwrap().runtime = Some(pb::task_spec::Runtime::Generic(spec));
        }
    };
    accepts(generic("plugin", "x/y"));
    check("task.generic.kind", "too short", generic("ab", "x/y"));
    check("task.generic.payload", "missing", generic("plugin", ""));
    check("task.container.image", "is missing", |s| {
        container(s).image.clear()
    });
    check("task.container.image", "lower-case", |s| {
        container(s).image = "Nginx".to_owned()
    });
}

#[test]
fn processes() {
    check("task.container.env[0]", "has no name", |s| {
        container(s).env = vec!["=x".to_owned()]
    });
    check("task.container.env[0]", "zero byte", |s| {
        container(s).env = vec!["A=\0".to_owned()]
    });
    check("task.container.args[0]", "zero byte", |s| {
        container(s).args = vec!["\0".to_owned()]
    });
    check("task.container.dir", "absolute", |s| {
        container(s).dir = "a/b".to_owned()
    });
    check("task.container.hostname", "not a host name", |s| {
        container(s).hostname = "a b".to_owned();
    });
    check("task.container.stop_signal", "not a signal", |s| {
        container(s).stop_signal = "SIGSTOPP".to_owned();
    });
    check("task.container.stop_grace_period", "negative", |s| {
        container(s).stop_grace_period = seconds(-1);
    });
    check("task.container.isolation", "unknown value 7", |s| {
        container(s).isolation = 7
    });
    check("task.container.hosts[0]", "ADDRESS", |s| {
        container(s).hosts = vec!["a b".to_owned()]
    });
    accepts(|s| container(s).hosts = vec!["10.0.0.1 a b".to_owned(), "::1 c".to_owned()]);
    check(
        "task.container.dns_config.nameservers[0]",
        "not an IP",
        |s| {
            container(s).dns_config.get_or_insert_default().nameservers = vec!["dns".to_owned()];
        },
    );
}

#[test]
fn limits_and_privileges() {
    let ulimit = |name: &'static str, soft: i64, hard: i64| {
        move |s: &mut pb::ServiceSpec| {
            let name = name.to_owned();
            container(s).ulimits = vec![pb::container_spec::Ulimit { name, soft, hard }];
        }
    };
    accepts(ulimit("nofile", 1024, -1));
    check(
        "task.container.ulimits[0]",
        "above the hard limit",
        ulimit("nofile", 2, 1),
    );
    check(
        "task.container.ulimits[0]",
        "above the hard limit",
        ulimit("nofile", -1, 1),
    );
    check(
        "task.container.ulimits[0]",
        "known are core",
        ulimit("files", 1, 1),
    );
    check("task.container.pidsLimit", "negative", |s| {
        container(s).pids_limit = -2
    });
    check("task.container.oom_score_adj", "-1000", |s| {
        container(s).oom_score_adj = 1001
    });
    check("task.container.sysctls", "kernel parameter", |s| {
        container(s)
            .sysctls
            .insert("a b".to_owned(), "1".to_owned());
    });
    accepts(|s| container(s).capability_add = vec!["ALL".to_owned(), "cap_net_raw".to_owned()]);
    check(
        "task.container.capability_drop[0]",
        "not a capability",
        |s| {
            container(s).capability_drop = vec!["CAP_FLY".to_owned()];
        },
    );
    check(
        "task.container.privileges.seccomp.profile",
        "needs a profile",
        |s| {
            let privileges = container(s).privileges.get_or_insert_default();
            privileges.seccomp.get_or_insert_default().mode =
                pb::privileges::seccomp_opts::SeccompMode::Custom.into();
        },
    );
    check(
        "task.container.privileges.credential_spec.config",
        "runtime target",
        |s| {
            let source = pb::privileges::credential_spec::Source::Config("c1".to_owned());
            let credentials = pb::privileges::CredentialSpec {
                source: Some(source),
            };
            container(s)
                .privileges
                .get_or_insert_default()
                .credential_spec = Some(credentials);
        },
    );
}

#[test]
fn mounts() {
    use pb::mount::Type;
    let mounted =
        |mounts: Vec<pb::Mount>| move |s: &mut pb::ServiceSpec| container(s).mounts = mounts;
    let twice = vec![
        mount(Type::Volume, "a", "/a"),
        mount(Type::Volume, "b", "/a/"),
    ];
    check(
        "task.container.mounts[1].target",
        "mounted twice",
        mounted(twice),
    );
    let at = "task.container.mounts[0]";
    let one = |kind, source, target| mounted(vec![mount(kind, source, target)]);
    check(
        &format!("{at}.target"),
        "absolute",
        one(Type::Volume, "a", "a"),
    );
    check(
        &format!("{at}.source"),
        "absolute",
        one(Type::Bind, "a", "/a"),
    );
    check(
        &format!("{at}.source"),
        "is a path",
        one(Type::Volume, "/a", "/a"),
    );
    check(
        &format!("{at}.source"),
        "must be empty",
        one(Type::Tmpfs, "a", "/a"),
    );
    accepts(one(Type::Bind, "{{.Node.ID}}", "/a"));
    let mut unknown = mount(Type::Bind, "/a", "/a");
    unknown.r#type = 9;
    check(
        &format!("{at}.type"),
        "unknown value 9",
        mounted(vec![unknown]),
    );
    let mut foreign = mount(Type::Bind, "/a", "/a");
    foreign.tmpfs_options = Some(Default::default());
    check(
        &format!("{at}.tmpfs_options"),
        "type BIND",
        mounted(vec![foreign]),
    );
    let mut escaping = mount(Type::Volume, "a", "/a");
    escaping.volume_options.get_or_insert_default().subpath = "../b".to_owned();
    check(
        &format!("{at}.volume_options.subpath"),
        "leaves",
        mounted(vec![escaping]),
    );
}

#[test]
fn health_checks() {
    let health = |change: fn(&mut pb::HealthConfig)| {
        move |s: &mut pb::ServiceSpec| change(container(s).healthcheck.get_or_insert_default())
    };
    let at = "task.container.healthcheck";
    check(
        &format!("{at}.interval"),
        "too short",
        health(|h| {
            h.interval = Some(wkt::Duration {
                seconds: 0,
                nanos: 999_999,
            });
        }),
    );
    accepts(health(|h| h.interval = seconds(0)));
    check(
        &format!("{at}.start_period"),
        "negative",
        health(|h| h.start_period = seconds(-1)),
    );
    check(
        &format!("{at}.retries"),
        "negative",
        health(|h| h.retries = -1),
    );
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    for test in [&["NONE"][..], &["CMD", "a", "b"], &["CMD-SHELL", "a"], &[]] {
        accepts(|s| container(s).healthcheck.get_or_insert_default().test = words(test));
    }
    for test in [
        &["CMD"][..],
        &["curl", "x"],
        &["NONE", "x"],
        &["CMD-SHELL", "a", "b"],
    ] {
        check(&format!("{at}.test"), "no health check", |s| {
            container(s).healthcheck.get_or_insert_default().test = words(test);
        });
    }
}

#[test]
fn secrets_and_configs() {
    let secret = |id: &str, name: &str, file: &str| pb::SecretReference {
        secret_id: id.to_owned(),
        secret_name: name.to_owned(),
        target: Some(pb::secret_reference::Target::File(pb::FileTarget {
            name: file.to_owned(),
            uid: "0".to_owned(),
            gid: "0".to_owned(),
            mode: 0o444,
        })),
    };
    let at = "task.container.secrets";
    let given = |secrets: Vec<pb::SecretReference>| {
        move |s: &mut pb::ServiceSpec| container(s).secrets = secrets
    };
    accepts(given(vec![secret("1", "a", "a"), secret("1", "a", "b")]));
    check(
        &format!("{at}[0]"),
        "id and the name",
        given(vec![secret("", "a", "a")]),
    );
    check(
        &format!("{at}[0].file.name"),
        "is missing",
        given(vec![secret("1", "a", "")]),
    );
    let clash = vec![secret("1", "a", "x"), secret("2", "b", "x")];
    check(
        &format!("{at}[1].file.name"),
        "both \"a\" and \"b\"",
        given(clash),
    );
    let mut bare = secret("1", "a", "a");
    bare.target = None;
    check(&format!("{at}[0]"), "no target", given(vec![bare]));
    accepts(|s| {
        container(s).configs = vec![pb::ConfigReference {
            config_id: "1".to_owned(),
            config_name: "a".to_owned(),
            target: Some(pb::config_reference::Target::Runtime(pb::RuntimeTarget {})),
        }];
    });
}

#[test]
fn drivers_beyond_the_built_in_ones_are_plugins() {
    let with = |volume: &str, log: &str| {
        let mut spec = web();
        let driver = |name: &str| pb::Driver {
            name: name.to_owned(),
            ..Default::default()
        };
        container(&mut spec).mounts[1]
            .volume_options
            .get_or_insert_default()
            .driver_config = Some(driver(volume));
        spec.task.as_mut().unwrap().log_driver = Some(driver(log));
        ServiceSpec::try_from(spec).unwrap().task.plugins
    };
    for (volume, log) in [
        ("", ""),
        ("local", "none"),
        ("", "json-file"),
        ("", "local"),
    ] {
        assert_eq!(with(volume, log), [], "{volume} {log}");
    }
    let plugin = |kind: &str, name: &str| Plugin {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    assert_eq!(
        with("nfs", "loki"),
        [plugin("Log", "loki"), plugin("Volume", "nfs")]
    );
}
