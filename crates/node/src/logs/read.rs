//! Reading log files: from the end, and following what is added.
//!
//! ```text
//!   exited? ─▶ read to the end ─▶ send ─▶ had exited before reading: done
//!      ▲                                │
//!      └── file changed, or event ◀─────┘
//! ```

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use api::stream::ByteStream;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::format::{Wanted, parse, render};
use super::notify::FileChanges;
use crate::ports::RuntimeEvent;

const CHUNK: usize = 64 * 1024;

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
        let start = tail_offset(&mut file, lines)?;
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

/// Where the last `lines` entries begin, found from the end in chunks.
///
/// # Errors
/// The file system's.
pub fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
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
                    return Ok(place + 1);
                }
            }
        }
    }
    Ok(0)
}

/// Tells whether the container has exited.
pub type Exited = Box<dyn Fn() -> BoxFuture<'static, bool> + Send>;

/// Following a log: runtime events and the check for the end.
pub struct Follow {
    pub events: mpsc::UnboundedReceiver<RuntimeEvent>,
    pub exited: Exited,
}

/// Streams a log file.
///
/// # Errors
/// The file cannot be opened.
pub fn stream(
    path: &Path,
    tail: Option<u64>,
    wanted: Wanted,
    follow: Option<Follow>,
) -> std::io::Result<ByteStream> {
    let watch = follow.as_ref().map(|_| FileChanges::of(path)).transpose()?;
    let mut file = File::open(path)?;
    let start = tail.map_or(Ok(0), |lines| tail_offset(&mut file, lines))?;
    file.seek(SeekFrom::Start(start))?;
    let (sender, receiver) = mpsc::channel(8);
    client::spawn(async move {
        let mut reader = Reader { file, rest: Vec::new(), wanted, sender: sender.clone() };
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
    file: File,
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
            let count = self.file.read(&mut chunk)?;
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

    async fn follow(&mut self, mut follow: Follow, watch: FileChanges) -> std::io::Result<()> {
        let mut over = (follow.exited)().await;
        loop {
            if !self.drain().await? || over {
                return Ok(());
            }
            tokio::select! {
                changed = watch.next() => changed?,
                event = follow.events.recv() => {
                    over = event.is_none() || (follow.exited)().await;
                }
                () = self.sender.closed() => return Ok(()),
            }
        }
    }
}
