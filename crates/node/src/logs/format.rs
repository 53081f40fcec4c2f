//! Lines of CRI log files: `2026-01-02T03:04:05.678901234Z stdout F text`.

use jiff::Timestamp;

/// One entry of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339, as written.
    pub time: &'a [u8],
    /// `stdout` or `stderr`.
    pub stream: &'a [u8],
    /// The text goes on in the next entry of this stream.
    pub partial: bool,
    pub text: &'a [u8],
}

impl Entry<'_> {
    /// When it was written.
    pub fn timestamp(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

/// Reads one line, without its line end.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let partial = tag.split(|b| *b == b':').next() == Some(b"P");
    Some(Entry { time, stream, partial, text: parts.next().unwrap_or_default() })
}

/// What a reader wants of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    /// Bytes that may still be sent.
    pub limit: Option<u64>,
}

/// Appends an entry in the form that a user sees. False once the limit is reached.
pub fn render(entry: &Entry<'_>, wanted: &mut Wanted, out: &mut Vec<u8>) -> bool {
    if let (Some(since), Some(at)) = (wanted.since, entry.timestamp())
        && at < since
    {
        return true;
    }
    let start = out.len();
    if wanted.timestamps {
        out.extend_from_slice(entry.time);
        out.push(b' ');
    }
    out.extend_from_slice(entry.text);
    if !entry.partial {
        out.push(b'\n');
    }
    let Some(limit) = &mut wanted.limit else { return true };
    let added = (out.len() - start) as u64;
    if added >= *limit {
        out.truncate(start + usize::try_from(*limit).unwrap_or(usize::MAX));
        *limit = 0;
        return false;
    }
    *limit -= added;
    true
}
