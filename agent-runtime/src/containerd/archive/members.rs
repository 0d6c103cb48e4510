//! The members of a tar file: where the bytes of each are, found without reading those.
//!
//! The tar crate would read long names and extended headers into memory whatever their size, or
//! else not know them at all; so headers are read with it, and members are walked here. A link is
//! another name of a member: it is followed as text, within the archive, and nowhere else.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tar::Header;

use super::bad;
use crate::error::Error;

/// Members of an archive: images have at most some hundred layers each.
const MEMBERS_MAX: usize = 20_000;
/// Names and extended headers have some hundred bytes.
const EXTENSION_MAX: u64 = 64 << 10;
/// A link leads to a file, or to another link to it.
const LINKS_MAX: usize = 8;
/// Headers take a block, and so does the rest of each member's content.
const BLOCK: u64 = 512;

/// Where a member's bytes are in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Region {
    pub offset: u64,
    pub size: u64,
}

/// What extension headers say about the member after them.
#[derive(Debug, Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

#[derive(Debug, Default)]
struct Members {
    files: BTreeMap<String, Region>,
    /// What each link's name stands for.
    links: BTreeMap<String, String>,
    count: usize,
}

/// Every file by its name, and by the names of links to it.
pub(super) fn read(file: &File) -> Result<BTreeMap<String, Region>, Error> {
    let mut members = Members::default();
    let mut extended = Extended::default();
    let mut at = 0;
    while let Some(header) = header(file, at)? {
        members.count += 1;
        if members.count > MEMBERS_MAX {
            return Err(bad(format!("it has more than {MEMBERS_MAX} members")));
        }
        let no_tar = |error: std::io::Error| bad(format!("it is no tar file: {error}"));
        let kind = header.entry_type();
        let extends = kind.is_pax_local_extensions()
            || kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_global_extensions();
        let size = match extended.size {
            Some(size) if !extends => size,
            Some(_) | None => header.entry_size().map_err(no_tar)?,
        };
        let region = Region {
            offset: at + BLOCK,
            size,
        };
        if kind.is_gnu_longname() {
            extended.name = Some(text(file, region)?);
        } else if kind.is_gnu_longlink() {
            extended.link = Some(text(file, region)?);
        } else if kind.is_pax_local_extensions() {
            extended.pax(&small(file, region)?)?;
        } else if !kind.is_pax_global_extensions() {
            members.add(&header, std::mem::take(&mut extended), region)?;
        }
        let blocks = size.div_ceil(BLOCK);
        let next = blocks
            .checked_mul(BLOCK)
            .and_then(|s| s.checked_add(region.offset));
        at = next.ok_or_else(|| bad("it is no tar file: a member has no possible size"))?;
    }
    Ok(members.resolved())
}

/// The header at an offset; none at the end, which is a block of zeros or that of the file.
fn header(file: &File, at: u64) -> Result<Option<Header>, Error> {
    let mut header = Header::new_old();
    let mut got = 0;
    while let Some(rest) = header
        .as_mut_bytes()
        .get_mut(got..)
        .filter(|r| !r.is_empty())
    {
        match file.read_at(rest, at + got as u64).map_err(bad)? {
            0 => break,
            length => got += length,
        }
    }
    if got == 0 || header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let stated = header.cksum().ok();
    if (got as u64) < BLOCK || stated != Some(checksum(&header)) {
        return Err(bad(format!(
            "it is no tar file, or cut off: no header at byte {at}"
        )));
    }
    Ok(Some(header))
}

/// The sum of a header's bytes, those of the sum itself taken as blanks.
fn checksum(header: &Header) -> u32 {
    let bytes = header.as_bytes().iter().enumerate();
    bytes
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum()
}

/// The content of an extension header.
fn small(file: &File, region: Region) -> Result<Vec<u8>, Error> {
    if region.size > EXTENSION_MAX {
        return Err(bad(format!(
            "a member's name or extended header is longer than {EXTENSION_MAX} bytes"
        )));
    }
    let mut content = vec![0; usize::try_from(region.size).unwrap_or_default()];
    file.read_exact_at(&mut content, region.offset)
        .map_err(|error| bad(format!("it is cut off: {error}")))?;
    Ok(content)
}

/// A name that has a member of its own, which ends with a zero.
fn text(file: &File, region: Region) -> Result<Vec<u8>, Error> {
    let mut content = small(file, region)?;
    if let Some(end) = content.iter().position(|byte| *byte == 0) {
        content.truncate(end);
    }
    Ok(content)
}

impl Extended {
    /// Takes over what an extended header of POSIX says: lines `LENGTH KEY=VALUE`.
    fn pax(&mut self, content: &[u8]) -> Result<(), Error> {
        for record in tar::PaxExtensions::new(content) {
            let record =
                record.map_err(|error| bad(format!("it has a bad extended header: {error}")))?;
            let value = || record.value_bytes().to_vec();
            match record.key_bytes() {
                b"path" => self.name = Some(value()),
                b"linkpath" => self.link = Some(value()),
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    let size = size.ok_or_else(|| bad("it has a bad extended header: size"))?;
                    self.size = Some(size);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Members {
    fn add(&mut self, header: &Header, extended: Extended, region: Region) -> Result<(), Error> {
        let kind = header.entry_type();
        if !kind.is_file() && !kind.is_symlink() && !kind.is_hard_link() {
            return Ok(());
        }
        let name = extended
            .name
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&name).into_owned();
        let out = || bad(format!("its member {name:?} leads out of it"));
        let own = within("", &name).ok_or_else(out)?;
        if kind.is_file() {
            self.links.remove(&own);
            self.files.insert(own, region);
            return Ok(());
        }
        let of_header = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
        let link = extended.link.or_else(of_header).unwrap_or_default();
        let link = String::from_utf8_lossy(&link);
        // A symbolic link counts from its own directory, a hard one from the top.
        let from = match own.rsplit_once('/') {
            Some((directory, _)) if kind.is_symlink() => directory,
            Some(_) | None => "",
        };
        let target = within(from, &link).ok_or_else(out)?;
        self.files.remove(&own);
        self.links.insert(own, target);
        Ok(())
    }

    fn resolved(self) -> BTreeMap<String, Region> {
        let mut files = self.files;
        let mut aliases = Vec::new();
        for (name, target) in &self.links {
            let mut target = target;
            for _ in 0..LINKS_MAX {
                match self.links.get(target) {
                    Some(next) => target = next,
                    None => break,
                }
            }
            // One that leads to nothing, or in a circle, is missing where an image wants it.
            if let Some(region) = files.get(target) {
                aliases.push((name.clone(), *region));
            }
        }
        files.extend(aliases);
        files
    }
}

/// A path from a directory of the archive, without `.` and `..`; none if it leads out.
fn within(directory: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use tar::{Builder, EntryType};

    fn members(
        build: impl FnOnce(&mut Builder<Vec<u8>>),
    ) -> Result<BTreeMap<String, Region>, Error> {
        let mut builder = Builder::new(Vec::new());
        build(&mut builder);
        of(&builder.into_inner().unwrap())
    }

    fn of(archive: &[u8]) -> Result<BTreeMap<String, Region>, Error> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        read(&file)
    }

    fn file(builder: &mut Builder<Vec<u8>>, name: &str, content: &str) {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }

    fn link(builder: &mut Builder<Vec<u8>>, kind: EntryType, (name, target): (&str, &str)) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    #[test]
    fn links_are_names_of_what_they_lead_to() {
        let found = members(|b| {
            file(b, "./a/layer.tar", "four");
            link(b, EntryType::Symlink, ("b/layer.tar", "../a/layer.tar"));
            link(b, EntryType::Symlink, ("c/layer.tar", "../b/layer.tar"));
            link(b, EntryType::Link, ("d/layer.tar", "a/layer.tar"));
            link(b, EntryType::Symlink, ("circle", "circle"));
            link(b, EntryType::Symlink, ("nothing", "none"));
        });
        let found = found.unwrap();
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        let layers = ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"];
        assert_eq!(names, layers);
        assert!(found.values().all(|region| region.size == 4));
        assert!(found.values().all(|region| region.offset == 512));
    }

    #[test]
    fn nothing_leads_out() {
        for target in ["../../etc/passwd", "/etc/passwd"] {
            let error = members(|b| link(b, EntryType::Symlink, ("a/b", target)));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("\"a/b\" leads out"), "{error}");
        }
        assert_eq!(within("a/b", "./../c//d"), Some("a/c/d".to_owned()));
        assert_eq!(within("", "../a"), None);
    }

    #[test]
    fn long_names_and_sizes_of_extended_headers_count() {
        let long = format!("{}/layer.tar", "d/".repeat(100));
        let found = members(|b| {
            file(b, &long, "four");
            b.append_pax_extensions([("path", b"pax/name".as_slice()), ("size", b"600")])
                .unwrap();
            // The header's own size says nothing, as Go writes it from 8 GiB on.
            let mut header = Header::new_ustar();
            header.set_path("short").unwrap();
            header.set_size(0);
            header.set_cksum();
            let mut content = vec![7; 600];
            content.resize(1024, 0);
            b.get_mut().extend_from_slice(header.as_bytes());
            b.get_mut().extend_from_slice(&content);
            file(b, "after", "x");
        });
        let found = found.unwrap();
        let sizes: Vec<(&str, u64)> = found.iter().map(|(n, r)| (n.as_str(), r.size)).collect();
        let long = long.replace("//", "/");
        assert_eq!(sizes, [("after", 1), (long.as_str(), 4), ("pax/name", 600)]);
    }

    #[test]
    fn what_is_no_tar_file_is_refused() {
        let error = of(&[7; 2000]).unwrap_err().to_string();
        assert!(error.contains("no tar file"), "{error}");
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = of(header.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
        header.set_entry_type(EntryType::Regular);
        header.set_size(u64::MAX);
        header.set_cksum();
        assert!(of(header.as_bytes()).is_err());
    }
}
