//! Writes docker archives (`docker save`): one layer, the image's configuration, the manifest. The same content gives
//! the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

/// What lies at one path of an image.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Folder {
        mode: u32,
    },
    Text {
        text: String,
        mode: u32,
    },
    /// A file of this machine; its set-uid bit is `mode`'s, not the file's.
    Copy {
        from: PathBuf,
        mode: u32,
    },
    Link {
        target: String,
    },
}

/// An image to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    /// Paths without a leading slash.
    pub(super) files: BTreeMap<String, Node>,
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) user: String,
}

impl Image {
    pub(super) fn text(&mut self, path: &str, text: &str) {
        self.files.insert(path.to_owned(), Node::Text { text: text.to_owned(), mode: 0o644 });
    }

    pub(super) fn folder(&mut self, path: &str, mode: u32) {
        self.files.insert(path.to_owned(), Node::Folder { mode });
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.files.insert(path.to_owned(), Node::Link { target: target.to_owned() });
    }

    pub(super) fn program(&mut self, path: &str, from: &Path) {
        self.copy(path, from, 0o755);
    }

    pub(super) fn copy(&mut self, path: &str, from: &Path, mode: u32) {
        self.files.insert(path.to_owned(), Node::Copy { from: from.to_owned(), mode });
    }

    /// Writes the archive under a name and tag; returns the image's id, which tells all of its content.
    pub(super) fn write(&self, archive: &Path, name: &str) -> Result<String> {
        let layer = self.layer()?;
        let digest = sha256(&layer);
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.cmd, "Env": self.env, "User": self.user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        })
        .to_string();
        let id = sha256(config.as_bytes());
        let config_name = format!("{id}.json");
        let manifest =
            json!([{"Config": config_name, "RepoTags": [name], "Layers": [format!("{digest}.tar")]}])
                .to_string();
        let file = File::create(archive).with_context(|| format!("cannot make {}", archive.display()))?;
        let mut tar = tar::Builder::new(file);
        for (path, content) in [
            (config_name, config.as_bytes()),
            (format!("{digest}.tar"), &layer[..]),
            ("manifest.json".into(), manifest.as_bytes()),
        ] {
            tar.append_data(&mut header(tar::EntryType::Regular, 0o644, content.len()), path, content)?;
        }
        tar.into_inner()?.flush()?;
        Ok(id)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, node) in &self.with_parents() {
            match node {
                Node::Folder { mode } => {
                    tar.append_data(&mut header(tar::EntryType::Directory, *mode, 0), path, &[][..])?;
                }
                Node::Text { text, mode } => {
                    let mut header = header(tar::EntryType::Regular, *mode, text.len());
                    tar.append_data(&mut header, path, text.as_bytes())?;
                }
                Node::Copy { from, mode } => {
                    let content =
                        std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    tar.append_data(
                        &mut header(tar::EntryType::Regular, *mode, content.len()),
                        path,
                        &content[..],
                    )?;
                }
                Node::Link { target } => {
                    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    /// All paths with the folders they lie in: a folder sorts before what it holds.
    fn with_parents(&self) -> BTreeMap<String, Node> {
        let mut all = self.files.clone();
        for path in self.files.keys() {
            let parents = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
            parents.for_each(|parent| {
                all.entry(parent).or_insert(Node::Folder { mode: 0o755 });
            });
        }
        all
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// This machine's architecture in Go's spelling, which images use.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Rights of a file of this machine.
pub(super) fn mode(path: &Path) -> Result<u32> {
    let metadata = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(metadata.permissions().mode() & 0o755)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_gives_the_same_layer_with_parents_first() {
        let mut image = Image::default();
        image.text("etc/x/passwd", "root");
        image.link("bin/sh", "/bin/busybox");
        image.folder("tmp", 0o1777);
        image.copy("bin/su", Path::new("/proc/self/exe"), 0o4755);
        let layer = image.layer().unwrap();
        assert_eq!(layer, image.layer().unwrap());
        let mut tar = tar::Archive::new(&layer[..]);
        let found: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                format!("{name} {:o}", entry.header().mode().unwrap())
            })
            .collect();
        let want =
            ["bin 755", "bin/sh 777", "bin/su 4755", "etc 755", "etc/x 755", "etc/x/passwd 644", "tmp 1777"];
        assert_eq!(found, want);
    }
}
