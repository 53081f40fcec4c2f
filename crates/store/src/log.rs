//! The log: numbered segments that are appended to. A new segment begins only when the one before is synced,
//! so that only the last one can have a torn end.

use std::io;
use std::sync::Arc;

use crate::disk::{Disk, File};
use crate::frame::{self, Record};
use crate::types::Revision;

pub(crate) fn segment_name(number: u64) -> String {
    format!("log-{number:020}")
}

/// The number in a file name, if it has the form `{kind}-{number}`.
pub(crate) fn file_number(name: &str, kind: &str) -> Option<u64> {
    name.strip_prefix(kind)?.strip_prefix('-').filter(|digits| digits.len() == 20)?.parse().ok()
}

/// The log's writing end.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    file: Box<dyn File>,
    number: u64,
    segment_bytes: u64,
    /// Bytes in this segment.
    written: u64,
    /// How many of them are durable, and how many of these the segment itself tells of.
    synced: u64,
    marked: u64,
    /// Bytes in all segments that a start would replay.
    replay_bytes: u64,
    dirty: bool,
}

impl Log {
    /// Starts segment `number`; everything before it must be durable.
    pub(crate) fn start(
        disk: Arc<dyn Disk>,
        number: u64,
        segment_bytes: u64,
        (base, reserved): (Revision, Revision),
    ) -> io::Result<Self> {
        let (file, written) = new_segment(&*disk, number, base, reserved)?;
        let (synced, marked, replay_bytes) = (written, written, written);
        Ok(Self { disk, file, number, segment_bytes, written, synced, marked, replay_bytes, dirty: false })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(crate) fn is_full(&self) -> bool {
        self.written >= self.segment_bytes
    }

    pub(crate) fn replay_bytes(&self) -> u64 {
        self.replay_bytes
    }

    /// Counts bytes of older segments that a start would replay.
    pub(crate) fn add_replay_bytes(&mut self, bytes: u64) {
        self.replay_bytes += bytes;
    }

    /// Tells that a snapshot covers everything but the newest `bytes`.
    pub(crate) fn forget_replay_bytes(&mut self, bytes: u64) {
        self.replay_bytes = self.replay_bytes.saturating_sub(bytes);
    }

    pub(crate) fn append(&mut self, frames: &[u8], sync: bool) -> io::Result<()> {
        self.dirty = true;
        if self.marked < self.synced {
            let mut mark = Vec::new();
            Record::Synced { offset: self.synced }.put(&mut mark);
            self.marked = self.synced;
            self.write(&mark)?;
        }
        self.write(frames)?;
        if sync { self.sync() } else { Ok(()) }
    }

    fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        self.file.append(frames)?;
        self.written += frames.len() as u64;
        self.replay_bytes += frames.len() as u64;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.synced = self.written;
        self.dirty = false;
        Ok(())
    }

    /// Ends this segment and starts the next.
    pub(crate) fn rotate(&mut self, base: Revision, reserved: Revision) -> io::Result<()> {
        if self.dirty {
            self.sync()?;
        }
        let (file, written) = new_segment(&*self.disk, self.number + 1, base, reserved)?;
        self.file = file;
        self.number += 1;
        (self.written, self.synced, self.marked) = (written, written, written);
        self.replay_bytes += written;
        Ok(())
    }
}

/// The header is synced before any record is written: a segment with a record in it has a whole header.
fn new_segment(
    disk: &dyn Disk,
    number: u64,
    base: Revision,
    reserved: Revision,
) -> io::Result<(Box<dyn File>, u64)> {
    let mut header = frame::preamble(frame::LOG_MAGIC).to_vec();
    Record::Segment { number, base, reserved }.put(&mut header);
    let mut file = disk.create(&segment_name(number))?;
    file.append(&header)?;
    file.sync()?;
    disk.sync_dir()?;
    Ok((file, header.len() as u64))
}

/// Length of the part of a segment that `new_segment` writes.
pub(crate) const SEGMENT_HEADER: u64 = (frame::PREAMBLE + frame::FRAME_HEADER + 25) as u64;
