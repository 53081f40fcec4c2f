//! The archive from which Linux fills its first file system: cpio in the "newc" form (kernel documentation: "initramfs buffer
//! format").

use std::collections::BTreeSet;
use std::io::{self, Write};

/// Writes an archive entry by entry. Folders above an entry are made by themselves.
pub(crate) struct Archive<W: Write> {
    out: W,
    folders: BTreeSet<String>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, folders: BTreeSet::new(), entries: 0 }
    }

    /// A folder by its absolute path.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        self.above(path)?;
        self.entry(path, FOLDER, &[])
    }

    /// A file by its absolute path, with permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.above(path)?;
        self.entry(path, FILE | mode, contents)
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.above(path)?;
        self.entry(path, LINK, target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()
    }

    fn above(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((above, _)) => self.folder(above),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        // inode, mode, uid, gid, links, time, size, device (2), special device (2), name length, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + path.len() + 1)?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..(4 - length % 4) % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_folders_come_before_what_is_in_them() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("/etc/a/motd", 0o644, b"hello").unwrap();
        archive.link("/etc/b", "a").unwrap();
        archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes).replace('\0', ".");
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let place = |what: &str| text.find(what).unwrap();
        assert!(place("etc.") < place("etc/a.") && place("etc/a.") < place("etc/a/motd."));
        assert!(text.contains("000081A4") && text.contains("TRAILER!!!"), "{text}");
        assert_eq!(bytes.len() % 4, 0);
    }
}
