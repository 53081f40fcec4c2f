//! Backups: the whole state at one revision in one file, with the files that must not be lost beside it.
//!
//! ```text
//! backup = preamble | HEADER revision | FILE name, bytes … | ENTRIES … | END counts       (frames as in the log)
//! ```
//!
//! [`State::read`] takes the state from the files of a store that may be running: it replays snapshot and log as
//! a start does, but changes nothing and needs no lock. What it finds is a leading part of the history that
//! holds every transaction acknowledged as durable before the call.
//!
//! [`State::install`] makes a new store of a backup. It continues [`REVISION_JUMP`] later, so that no revision that
//! the backed-up store gave away afterwards is used again: whoever resumes from one is told to list again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use crate::disk::{Disk, File, RealDisk};
use crate::engine::HistoryBudget;
use crate::frame::{self, FrameReader, Next, Reader};
use crate::log::Log;
use crate::map::Map;
use crate::recovery;
use crate::snapshot::{self, Job};
use crate::types::{Revision, StoreError};

/// Revisions skipped by a restored store: a thousand a second for thirty years.
pub const REVISION_JUMP: u64 = 1_000_000_000_000;
/// How often a running store may replace its files while they are read.
const ATTEMPTS: usize = 20;

const HEADER: u8 = 1;
const ENTRIES: u8 = 2;
const FILE: u8 = 3;
const END: u8 = 4;

/// Everything that a backup holds.
pub struct State {
    index: Map,
    revision: Revision,
    /// Small files that go with the data, by name: for whoever makes the backup.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl State {
    /// Reads the state of the store in a directory, running or not.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat`, `Io`.
    pub fn read(dir: &Path) -> Result<Self, StoreError> {
        let budget = HistoryBudget { events: 0, bytes: 0, age: std::time::Duration::ZERO };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let disk = Reading { dir: dir.to_owned(), lengths: Mutex::default() };
            match recovery::recover(&disk, budget) {
                // A snapshot was finished meanwhile, and what it covers removed.
                Err(StoreError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
                Ok(found) => {
                    return Ok(Self { index: found.index, revision: found.revision, files: BTreeMap::new() });
                }
            }
        }
    }

    /// Revision of the newest transaction.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Number of keys.
    pub fn keys(&self) -> usize {
        self.index.len()
    }

    /// Writes the backup.
    ///
    /// # Errors
    /// When `out` can't be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut buffer = frame::preamble(frame::BACKUP_MAGIC).to_vec();
        frame::put_frame(&mut buffer, |out| {
            out.push(HEADER);
            out.extend_from_slice(&self.revision.to_le_bytes());
        });
        for (name, bytes) in &self.files {
            frame::put_frame(&mut buffer, |out| {
                out.push(FILE);
                frame::put_bytes(out, name.as_bytes());
                frame::put_bytes(out, bytes);
            });
        }
        let mut entries = self.index.iter().peekable();
        while entries.peek().is_some() {
            frame::put_frame(&mut buffer, |out| {
                out.push(ENTRIES);
                snapshot::put_chunk(out, &mut entries);
            });
            out.write_all(&buffer)?;
            buffer.clear();
        }
        frame::put_frame(&mut buffer, |out| {
            out.push(END);
            out.extend_from_slice(&(self.files.len() as u64).to_le_bytes());
            out.extend_from_slice(&(self.index.len() as u64).to_le_bytes());
        });
        out.write_all(&buffer)
    }

    /// Reads a whole backup; `name` is for messages.
    ///
    /// # Errors
    /// `Corrupt` when any byte is missing, changed or too much; `NewerFormat`, `Io`.
    pub fn load(name: &str, input: Box<dyn Read + Send>) -> Result<Self, StoreError> {
        let mut reader = FrameReader::new(name, input);
        if let Some(what) = reader.preamble(frame::BACKUP_MAGIC)? {
            return Err(reader.damaged(what));
        }
        let mut state = None;
        loop {
            let payload = match reader.next()? {
                Next::Frame(payload) => payload,
                Next::End => return Err(reader.damaged("the end is missing")),
                Next::Bad(what) => return Err(reader.damaged(what)),
            };
            match state.as_mut() {
                None => state = header(&payload),
                Some(state) => match state.piece(&payload) {
                    Some(Piece::More) => continue,
                    Some(Piece::End) => {}
                    None => return Err(reader.damaged("this frame does not belong here")),
                },
            }
            match (&state, payload.first()) {
                (None, _) => return Err(reader.damaged("the header is missing")),
                (Some(_), Some(&END)) => break,
                (Some(_), _) => {}
            }
        }
        match (reader.next()?, state) {
            (Next::End, Some(state)) => Ok(state),
            _ => Err(reader.damaged("something follows the end")),
        }
    }

    fn piece(&mut self, payload: &[u8]) -> Option<Piece> {
        let mut rest = Reader(payload);
        match rest.u8()? {
            FILE => {
                let name = std::str::from_utf8(rest.bytes()?).ok()?.to_owned();
                let bytes = rest.bytes()?.to_vec();
                self.files.insert(name, bytes).is_none().then_some(Piece::More)
            }
            ENTRIES => snapshot::take_chunk(&mut rest, &mut self.index).map(|()| Piece::More),
            END => {
                let (files, keys) = (rest.u64()?, rest.u64()?);
                let whole = files == self.files.len() as u64 && keys == self.index.len() as u64;
                (whole && rest.0.is_empty()).then_some(Piece::End)
            }
            _ => None,
        }
    }

    /// Makes a store of this state in a directory that is empty or not there.
    ///
    /// # Errors
    /// `Io`, also when the directory holds something.
    pub fn install(self, dir: &Path) -> Result<(), StoreError> {
        let io = |source| StoreError::Io { what: format!("make a store in {}", dir.display()), source };
        let disk = Arc::new(RealDisk::open(dir).map_err(io)?);
        if !disk.list().map_err(io)?.is_empty() {
            return Err(io(io::ErrorKind::DirectoryNotEmpty.into()));
        }
        let revision = self.revision + REVISION_JUMP;
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Job { disk: Arc::clone(&disk) as _, number: 1, revision, index: self.index, cancelled };
        // The log goes first: a snapshot without its log would be damage.
        Log::start(disk, job.number, u64::MAX, (revision, revision)).map_err(io)?;
        job.run().map_err(io)
    }
}

enum Piece {
    More,
    End,
}

fn header(payload: &[u8]) -> Option<State> {
    let mut rest = Reader(payload);
    let header = rest.u8()? == HEADER;
    let revision = rest.u64()?;
    (header && rest.0.is_empty()).then(|| State { index: Map::default(), revision, files: BTreeMap::new() })
}

/// The directory of a store that may be running: nothing is changed, and files end where they ended when they
/// were listed.
struct Reading {
    dir: PathBuf,
    lengths: Mutex<BTreeMap<String, u64>>,
}

impl Disk for Reading {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        // Measured after all names are known: a segment that has a successor no longer grows.
        let mut lengths = BTreeMap::new();
        for name in &names {
            match fs::metadata(self.dir.join(name)) {
                Ok(metadata) => lengths.insert(name.clone(), metadata.len()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        *self.lengths.lock().unwrap_or_else(PoisonError::into_inner) = lengths;
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let length = self.lengths.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        let file = fs::File::open(self.dir.join(name))?;
        Ok(Box::new(io::BufReader::with_capacity(1 << 18, file).take(length.unwrap_or(0))))
    }

    fn create(&self, _: &str) -> io::Result<Box<dyn File>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// What recovery tidies up belongs to the running store.
    fn truncate(&self, _: &str, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}
