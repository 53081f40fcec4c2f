//! What a start finds: newest snapshot, then the log segments after it, replayed.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use crate::core;
use crate::disk::Disk;
use crate::frame::{self, FrameReader, Next, Record};
use crate::history::{History, HistoryBudget};
use crate::log::{SEGMENT_HEADER, file_number, segment_name};
use crate::map::Map;
use crate::snapshot;
use crate::types::{Op, Revision, StoreError};

/// The state that files hold.
pub(crate) struct Recovered {
    pub(crate) index: Map,
    pub(crate) revision: Revision,
    pub(crate) history: History,
    /// Number for the segment to start now.
    pub(crate) next_segment: u64,
    /// Bytes of the segments that were replayed.
    pub(crate) replayed_bytes: u64,
}

struct Replay {
    index: Map,
    revision: Revision,
    reserved: Revision,
    clean: bool,
    history: History,
}

/// Reads the directory, cuts off a torn end of the last segment and removes leftovers.
///
/// # Errors
/// Damage anywhere but at the end of the last segment, a newer format, I/O.
pub(crate) fn recover(disk: &dyn Disk, budget: HistoryBudget) -> Result<Recovered, StoreError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| StoreError::Io { what, source }
    };
    let names = disk.list().map_err(io("list the data directory"))?;
    let newest_snapshot = names.iter().filter_map(|name| file_number(name, "snapshot")).max();
    let (index, revision) = match newest_snapshot {
        Some(number) => snapshot::load(disk, number)?,
        None => (Map::default(), 0),
    };
    let first = newest_snapshot.unwrap_or(1);
    snapshot::remove_older(disk, first).map_err(io("remove old files"))?;
    let mut segments: Vec<u64> = names.iter().filter_map(|name| file_number(name, "log")).collect();
    segments.retain(|number| *number >= first);
    segments.sort_unstable();
    if segments.is_empty() && newest_snapshot.is_some() {
        return Err(missing(first));
    }
    for (expected, found) in (first..).zip(&segments) {
        if expected != *found {
            return Err(missing(expected));
        }
    }
    let history = History::new(budget, revision);
    let mut replay = Replay { index, revision, reserved: revision, clean: true, history };
    let mut next_segment = first;
    let mut replayed_bytes = 0;
    for (i, number) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        let length = replay.segment(disk, *number, last)?;
        replayed_bytes += length;
        // A segment without a whole header holds nothing; its number is used again.
        next_segment = if length == 0 { *number } else { number + 1 };
        if last && length > 0 {
            // Also makes durable what an ended process wrote but did not sync.
            disk.truncate(&segment_name(*number), length).map_err(io("cut off a torn log end"))?;
        }
    }
    if !replay.clean && replay.reserved > replay.revision {
        replay.revision = replay.reserved;
        replay.history.reset(replay.revision);
    }
    let Replay { index, revision, history, .. } = replay;
    Ok(Recovered { index, revision, history, next_segment, replayed_bytes })
}

/// The highest sync mark in the part of a file from `offset` on.
fn sync_mark_after(disk: &dyn Disk, name: &str, offset: u64) -> Result<u64, StoreError> {
    let io = |source| StoreError::Io { what: format!("read {name}"), source };
    let mut input = disk.open(name).map_err(io)?;
    std::io::copy(&mut (&mut input).take(offset), &mut std::io::sink()).map_err(io)?;
    let mut rest = Vec::new();
    input.read_to_end(&mut rest).map_err(io)?;
    Ok(frame::highest_sync_mark(&rest))
}

fn missing(number: u64) -> StoreError {
    StoreError::Corrupt { file: segment_name(number), offset: 0, what: "the file is missing".into() }
}

impl Replay {
    /// Replays a segment; gives the length of its sound part, 0 when not even its header is whole.
    fn segment(&mut self, disk: &dyn Disk, number: u64, last: bool) -> Result<u64, StoreError> {
        let name = segment_name(number);
        let input =
            disk.open(&name).map_err(|source| StoreError::Io { what: format!("open {name}"), source })?;
        let mut reader = FrameReader::new(&name, input);
        let mut torn = reader.preamble(frame::LOG_MAGIC)?;
        while torn.is_none() {
            let offset = reader.offset();
            match reader.next()? {
                Next::End => break,
                Next::Bad(what) => torn = Some(what),
                Next::Frame(payload) => {
                    let record = Record::parse(&payload).ok_or_else(|| reader.damaged("unknown record"))?;
                    let header = offset == frame::PREAMBLE as u64;
                    self.record(record, header.then_some(number)).map_err(|what| reader.damaged(what))?;
                }
            }
        }
        let sound = reader.offset();
        match torn {
            Some(what) if !last => return Err(reader.damaged(what)),
            // The header was synced before the first record was written, so this is no torn write.
            Some(what) if sound < SEGMENT_HEADER && reader.longer_than(SEGMENT_HEADER)? => {
                return Err(reader.damaged(what));
            }
            // What comes after the bad place says that this place was synced before.
            Some(what) if sync_mark_after(disk, &name, sound)? > sound => return Err(reader.damaged(what)),
            Some(what) => tracing::warn!(file = name, offset = sound, what, "cutting off a torn log end"),
            None if sound < SEGMENT_HEADER && !last => return Err(reader.damaged("the header is missing")),
            None => {}
        }
        Ok(if sound < SEGMENT_HEADER { 0 } else { sound })
    }

    fn record(&mut self, record: Record, header_of: Option<u64>) -> Result<(), String> {
        self.clean = match record {
            Record::CleanStop => true,
            // A segment that begins within a block may have lost all its relaxed transactions.
            Record::Segment { base, reserved, .. } => self.clean && reserved <= base,
            Record::Txn { .. } | Record::Reserve { .. } => false,
            Record::Synced { .. } => self.clean,
        };
        match (record, header_of) {
            (Record::Segment { number, base, reserved }, Some(expected)) if number == expected => {
                if base < self.revision {
                    return Err(format!("it begins at revision {base}, after revision {}", self.revision));
                }
                if base > self.revision {
                    self.revision = base;
                    self.history.reset(base);
                }
                self.reserved = self.reserved.max(reserved);
                Ok(())
            }
            (Record::Txn { first, ops }, None) if first == self.revision + 1 => {
                self.apply(ops);
                Ok(())
            }
            (Record::Reserve { until }, None) => {
                self.reserved = self.reserved.max(until);
                Ok(())
            }
            (Record::Synced { .. }, None) => Ok(()),
            (Record::CleanStop, None) => {
                self.reserved = self.revision;
                Ok(())
            }
            (record, _) => Err(format!("{} does not belong here", record.name())),
        }
    }

    fn apply(&mut self, ops: Vec<(String, Op)>) {
        let mut events = Vec::new();
        for (key, op) in ops {
            self.revision += 1;
            events.extend(core::apply(&mut self.index, self.revision, key, op).map(Arc::new));
        }
        self.history.push(events, Duration::ZERO);
    }
}
