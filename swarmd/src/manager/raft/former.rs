//! The members that a recovery left behind, until each has been told or is none of the cluster any more.
//!
//! `raft/former` has a line for each: its number, its node, its addresses. It is this member's own: no other one knows it.

use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::error::StorageError;
use super::types::{Member, RaftId};

const FILE: &str = "former";

/// A member of the cluster as it was before its recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Former {
    /// Its number then.
    pub(crate) id: RaftId,
    /// Who it is, and where.
    pub(crate) member: Member,
}

/// Whom a recovery leaves behind: the members of before, and whom earlier recoveries had left behind and that were not told
/// yet. A node that is a member again has nothing of its earlier life.
pub(crate) fn left_behind(members: Vec<Former>, earlier: Vec<Former>, own: &str) -> Vec<Former> {
    let mut left = members;
    for former in earlier {
        let node = &former.member.node_id;
        if !left.iter().any(|known| known.member.node_id == *node) {
            left.push(former);
        }
    }
    left.retain(|former| former.member.node_id != own);
    left
}

fn file(raft_dir: &Path) -> PathBuf {
    raft_dir.join(FILE)
}

/// Those that are not told yet. A line that can't be read is nobody.
pub(crate) fn read(raft_dir: &Path) -> Result<Vec<Former>, StorageError> {
    let path = file(raft_dir);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(parse).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(StorageError::io("read", &path)(e)),
    }
}

/// Replaces the list. Blocks on the disk.
pub(crate) fn write(raft_dir: &Path, former: &[Former]) -> Result<(), StorageError> {
    let text: String = former.iter().map(line).collect();
    Disk::Real.replace(&file(raft_dir), text.as_bytes())
}

fn line(former: &Former) -> String {
    let Member { node_id, addresses } = &former.member;
    format!("{} {node_id} {}\n", former.id, addresses.join(" "))
}

fn parse(line: &str) -> Option<Former> {
    let mut words = line.split_whitespace();
    let id = words.next()?.parse().ok()?;
    let node_id = words.next()?.to_owned();
    let addresses = words.map(str::to_owned).collect();
    let member = Member { node_id, addresses };
    Some(Former { id, member })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_left_behind_before_stays_on_the_list() {
        let former = |id: RaftId, node: &str| Former {
            id,
            member: Member {
                node_id: node.to_owned(),
                addresses: Vec::new(),
            },
        };
        let members = vec![former(11, "own"), former(12, "again"), former(13, "other")];
        let earlier = vec![former(2, "again"), former(3, "silent"), former(1, "own")];
        let left = left_behind(members, earlier, "own");
        let ids: Vec<RaftId> = left.iter().map(|former| former.id).collect();
        assert_eq!(ids, [12, 13, 3]);
    }

    #[test]
    fn the_list_is_kept_until_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), []);
        let former = |id: RaftId| Former {
            id,
            member: Member {
                node_id: format!("n{id}"),
                addresses: vec!["10.0.0.1:1".to_owned(), "[::1]:2".to_owned()],
            },
        };
        for list in [vec![former(1), former(u64::MAX)], vec![former(2)], vec![]] {
            write(dir.path(), &list).unwrap();
            assert_eq!(read(dir.path()).unwrap(), list);
        }
    }
}
