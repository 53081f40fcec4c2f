//! Kernel settings of the node that are changed while Podium runs. The old value is written down first, so that
//! [`restore`] can put it back, also much later and without a running agent.

use std::fs;
use std::io;
use std::path::Path;

/// Sets `/proc/sys/<name>` to `value`; the value it had goes to `dir`, unless one is recorded there already.
pub(crate) fn set(dir: &Path, name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(name);
    let old = fs::read_to_string(&path)?;
    if old.trim() == value {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let record = dir.join(name.replace('/', "."));
    if !record.exists() {
        let beside = dir.join(format!(".{}.new", name.replace('/', ".")));
        fs::write(&beside, format!("{name} {}\n", old.trim()))?;
        fs::rename(&beside, &record)?;
    }
    fs::write(&path, value)
}

/// Puts back every recorded value and forgets the records.
pub(crate) fn restore(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        if let Some((name, old)) = text.trim().split_once(' ') {
            fs::write(Path::new("/proc/sys").join(name), old)?;
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(dir)
}
