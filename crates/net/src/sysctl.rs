//! Kernel settings of the node that are changed while Podium runs. The old value is written down first, so that
//! [`restore`] can put it back, also much later and without a running agent.

use std::fs;
use std::io;
use std::path::Path;

/// The value of `/proc/sys/<name>`.
pub(crate) fn get(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys").join(name))?.trim().to_owned())
}

/// Sets `/proc/sys/<name>` to `value` and returns the value before Podium. That one is what `dir` has recorded in
/// this boot, or what another instance knows (`inherited`), or what is there now; it is recorded before anything
/// changes.
pub(crate) fn set(dir: &Path, name: &str, value: &str, inherited: Option<String>) -> io::Result<String> {
    let path = Path::new("/proc/sys").join(name);
    let boot = boot()?;
    let record = dir.join(name.replace('/', "."));
    let recorded = match fs::read_to_string(&record) {
        // A record of an earlier boot says nothing about this one.
        Ok(text) => parse(&text).filter(|r| r.boot == boot).map(|r| r.old.to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let now = get(name)?;
    let old = recorded.or(inherited).unwrap_or_else(|| now.clone());
    fs::create_dir_all(dir)?;
    let beside = dir.join(format!(".{}.new", name.replace('/', ".")));
    fs::write(&beside, format!("{name} {old} {boot}\n"))?;
    fs::rename(&beside, &record)?;
    if now != value {
        fs::write(&path, value)?;
    }
    Ok(old)
}

/// Puts back every value recorded in this boot and forgets the records. With `keep_values` they are only
/// forgotten: somebody else needs the settings too.
pub(crate) fn restore(dir: &Path, keep_values: bool) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let boot = boot()?;
    for entry in entries {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        if let Some(record) = parse(&text).filter(|r| r.boot == boot && !keep_values) {
            match fs::write(Path::new("/proc/sys").join(record.name), record.old) {
                // The setting of an interface goes with it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(dir)
}

struct Record<'a> {
    name: &'a str,
    old: &'a str,
    boot: &'a str,
}

fn parse(text: &str) -> Option<Record<'_>> {
    let mut words = text.split_whitespace();
    Some(Record { name: words.next()?, old: words.next()?, boot: words.next()? })
}

/// Differs from boot to boot.
fn boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}
