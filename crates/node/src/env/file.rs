//! Env files (Kubernetes, "Define Environment Variable Values Using An Init Container"): declarations `NAME='value'`, taken
//! literally, over several lines if need be; blank lines and those that begin with `#` don't count.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Longest file, in bytes.
const MOST: u64 = 64 * 1024;

/// Why a value can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnvFileError {
    #[error("no such file")]
    Missing,
    #[error("{0}")]
    Io(String),
    #[error("larger than {MOST} bytes")]
    Large,
    #[error("line {0}: must be NAME='value'")]
    Line(usize),
    #[error("the quote of line {0} is not closed")]
    Open(usize),
}

/// The variables of a file below a volume. No link leads out of it.
pub(super) fn read(volume: &Path, path: &str) -> Result<BTreeMap<String, String>, EnvFileError> {
    let failed = |e: rustix::io::Errno| match e {
        rustix::io::Errno::NOENT => EnvFileError::Missing,
        other => EnvFileError::Io(other.to_string()),
    };
    let root = openat(CWD, volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // A pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(&root, path, flags, Mode::empty(), inside).map_err(failed)?;
    let mut text = String::new();
    let read = std::fs::File::from(file).take(MOST + 1).read_to_string(&mut text);
    read.map_err(|e| EnvFileError::Io(e.to_string()))?;
    if text.len() as u64 > MOST { Err(EnvFileError::Large) } else { parse(&text) }
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, EnvFileError> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let declaration = first.trim();
        if declaration.is_empty() || declaration.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let (name, value) = rest.split_once('=').ok_or(EnvFileError::Line(line))?;
        let name = name.trim();
        let value = value.trim_start_matches([' ', '\t']).strip_prefix('\'');
        let value = value.filter(|_| is_name(name)).ok_or(EnvFileError::Line(line))?;
        let (value, after) = value.split_once('\'').ok_or(EnvFileError::Open(line))?;
        let last = line + value.matches('\n').count();
        let (behind, after) = after.split_once('\n').unwrap_or((after, ""));
        if !behind.trim().is_empty() {
            return Err(EnvFileError::Line(last));
        }
        found.insert(name.to_owned(), value.to_owned());
        (rest, line) = (after, last + 1);
    }
    Ok(found)
}

/// Printable ASCII without `=` and blanks.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations() {
        let text =
            "# a comment = 'no'\n\nA='1'\n  B = 'two # 2' \nMULTI='line1\n$line2\\n'\nEMPTY=''\nA='last'";
        let found = parse(text).unwrap();
        let want = [("A", "last"), ("B", "two # 2"), ("EMPTY", ""), ("MULTI", "line1\n$line2\\n")];
        assert_eq!(found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), want);
        let table = [
            ("A", EnvFileError::Line(1)),
            ("\nA=1", EnvFileError::Line(2)),
            ("A=\"1\"", EnvFileError::Line(1)),
            ("A='1''2'", EnvFileError::Line(1)),
            ("A='1\n2'$B", EnvFileError::Line(2)),
            ("A='1' # no", EnvFileError::Line(1)),
            ("A b='1'", EnvFileError::Line(1)),
            ("='1'", EnvFileError::Line(1)),
            ("A='1'\nB='2", EnvFileError::Open(2)),
        ];
        for (text, want) in table {
            assert_eq!(parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn files_stay_inside_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(dir.path().join("outside"), "A='1'").unwrap();
        std::fs::write(volume.join("in"), "A='1'").unwrap();
        std::fs::write(volume.join("big"), "#".repeat(70_000)).unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("in", volume.join("link")).unwrap();
        assert_eq!(read(&volume, "in").unwrap()["A"], "1");
        assert_eq!(read(&volume, "link").unwrap()["A"], "1");
        assert_eq!(read(&volume, "none"), Err(EnvFileError::Missing));
        assert_eq!(read(&volume, "big"), Err(EnvFileError::Large));
        for outside in ["out", "../outside", "/etc/hostname"] {
            assert!(matches!(read(&volume, outside), Err(EnvFileError::Io(_))), "{outside}");
        }
    }
}
