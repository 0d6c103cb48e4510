//! Who the container's process is: `user[:group]` by name or number, as Docker resolves it.

use crate::error::Error;

/// The identity of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Further groups, sorted, without the first one.
    pub groups: Vec<u32>,
    /// Home directory, where the image's `/etc/passwd` names one.
    pub home: Option<String>,
}

/// True when `/etc/passwd` and `/etc/group` of the image are needed to say who that is.
pub(super) fn needs_files(user: &str, groups: &[String]) -> bool {
    let numeric = |text: &str| text.parse::<u32>().is_ok();
    let user_by_number = match user.split_once(':') {
        Some((user, group)) => numeric(user) && numeric(group),
        // A number alone still gets its group and home from the image.
        None => user.is_empty(),
    };
    !(user_by_number && groups.iter().all(|group| numeric(group)))
}

/// Resolves `user[:group]` and further groups by the text of `/etc/passwd` and `/etc/group`.
pub(super) fn resolve(
    user: &str,
    groups: &[String],
    passwd: &str,
    group_file: &str,
) -> Result<Account, Error> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [login, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        (*login == name || *uid == name)
            .then(|| Some((*login, uid.parse().ok()?, gid.parse().ok()?, *home)))
            .flatten()
    });
    let number: Option<u32> = name.parse().ok();
    let (login, uid, gid, home) = match (entry, number) {
        (Some((login, uid, gid, home)), _) => (Some(login), uid, gid, Some(home)),
        (None, Some(uid)) => (None, uid, 0, None),
        (None, None) => {
            return Err(Error::Fatal(format!(
                "user {name}: the image's /etc/passwd has no such user"
            )));
        }
    };
    let first = match group {
        Some(group) => group_id(group, group_file)?,
        None => gid,
    };
    let mut others = Vec::new();
    // As in Docker: an explicit group stands alone.
    if let (Some(login), None) = (login, group) {
        others.extend(memberships(login, group_file));
    }
    for group in groups {
        others.push(group_id(group, group_file)?);
    }
    others.sort_unstable();
    others.dedup();
    others.retain(|&gid| gid != first);
    let home = home.filter(|home| !home.is_empty()).map(str::to_owned);
    Ok(Account {
        uid,
        gid: first,
        groups: others,
        home,
    })
}

fn group_id(group: &str, file: &str) -> Result<u32, Error> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    found.ok_or_else(|| {
        Error::Fatal(format!(
            "group {group}: the image's /etc/group has no such group"
        ))
    })
}

fn memberships(login: &str, file: &str) -> Vec<u32> {
    let member = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields.as_slice() else {
            return None;
        };
        members
            .split(',')
            .any(|member| member == login)
            .then(|| gid.parse().ok())
            .flatten()
    };
    file.lines().filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web,other\nbin:x:1:root\n";

    fn account(user: &str, groups: &[&str]) -> Result<Account, String> {
        let groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        resolve(user, &groups, PASSWD, GROUP).map_err(|error| error.to_string())
    }

    #[test]
    fn resolves_names_and_numbers() {
        let web = |gid, groups: &[u32]| Account {
            uid: 33,
            gid,
            groups: groups.to_vec(),
            home: Some("/var/www".to_owned()),
        };
        assert_eq!(account("web", &[]), Ok(web(34, &[29])));
        assert_eq!(account("33", &[]), Ok(web(34, &[29])));
        assert_eq!(account("web:audio", &[]), Ok(web(29, &[])));
        assert_eq!(account("web:7", &["bin", "50"]), Ok(web(7, &[1, 50])));
        let unknown = account("4711", &[]).unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.home), (4711, 0, None));
        let root = account("", &[]).unwrap();
        assert_eq!((root.uid, root.gid, root.groups), (0, 0, vec![1]));
    }

    #[test]
    fn names_what_is_missing() {
        assert!(account("nobody", &[]).unwrap_err().contains("user nobody"));
        assert!(
            account("web", &["nogroup"])
                .unwrap_err()
                .contains("group nogroup")
        );
    }

    #[test]
    fn knows_when_files_are_needed() {
        assert!(!needs_files("", &[]));
        assert!(!needs_files("1:2", &["3".to_owned()]));
        assert!(needs_files("1", &[]));
        assert!(needs_files("web", &[]));
        assert!(needs_files("", &["audio".to_owned()]));
    }
}
