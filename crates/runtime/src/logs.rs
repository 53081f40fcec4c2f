//! Container logs in the CRI format: `TIME STREAM F|P LINE`, where P marks a line that goes on in the next entry.
//!
//! A log that has grown to its limit is renamed to `NAME.1`, the one before to `NAME.2`, and so on; the oldest goes. The
//! shim does this between two entries, so nothing is lost and no entry is cut.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longer lines are cut into entries of this size.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Where a piece of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts output into entries; keeps unfinished lines.
#[derive(Default)]
pub(crate) struct Framer {
    partial: [Vec<u8>; 2],
}

impl Framer {
    /// Appends the entries that `bytes` completes to `entries`.
    pub(crate) fn push(&mut self, output: Output, bytes: &[u8], time: &str, entries: &mut Vec<u8>) {
        let partial = &mut self.partial[output as usize];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut line, ended) = match piece.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (piece, false),
            };
            while partial.len() + line.len() > MAX_LINE_BYTES {
                let (head, tail) = line.split_at(MAX_LINE_BYTES - partial.len());
                partial.extend_from_slice(head);
                entry(output, partial, 'P', time, entries);
                partial.clear();
                line = tail;
            }
            partial.extend_from_slice(line);
            if ended {
                entry(output, partial, 'F', time, entries);
                partial.clear();
            }
        }
    }

    /// Writes unfinished lines; they stay marked as such, so that a reader adds no line end.
    pub(crate) fn finish(&mut self, time: &str, entries: &mut Vec<u8>) {
        for output in [Output::Stdout, Output::Stderr] {
            let partial = std::mem::take(&mut self.partial[output as usize]);
            if !partial.is_empty() {
                entry(output, &partial, 'P', time, entries);
            }
        }
    }
}

fn entry(output: Output, line: &[u8], tag: char, time: &str, entries: &mut Vec<u8>) {
    entries.extend_from_slice(format!("{time} {} {tag} ", output.name()).as_bytes());
    entries.extend_from_slice(line);
    entries.push(b'\n');
}

/// When a log is begun anew, and how many files there are of it then, the current one included. A kubelet's defaults.
const MAX_BYTES: u64 = 10 << 20;
const MAX_FILES: u32 = 5;

/// The log file of one container.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    framer: Framer,
}

impl LogFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_BYTES)
    }

    fn with_limit(path: &Path, max_bytes: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, max_bytes, framer: Framer::default() })
    }

    pub(crate) fn write(&mut self, output: Output, bytes: &[u8]) -> io::Result<()> {
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        self.framer.push(output, bytes, &now(), &mut entries);
        self.append(&entries)
    }

    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let mut entries = Vec::new();
        self.framer.finish(&now(), &mut entries);
        self.append(&entries)
    }

    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.size >= self.max_bytes && !entries.is_empty() {
            // Also after a failure: it must not be tried again for every line.
            self.size = 0;
            self.rotate()?;
        }
        self.file.write_all(entries)?;
        self.size += entries.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..MAX_FILES - 1).rev() {
            match std::fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        std::fs::rename(&self.path, numbered(&self.path, 1))?;
        self.file = append(&self.path)?;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// `0.log.1`
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Nanoseconds since 1970.
pub(crate) fn now_nanos() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

fn now() -> String {
    rfc3339(now_nanos())
}

/// UTC with nine digits of fraction.
fn rfc3339(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// Year, month, day of a day counted from 1970-01-01, Gregorian. Counted in eras of 400 years that begin on 1 March,
/// so that a leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_440_840_500_000_000, "2026-11-23T13:34:00.500000000Z"),
        ];
        for (nanos, text) in cases {
            assert_eq!(rfc3339(nanos), text);
        }
    }

    #[test]
    fn lines_are_split_per_stream() {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        framer.push(Output::Stdout, b"a\nb", "T", &mut out);
        framer.push(Output::Stderr, b"err\n\n", "T", &mut out);
        framer.push(Output::Stdout, b"c\n", "T", &mut out);
        framer.push(Output::Stdout, b"tail", "T", &mut out);
        framer.finish("T", &mut out);
        let want = "T stdout F a\nT stderr F err\nT stderr F \nT stdout F bc\nT stdout P tail\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn a_grown_log_is_begun_anew_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        for number in 0..8 {
            // Opened anew each time: a log goes on where it was.
            let mut log = LogFile::with_limit(&path, 60).unwrap();
            log.write(Output::Stdout, format!("{number} {}\n", "x".repeat(40)).as_bytes()).unwrap();
        }
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| line.split(' ').nth(3).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(read(&path), ["7"]);
        for (file, want) in [(1, "6"), (2, "5"), (3, "4"), (4, "3")] {
            assert_eq!(read(&numbered(&path, file)), [want]);
        }
        assert!(!numbered(&path, 5).exists());
    }

    #[test]
    fn long_lines_are_cut_at_16_kib() {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        let mut long = vec![b'x'; MAX_LINE_BYTES * 2 + 5];
        long.push(b'\n');
        for chunk in long.chunks(1000) {
            framer.push(Output::Stdout, chunk, "T", &mut out);
        }
        let lines: Vec<usize> = out.split(|b| *b == b'\n').map(<[u8]>::len).collect();
        let head = "T stdout P ".len();
        assert_eq!(lines, [head + MAX_LINE_BYTES, head + MAX_LINE_BYTES, head + 5, 0]);
        assert!(out.starts_with(b"T stdout P x"));
    }
}
