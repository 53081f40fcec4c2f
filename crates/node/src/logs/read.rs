//! Reading logs: from the end, and following what is added. A log is a chain of files: the runtime renames a grown
//! `0.log` to `0.log.1`, that one to `0.log.2`, and begins a new one.
//!
//! ```text
//!   exited? ─▶ read to the end, newer files too ─▶ send ─▶ had exited before reading: done
//!      ▲                                                │
//!      └── a file changed, or event ◀───────────────────┘
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use api::stream::ByteStream;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::format::{Wanted, parse, render};
use crate::notify::FileChanges;
use crate::ports::RuntimeEvent;

const CHUNK: usize = 64 * 1024;
/// Files of one log that are looked for: more than any runtime keeps.
const MOST_FILES: usize = 16;

/// First bytes of a file as text; "" when it cannot be read.
pub fn read_start(path: &Path, max_bytes: u64) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(max_bytes).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

/// Last lines of a log, without times; "" when it cannot be read.
pub fn last_lines(path: &Path, lines: u64, max_bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let (start, _) = tail_offset(&mut file, lines)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let mut out = Vec::new();
    let bytes = read().unwrap_or_default();
    for entry in bytes.split(|b| *b == b'\n').filter_map(parse) {
        render(&entry, &mut Wanted::default(), &mut out);
    }
    let keep = out.len().saturating_sub(usize::try_from(max_bytes).unwrap_or(usize::MAX));
    String::from_utf8_lossy(&out[keep..]).into_owned()
}

/// The files of a log, the oldest first. A file that is renamed meanwhile is there once.
///
/// # Errors
/// The newest cannot be opened.
fn chain(path: &Path) -> std::io::Result<VecDeque<File>> {
    let mut files = VecDeque::from([File::open(path)?]);
    let mut seen = vec![identity(&files[0])?];
    for number in 1..MOST_FILES {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        let Ok(file) = File::open(PathBuf::from(name)) else { break };
        let own = identity(&file)?;
        if !seen.contains(&own) {
            seen.push(own);
            files.push_front(file);
        }
    }
    Ok(files)
}

fn identity(file: &File) -> std::io::Result<(u64, u64)> {
    let facts = file.metadata()?;
    Ok((facts.dev(), facts.ino()))
}

/// Drops the files before the last `lines` entries and goes to where these begin.
fn skip_to_tail(files: &mut VecDeque<File>, lines: u64) -> std::io::Result<()> {
    let mut missing = lines;
    for index in (0..files.len()).rev() {
        let (start, found) = tail_offset(&mut files[index], missing)?;
        files[index].seek(SeekFrom::Start(start))?;
        missing -= found.min(missing);
        if missing == 0 {
            files.drain(..index);
            return Ok(());
        }
    }
    Ok(())
}

/// Where the last `lines` entries begin, found from the end in chunks, and how many there are from there on.
///
/// # Errors
/// The file system's.
pub fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<(u64, u64)> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok((end, 0));
    }
    let (mut at, mut found) = (end, 0u64);
    let mut chunk = vec![0u8; CHUNK];
    while at > 0 {
        let size = usize::try_from(at).unwrap_or(CHUNK).min(CHUNK);
        at -= size as u64;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut chunk[..size])?;
        for index in (0..size).rev() {
            let place = at + index as u64;
            // The line end of the last line begins nothing.
            if chunk[index] == b'\n' && place + 1 != end {
                found += 1;
                if found == lines {
                    return Ok((place + 1, found));
                }
            }
        }
    }
    Ok((0, found + u64::from(end > 0)))
}

/// Tells whether the container has exited.
pub type Exited = Box<dyn Fn() -> BoxFuture<'static, bool> + Send>;

/// Following a log: runtime events and the check for the end.
pub struct Follow {
    pub events: mpsc::UnboundedReceiver<RuntimeEvent>,
    pub exited: Exited,
}

/// Streams a log, rotated files too.
///
/// # Errors
/// The newest file cannot be opened.
pub fn stream(
    path: &Path,
    tail: Option<u64>,
    wanted: Wanted,
    follow: Option<Follow>,
) -> std::io::Result<ByteStream> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let watch = follow.as_ref().map(|_| FileChanges::below(folder)).transpose()?;
    let mut files = chain(path)?;
    if let Some(lines) = tail {
        skip_to_tail(&mut files, lines)?;
    }
    let (sender, receiver) = mpsc::channel(8);
    let path = path.to_owned();
    client::spawn(async move {
        let mut reader = Reader { path, files, rest: Vec::new(), wanted, sender: sender.clone() };
        let result = match (follow, watch) {
            (Some(follow), Some(watch)) => reader.follow(follow, watch).await,
            _ => reader.drain().await.map(drop),
        };
        if let Err(error) = result {
            // A reader that has gone needs no error.
            drop(sender.send(Err(error)).await);
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    });
    Ok(Box::pin(stream))
}

struct Reader {
    path: PathBuf,
    /// Still to be read, the oldest first; the last one may still grow. Never empty.
    files: VecDeque<File>,
    /// Beginning of a line whose end is not written yet.
    rest: Vec<u8>,
    wanted: Wanted,
    sender: mpsc::Sender<std::io::Result<Bytes>>,
}

impl Reader {
    /// Sends what is there; false when the reader has gone or has enough.
    async fn drain(&mut self) -> std::io::Result<bool> {
        if self.wanted.limit == Some(0) {
            return Ok(false);
        }
        let mut chunk = vec![0u8; CHUNK];
        loop {
            let count = self.files[0].read(&mut chunk)?;
            if count == 0 && self.files.len() > 1 {
                self.files.pop_front();
                continue;
            }
            if count == 0 {
                return Ok(!self.sender.is_closed());
            }
            self.rest.extend_from_slice(&chunk[..count]);
            let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { continue };
            let lines: Vec<u8> = self.rest.drain(..=end).collect();
            let mut out = Vec::new();
            let mut entries = lines.split(|b| *b == b'\n').filter_map(parse);
            let more = entries.all(|entry| render(&entry, &mut self.wanted, &mut out));
            if !out.is_empty() && self.sender.send(Ok(out.into())).await.is_err() {
                return Ok(false);
            }
            if !more {
                return Ok(false);
            }
        }
    }

    /// Finds the files that were begun since the last look; true if there are any.
    fn look_for_newer(&mut self) -> std::io::Result<bool> {
        let newest = identity(&self.files[self.files.len() - 1])?;
        let mut all = match chain(&self.path) {
            // In the middle of a rotation: the new file's coming will be told.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        // Files that were there before, and everything older: where ours is gone too, all are newer.
        let mut known = 0;
        for (index, file) in all.iter().enumerate() {
            if identity(file)? == newest {
                known = index + 1;
            }
        }
        all.drain(..known);
        self.files.extend(all.drain(..));
        Ok(self.files.len() > 1)
    }

    async fn follow(&mut self, mut follow: Follow, watch: FileChanges) -> std::io::Result<()> {
        let mut over = (follow.exited)().await;
        loop {
            if !self.drain().await? {
                return Ok(());
            }
            // What was written to a file before it was renamed has been read when its successor is.
            if self.look_for_newer()? {
                continue;
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                changed = watch.next() => drop(changed?),
                event = follow.events.recv() => {
                    over = event.is_none() || (follow.exited)().await;
                }
                () = self.sender.closed() => return Ok(()),
            }
        }
    }
}
