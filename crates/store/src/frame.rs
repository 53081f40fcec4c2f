//! Bytes on disk: file headers and checksummed frames.
//!
//! ```text
//! file  = magic (8) | version (4) | crc of these (4) | header frame | frame …
//! frame = length of payload (4) | crc of length and payload (4) | payload          all little-endian
//! ```

use std::io::{self, Read};

use bytes::Bytes;

use crate::types::{Op, Revision, StoreError};

/// Version of everything below; raised when an older release could not read a newer file.
pub(crate) const FORMAT_VERSION: u32 = 1;
pub(crate) const LOG_MAGIC: &[u8; 8] = b"podium-L";
pub(crate) const SNAPSHOT_MAGIC: &[u8; 8] = b"podium-S";
pub(crate) const BACKUP_MAGIC: &[u8; 8] = b"podium-B";
pub(crate) const PREAMBLE: usize = 16;
pub(crate) const FRAME_HEADER: usize = 8;
/// No frame is larger: a transaction has at most 1.5 MB, a piece of a snapshot one entry more than its target.
const MAX_PAYLOAD: usize = 16 << 20;

/// What a log frame records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// First frame of a segment: the revision before it, and up to where revisions are reserved.
    Segment {
        number: u64,
        base: Revision,
        reserved: Revision,
    },
    Txn {
        first: Revision,
        ops: Vec<(String, Op)>,
    },
    /// Revisions up to here may have been used by relaxed transactions that are not in the log.
    Reserve {
        until: Revision,
    },
    /// Nothing that was acknowledged is missing.
    CleanStop,
    /// This segment was synced up to this offset before anything after this record was written: tells damage from
    /// a torn end.
    Synced {
        offset: u64,
    },
}

/// Bytes of a `Synced` record as a frame.
const SYNCED_FRAME: usize = FRAME_HEADER + 9;

pub(crate) fn preamble(magic: &[u8; 8]) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(magic);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Appends a frame to `out`; `write` appends its payload.
pub(crate) fn put_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    write(out);
    let payload = out.len() - start - FRAME_HEADER;
    let length = u32::try_from(payload).expect("payloads are bounded").to_le_bytes();
    let crc = checksum(length, &out[start + FRAME_HEADER..]);
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("values are bounded").to_le_bytes());
    out.extend_from_slice(bytes);
}

impl Record {
    /// Appends the record as a frame.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Record::Segment { number, base, reserved } => put_frame(out, |out| {
                out.push(1);
                for word in [number, base, reserved] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }),
            Record::Txn { first, ops } => put_txn(out, *first, ops),
            Record::Reserve { until } => put_frame(out, |out| {
                out.push(3);
                out.extend_from_slice(&until.to_le_bytes());
            }),
            Record::CleanStop => put_frame(out, |out| out.push(4)),
            Record::Synced { offset } => put_frame(out, |out| {
                out.push(5);
                out.extend_from_slice(&offset.to_le_bytes());
            }),
        }
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Record> {
        let mut rest = Reader(payload);
        let record = match rest.u8()? {
            1 => Record::Segment { number: rest.u64()?, base: rest.u64()?, reserved: rest.u64()? },
            2 => {
                let first = rest.u64()?;
                let count = rest.u32()?;
                let mut ops = Vec::new();
                for _ in 0..count {
                    let put = rest.u8()? == 1;
                    let key = std::str::from_utf8(rest.bytes()?).ok()?.to_owned();
                    let op = if put { Op::Put(Bytes::copy_from_slice(rest.bytes()?)) } else { Op::Delete };
                    ops.push((key, op));
                }
                Record::Txn { first, ops }
            }
            3 => Record::Reserve { until: rest.u64()? },
            4 => Record::CleanStop,
            5 => Record::Synced { offset: rest.u64()? },
            _ => return None,
        };
        rest.0.is_empty().then_some(record)
    }
}

/// Appends a transaction as one frame: it is in the log completely or not at all.
pub(crate) fn put_txn(out: &mut Vec<u8>, first: Revision, ops: &[(String, Op)]) {
    put_frame(out, |out| {
        out.push(2);
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&u32::try_from(ops.len()).expect("operations are bounded").to_le_bytes());
        for (key, op) in ops {
            out.push(u8::from(matches!(op, Op::Put(_))));
            put_bytes(out, key.as_bytes());
            if let Op::Put(value) = op {
                put_bytes(out, value);
            }
        }
    });
}

/// The highest offset that a `Synced` record anywhere in these bytes tells of.
pub(crate) fn highest_sync_mark(bytes: &[u8]) -> u64 {
    let length = 9u32.to_le_bytes();
    let marks =
        bytes.windows(SYNCED_FRAME).filter(|window| window[..4] == length && window[FRAME_HEADER] == 5);
    let marks =
        marks.filter(|window| checksum(length, &window[FRAME_HEADER..]).to_le_bytes() == window[4..8]);
    let offsets = marks.filter_map(|window| match Record::parse(&window[FRAME_HEADER..]) {
        Some(Record::Synced { offset }) => Some(offset),
        _ => None,
    });
    offsets.max().unwrap_or(0)
}

/// Reads little-endian fields; `None` at the end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }
}

/// One step of reading a file.
pub(crate) enum Next {
    Frame(Vec<u8>),
    End,
    /// What follows is no whole frame.
    Bad(String),
}

/// Reads a file frame by frame.
pub(crate) struct FrameReader {
    name: String,
    input: Box<dyn Read + Send>,
    /// End of the last whole frame.
    offset: u64,
    /// Bytes taken from `input`.
    consumed: u64,
}

impl FrameReader {
    pub(crate) fn new(name: &str, input: Box<dyn Read + Send>) -> Self {
        Self { name: name.to_owned(), input, offset: 0, consumed: 0 }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { file: self.name.clone(), offset: self.offset, what: what.into() }
    }

    /// Reads the preamble. `Ok(Some(what))` when it is not whole.
    pub(crate) fn preamble(&mut self, magic: &[u8; 8]) -> Result<Option<String>, StoreError> {
        let mut bytes = [0; PREAMBLE];
        if self.fill(&mut bytes)? < PREAMBLE {
            return Ok(Some("the file ends within its header".into()));
        }
        let crc = u32::from_le_bytes(bytes[12..].try_into().expect("four bytes"));
        if &bytes[..8] != magic || crc32fast::hash(&bytes[..12]) != crc {
            return Ok(Some("this is no file header".into()));
        }
        let found = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if found > FORMAT_VERSION {
            return Err(StoreError::NewerFormat {
                file: self.name.clone(),
                found,
                supported: FORMAT_VERSION,
            });
        }
        self.offset = PREAMBLE as u64;
        Ok(None)
    }

    pub(crate) fn next(&mut self) -> Result<Next, StoreError> {
        let mut header = [0; FRAME_HEADER];
        match self.fill(&mut header)? {
            0 => return Ok(Next::End),
            FRAME_HEADER => {}
            _ => return Ok(Next::Bad("the file ends within a frame header".into())),
        }
        let length_bytes: [u8; 4] = header[..4].try_into().expect("four bytes");
        let crc = u32::from_le_bytes(header[4..].try_into().expect("four bytes"));
        let length = u32::from_le_bytes(length_bytes) as usize;
        if length == 0 || length > MAX_PAYLOAD {
            return Ok(Next::Bad(format!("a frame of {length} bytes is impossible")));
        }
        let mut payload = vec![0; length];
        if self.fill(&mut payload)? < length {
            return Ok(Next::Bad("the file ends within a frame".into()));
        }
        if checksum(length_bytes, &payload) != crc {
            return Ok(Next::Bad("checksum mismatch".into()));
        }
        self.offset += (FRAME_HEADER + length) as u64;
        Ok(Next::Frame(payload))
    }

    /// Reads until `buffer` is full or the file ends; gives the number of bytes read.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    self.consumed += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(StoreError::Io { what: format!("read {}", self.name), source }),
            }
        }
        Ok(filled)
    }
}

impl FrameReader {
    /// Whether the file has more than `length` bytes. Reads on; use it last.
    pub(crate) fn longer_than(&mut self, length: u64) -> Result<bool, StoreError> {
        let mut rest = [0; 4096];
        while self.consumed <= length {
            if self.fill(&mut rest)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Record {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Record::Segment { .. } => "a segment header",
            Record::Txn { .. } => "a transaction with this revision",
            Record::Reserve { .. } => "a reservation",
            Record::CleanStop => "a stop mark",
            Record::Synced { .. } => "a sync mark",
        }
    }
}
