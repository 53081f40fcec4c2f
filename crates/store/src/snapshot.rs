//! Snapshots: the index at one revision as a file, so that older log segments can go.
//!
//! `snapshot-N` holds the state before the first record of segment N. It is written beside the running store
//! under another name, synced, renamed, and only then are the older files removed.

use std::io;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::disk::Disk;
use crate::frame::{self, FrameReader, Next, Reader};
use crate::log::file_number;
use crate::map::Map;
use crate::types::{Entry, Revision, StoreError};

/// Bytes of entries gathered in one frame.
const CHUNK: usize = 256 << 10;
const HEADER: u8 = 1;
const ENTRIES: u8 = 2;
const END: u8 = 3;

pub(crate) fn snapshot_name(number: u64) -> String {
    format!("snapshot-{number:020}")
}

/// Name of a snapshot that is being written.
pub(crate) fn temporary_name(number: u64) -> String {
    format!("snapshot-{number:020}.tmp")
}

/// Everything needed to write a snapshot on another thread.
pub(crate) struct Job {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) number: u64,
    pub(crate) revision: Revision,
    pub(crate) index: Map,
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl Job {
    /// Writes the snapshot; afterwards it is durable under its own name.
    pub(crate) fn run(&self) -> io::Result<()> {
        let temporary = temporary_name(self.number);
        let result = self.write(&temporary);
        if let Err(error) = result {
            if let Err(cleanup) = self.disk.remove(&temporary) {
                tracing::debug!(%cleanup, "the unfinished snapshot stays until the next start");
            }
            return Err(error);
        }
        self.disk.rename(&temporary, &snapshot_name(self.number))?;
        self.disk.sync_dir()
    }

    fn write(&self, temporary: &str) -> io::Result<()> {
        let mut file = self.disk.create(temporary)?;
        let mut buffer = frame::preamble(frame::SNAPSHOT_MAGIC).to_vec();
        frame::put_frame(&mut buffer, |out| {
            out.push(HEADER);
            out.extend_from_slice(&self.number.to_le_bytes());
            out.extend_from_slice(&self.revision.to_le_bytes());
        });
        let mut entries = self.index.iter().peekable();
        while entries.peek().is_some() {
            frame::put_frame(&mut buffer, |out| {
                out.push(ENTRIES);
                put_chunk(out, &mut entries);
            });
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the store is closing"));
            }
            file.append(&buffer)?;
            buffer.clear();
        }
        frame::put_frame(&mut buffer, |out| {
            out.push(END);
            out.extend_from_slice(&(self.index.len() as u64).to_le_bytes());
        });
        file.append(&buffer)?;
        file.sync()
    }
}

/// Appends entries until a frame is large enough.
pub(crate) fn put_chunk<'a>(out: &mut Vec<u8>, entries: &mut Peekable<impl Iterator<Item = &'a Entry>>) {
    while let Some(entry) = entries.next_if(|_| out.len() < CHUNK) {
        put_entry(out, entry);
    }
}

/// Reads what [`put_chunk`] wrote, to the end.
pub(crate) fn take_chunk(rest: &mut Reader<'_>, index: &mut Map) -> Option<()> {
    while !rest.0.is_empty() {
        let (create_revision, mod_revision) = (rest.u64()?, rest.u64()?);
        let key = std::str::from_utf8(rest.bytes()?).ok()?.into();
        let value = Bytes::copy_from_slice(rest.bytes()?);
        index.insert(Entry { key, value, create_revision, mod_revision });
    }
    Some(())
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&entry.create_revision.to_le_bytes());
    out.extend_from_slice(&entry.mod_revision.to_le_bytes());
    frame::put_bytes(out, entry.key.as_bytes());
    frame::put_bytes(out, &entry.value);
}

/// Reads a snapshot.
///
/// # Errors
/// Any damage: a snapshot was synced before it got its name.
pub(crate) fn load(disk: &dyn Disk, number: u64) -> Result<(Map, Revision), StoreError> {
    let name = snapshot_name(number);
    let input = disk.open(&name).map_err(|source| StoreError::Io { what: format!("open {name}"), source })?;
    let mut reader = FrameReader::new(&name, input);
    if let Some(what) = reader.preamble(frame::SNAPSHOT_MAGIC)? {
        return Err(reader.damaged(what));
    }
    let mut index = Map::default();
    let mut revision = None;
    loop {
        let payload = match reader.next()? {
            Next::Frame(payload) => payload,
            Next::End => return Err(reader.damaged("the end is missing")),
            Next::Bad(what) => return Err(reader.damaged(what)),
        };
        revision = match (parse(&payload, &mut index), revision) {
            (Some(Piece::Header { number: found, revision }), None) if found == number => Some(revision),
            (Some(Piece::Entries), Some(revision)) => Some(revision),
            (Some(Piece::End { count }), Some(revision)) if count == index.len() as u64 => {
                return Ok((index, revision));
            }
            _ => return Err(reader.damaged("this frame does not belong here")),
        };
    }
}

enum Piece {
    Header { number: u64, revision: Revision },
    Entries,
    End { count: u64 },
}

fn parse(payload: &[u8], index: &mut Map) -> Option<Piece> {
    let mut rest = Reader(payload);
    match rest.u8()? {
        HEADER => Some(Piece::Header { number: rest.u64()?, revision: rest.u64()? }),
        END => Some(Piece::End { count: rest.u64()? }),
        ENTRIES => take_chunk(&mut rest, index).map(|()| Piece::Entries),
        _ => None,
    }
}

/// Removes what a snapshot made needless: older segments, older snapshots, unfinished snapshots.
pub(crate) fn remove_older(disk: &dyn Disk, number: u64) -> io::Result<()> {
    let mut removed = false;
    for name in disk.list()? {
        let older = |kind| file_number(&name, kind).is_some_and(|n| n < number);
        let unfinished = name.starts_with("snapshot-") && name.ends_with(".tmp");
        if older("log") || older("snapshot") || unfinished {
            disk.remove(&name)?;
            removed = true;
        }
    }
    if removed { disk.sync_dir() } else { Ok(()) }
}
