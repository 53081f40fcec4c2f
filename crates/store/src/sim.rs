//! A disk in memory that loses what was not synced, for tests and the simulator.
//!
//! Model: bytes appended since the last sync of a file survive a crash sector by sector, at random, up to a
//! random length; sectors that did not survive read as zeros or noise. Creations, renames and removals since
//! the last `sync_dir` survive as a random leading part of their order. A failed sync leaves the bytes unsynced.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::disk::{Disk, File};

const SECTOR: usize = 512;

/// A simulated disk; clones are handles to the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// Handles made before a crash no longer work.
    life: u64,
}

struct State {
    life: u64,
    random: u64,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<NameChange>,
    files: Vec<Content>,
    /// Operations (append, sync, create, rename, remove, truncate, sync_dir) done so far.
    operations: u64,
    power_off_at: Option<u64>,
    fail_sync_at: Option<u64>,
    off: bool,
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl SimDisk {
    /// An empty disk; the seed decides what crashes destroy.
    pub fn new(seed: u64) -> Self {
        let state = State {
            life: 0,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            files: Vec::new(),
            operations: 0,
            power_off_at: None,
            fail_sync_at: None,
            off: false,
        };
        Self { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of operations done so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power fails at the operation with this number (counted from 0 over the life of the disk): an append
    /// may leave any part of its bytes, and nothing works until [`SimDisk::crash`].
    pub fn power_off_at(&self, operation: u64) {
        self.state().power_off_at = Some(operation);
    }

    /// The first sync at or after this operation fails, once.
    pub fn fail_sync_at(&self, operation: u64) {
        self.state().fail_sync_at = Some(operation);
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Cuts the power and turns it on again: gives the disk as the next start finds it. Older handles are dead.
    #[must_use]
    pub fn crash(&self) -> SimDisk {
        let mut state = self.state();
        state.crash();
        SimDisk { state: Arc::clone(&self.state), life: state.life }
    }

    /// Ends the process but not the machine: nothing is lost. Older handles are dead.
    #[must_use]
    pub fn restart(&self) -> SimDisk {
        let mut state = self.state();
        state.life += 1;
        SimDisk { state: Arc::clone(&self.state), life: state.life }
    }

    /// Total bytes of all files.
    pub fn size(&self) -> usize {
        let state = self.state();
        state.names.values().map(|id| state.files[*id].bytes.len()).sum()
    }

    /// Bytes that a crash could lose.
    pub fn unsynced_bytes(&self) -> usize {
        let state = self.state();
        state.names.values().map(|id| state.files[*id].bytes.len() - state.files[*id].synced).sum()
    }

    /// Changes a file's bytes in place, as a failing disk would.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(id) = state.names.get(name).copied() {
            let content = &mut state.files[id];
            change(&mut content.bytes);
            content.synced = content.synced.min(content.bytes.len());
        }
    }

    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.alive(self.life)?;
        let operation = state.operations;
        state.operations += 1;
        if state.power_off_at.is_some_and(|at| operation >= at) {
            state.off = true;
        }
        Ok(state)
    }
}

fn dead() -> io::Error {
    io::Error::other("simulated power failure")
}

impl State {
    fn alive(&self, life: u64) -> io::Result<()> {
        if self.off || life != self.life { Err(dead()) } else { Ok(()) }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from((self.random >> 11) % (bound as u64).max(1)).expect("smaller than a usize bound")
    }

    fn id(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn rename(names: &mut BTreeMap<String, usize>, change: &NameChange) {
        match change {
            NameChange::Create(name, id) => {
                names.insert(name.clone(), *id);
            }
            NameChange::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }

    fn change_names(&mut self, change: NameChange) {
        Self::rename(&mut self.names, &change);
        self.pending.push(change);
    }

    fn crash(&mut self) {
        let survive = self.below(self.pending.len() + 1);
        let pending = std::mem::take(&mut self.pending);
        for change in &pending[..survive] {
            Self::rename(&mut self.durable_names, change);
        }
        self.names = self.durable_names.clone();
        for id in 0..self.files.len() {
            let synced = self.files[id].synced;
            let unsynced = self.files[id].bytes.len() - synced;
            let keep = synced + self.below(unsynced + 1);
            self.files[id].bytes.truncate(keep);
            let mut start = synced;
            while start < keep {
                let end = keep.min((start / SECTOR + 1) * SECTOR);
                if self.below(4) == 0 {
                    let noise = u8::try_from(self.below(2) * 0xA5).expect("one byte");
                    self.files[id].bytes[start..end].fill(noise);
                }
                start = end;
            }
            self.files[id].synced = keep;
        }
        self.life += 1;
        self.off = false;
        self.power_off_at = None;
        self.fail_sync_at = None;
    }

    fn off_now(&self) -> io::Result<()> {
        if self.off { Err(dead()) } else { Ok(()) }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive(self.life)?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.operate()?;
        state.off_now()?;
        let id = state.files.len();
        state.files.push(Content::default());
        state.change_names(NameChange::Create(name.to_owned(), id));
        Ok(Box::new(SimFile { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let state = self.state();
        state.alive(self.life)?;
        let bytes = Bytes::copy_from_slice(&state.files[state.id(name)?].bytes);
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let mut state = self.operate()?;
        let id = state.id(name)?;
        state.off_now()?;
        let content = &mut state.files[id];
        content.bytes.truncate(usize::try_from(length).map_err(io::Error::other)?);
        content.synced = content.bytes.len();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        state.id(from)?;
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned()));
        state.off_now()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        state.id(name)?;
        state.change_names(NameChange::Remove(name.to_owned()));
        state.off_now()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.operate()?;
        state.off_now()?;
        state.durable_names = state.names.clone();
        state.pending.clear();
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    id: usize,
}

impl File for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        state.files[self.id].bytes.extend_from_slice(bytes);
        state.off_now()
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        state.off_now()?;
        let operation = state.operations - 1;
        if state.fail_sync_at.is_some_and(|at| operation >= at) {
            state.fail_sync_at = None;
            return Err(io::Error::other("simulated sync failure"));
        }
        let content = &mut state.files[self.id];
        content.synced = content.bytes.len();
        Ok(())
    }
}
