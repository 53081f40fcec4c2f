//! What happened, as one number; and what must never happen, whenever it does.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest;
use serde_json::Value;
use store::Event;

use crate::clock::SimClock;

pub(crate) struct Observer {
    clock: SimClock,
    state: Mutex<State>,
}

struct State {
    hash: digest::Context,
    lines: u64,
    events: u64,
    /// Every line, for a person who compares two runs.
    file: Option<std::io::BufWriter<std::fs::File>>,
    revision: u64,
    /// Node of every pod, by uid.
    bound: BTreeMap<String, String>,
    broken: Vec<String>,
}

impl Observer {
    pub(crate) fn new(clock: SimClock, file: Option<std::fs::File>) -> Arc<Self> {
        let state = State {
            hash: digest::Context::new(&digest::SHA256),
            lines: 0,
            events: 0,
            file: file.map(std::io::BufWriter::new),
            revision: 0,
            bound: BTreeMap::new(),
            broken: Vec::new(),
        };
        Arc::new(Self { clock, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to the trace.
    pub(crate) fn note(&self, line: &str) {
        self.state().note(line);
    }

    /// A store has started at a revision: no earlier one may come again.
    ///
    /// # Errors
    /// When it has gone back.
    pub(crate) fn begin_life(&self, revision: u64) -> Result<(), String> {
        let mut state = self.state();
        state.note(&format!("{:?} up at {revision}", self.clock.elapsed()));
        if revision < state.revision {
            let text = format!("the store went back from revision {} to {revision}", state.revision);
            state.broken.push(text.clone());
            return Err(text);
        }
        state.revision = revision;
        Ok(())
    }

    /// A change in the store.
    pub(crate) fn event(&self, event: &Event) {
        let value = event.value.as_deref().unwrap_or_default();
        let sum = digest::digest(&digest::SHA256, value);
        let sum: String = sum.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let mut state = self.state();
        state.note(&format!("{:?} {} {} {sum}", self.clock.elapsed(), event.revision, event.key));
        state.events += 1;
        if event.revision <= state.revision {
            let text = format!("revision {} after {}", event.revision, state.revision);
            state.broken.push(text);
        }
        state.revision = event.revision;
        state.rules(event);
    }

    /// Hash of the trace, number of changes, broken rules.
    pub(crate) fn finish(&self) -> (String, u64, Vec<String>) {
        let mut state = self.state();
        if let Some(file) = &mut state.file
            && let Err(error) = file.flush()
        {
            tracing::error!(%error, "cannot write the trace");
        }
        let sum = state.hash.clone().finish();
        let text = sum.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        (text, state.events, state.broken.clone())
    }
}

impl State {
    fn note(&mut self, line: &str) {
        self.lines += 1;
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        if let Some(file) = &mut self.file
            && let Err(error) = writeln!(file, "{line}")
        {
            tracing::error!(%error, "cannot write the trace");
            self.file = None;
        }
    }

    /// One name is one object until it is deleted; a pod that has a node keeps it.
    fn rules(&mut self, event: &Event) {
        if !event.key.starts_with("/registry/") {
            return;
        }
        let read = |bytes: Option<&[u8]>| bytes.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
        let new = read(event.value.as_deref());
        let old = read(event.previous.as_ref().map(|entry| entry.value.as_ref()));
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if let (Some(new), Some(old)) = (&new, &old)
            && uid(new) != uid(old)
        {
            self.broken.push(format!("{} became another object without a deletion", event.key));
        }
        let Some(new) = new.filter(|_| event.key.starts_with("/registry/core/pods/")) else { return };
        let node = new["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let before = self.bound.insert(uid(&new), node.clone()).unwrap_or_default();
        if !before.is_empty() && before != node {
            self.broken.push(format!("{} went from node {before} to {node:?}", event.key));
        }
    }
}
