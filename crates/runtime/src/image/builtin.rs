//! An image packed from an executable of this machine, so that containers run where there is no registry.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::layer::Hashing;
use super::tree::relative;
use super::{ImageInfo, ImageStore, StoredImage, elf, reference};
use crate::error::{During as _, RuntimeError};

/// What a packed image shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// On this machine.
    pub executable: PathBuf,
    /// Where it lies in the image, e.g. `/podium`.
    pub program: String,
    /// Path and target of symbolic links, e.g. `("/bin/sh", "/podium")`.
    pub links: Vec<(String, String)>,
    /// Path, content and mode of text files, e.g. `/etc/passwd`.
    pub files: Vec<(String, String, u32)>,
    /// Path and mode of folders, e.g. `("/tmp", 0o1777)`.
    pub folders: Vec<(String, u32)>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl ImageStore {
    /// The image under `reference`, packed anew when the executable or the layout differs from what it was packed of.
    pub(crate) fn ensure_builtin(&self, reference: &str, layout: &Layout) -> Result<ImageInfo, RuntimeError> {
        let name = reference::normalise(reference)?;
        let _lock = self.lock()?;
        let mut hashing = Hashing::new(
            fs::File::open(&layout.executable)
                .during(|| format!("cannot open {}", layout.executable.display()))?,
        );
        std::io::copy(&mut hashing, &mut std::io::sink())?;
        let size_bytes = hashing.count;
        // The executable's path on this machine is no part of the content.
        let content = Layout { executable: PathBuf::new(), ..layout.clone() };
        let layout_json = serde_json::to_vec(&content).during(|| "cannot encode a layout".into())?;
        let digest = sha256(&[b"podium builtin 1 ", hashing.digest().as_bytes(), &layout_json]);
        if self.image_file(&digest).exists() && self.layer_dir(&digest).exists() {
            let image = self.load(&digest)?;
            self.add(&image, &[name])?;
            return Ok(self.load(&digest)?.info);
        }
        let scratch = self.scratch()?;
        pack(layout, &scratch)
            .inspect_err(|_| crate::error::log_failure(fs::remove_dir_all(&scratch), "cannot tidy up"))?;
        self.adopt_layer(&scratch, &digest)?;
        let info = ImageInfo {
            id: digest.clone(),
            size_bytes,
            entrypoint: layout.entrypoint.clone(),
            cmd: layout.cmd.clone(),
            env: layout.env.clone(),
            ..ImageInfo::default()
        };
        self.add(&StoredImage { info, layers: vec![digest.clone()] }, &[name])?;
        Ok(self.load(&digest)?.info)
    }
}

fn sha256(parts: &[&[u8]]) -> String {
    let mut hash = Context::new(&SHA256);
    parts.iter().for_each(|part| hash.update(part));
    format!("sha256:{}", hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn pack(layout: &Layout, root: &Path) -> Result<(), RuntimeError> {
    let inside = |path: &str| -> Result<PathBuf, RuntimeError> {
        let path = root.join(relative(Path::new(path))?);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).during(|| format!("cannot make {}", parent.display()))?;
        }
        Ok(path)
    };
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for (path, mode) in &layout.folders {
        let path = inside(path)?;
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    let mut copies = vec![(layout.executable.clone(), inside(&layout.program)?)];
    for library in elf::dependencies(&layout.executable)? {
        let place = inside(&library.to_string_lossy())?;
        copies.push((library, place));
    }
    for (from, to) in copies {
        fs::copy(&from, &to).during(|| format!("cannot copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    for (path, text, mode) in &layout.files {
        let path = inside(path)?;
        fs::write(&path, text).during(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    for (path, target) in &layout.links {
        let path = inside(path)?;
        std::os::unix::fs::symlink(target, &path).during(|| format!("cannot link {}", path.display()))?;
    }
    Ok(())
}
