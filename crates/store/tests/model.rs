//! Random transactions against a plain map: current state, old states, conditions and watches agree.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;
use store::sim::SimDisk;
use store::{CommitError, Condition, InlineStore, Op, Options, Store, Txn, WatchItem};

type State = BTreeMap<String, (u64, u64)>;

fn key(i: u8) -> String {
    format!("/{}/{i:02}", if i.is_multiple_of(3) { "a" } else { "b" })
}

#[derive(Clone, Debug)]
struct Step {
    conditions: Vec<(u8, u8)>,
    ops: BTreeMap<u8, bool>,
    relaxed: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let conditions = prop::collection::vec((0u8..30, 0u8..4), 0..2);
    let ops = prop::collection::btree_map(0u8..30, prop::bool::weighted(0.7), 0..4);
    let step = (conditions, ops, any::<bool>());
    let step = step.prop_map(|(conditions, ops, relaxed)| Step { conditions, ops, relaxed });
    prop::collection::vec(step, 1..150)
}

fn condition(state: &State, key: &str, choice: u8) -> (Condition, bool) {
    let current = state.get(key);
    match choice {
        0 => (Condition::Absent, current.is_none()),
        1 => (Condition::Present, current.is_some()),
        2 => (Condition::ModifiedAt(3), current.is_some_and(|c| c.1 == 3)),
        _ => (Condition::ModifiedAt(current.map_or(1, |c| c.1)), current.is_some()),
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the inline store answers at once")
}

fn shown(store: &InlineStore, prefix: &str, at: u64) -> State {
    let page = now(store.range(prefix, None, None, Some(at))).unwrap();
    page.entries.iter().map(|e| (e.key.to_string(), (e.create_revision, e.mod_revision))).collect()
}

fn wanted(state: &State, prefix: &str) -> State {
    state.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), *v)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn store_agrees_with_the_model(steps in steps(), restart in 0usize..150) {
        let disk = SimDisk::new(3);
        let options = Options { segment_bytes: 2000, snapshot_min_bytes: 3000, ..Options::default() };
        let mut store = InlineStore::open(Arc::new(disk.clone()), options).unwrap();
        let mut states: Vec<State> = vec![State::new()];
        let mut events = Vec::new();
        let mut floor = 0;
        for (i, step) in steps.iter().enumerate() {
            if i == restart {
                store.close();
                store = InlineStore::open(Arc::new(disk.restart()), options).unwrap();
                floor = (0..states.len() as u64).find(|at| store.watch("", *at).is_ok()).unwrap();
            }
            let state = states.last().unwrap().clone();
            let mut txn = Txn { relaxed: step.relaxed, ..Txn::default() };
            let mut holds = true;
            for (i, choice) in &step.conditions {
                let (condition, true_now) = condition(&state, &key(*i), *choice);
                txn.conditions.push((key(*i), condition));
                holds &= true_now;
            }
            let mut next = Vec::new();
            let mut state = state;
            for (i, put) in &step.ops {
                let revision = (states.len() + next.len()) as u64;
                let key = key(*i);
                let before = state.get(&key).copied();
                if *put {
                    txn.ops.push((key.clone(), Op::Put(Bytes::from(revision.to_string()))));
                    state.insert(key.clone(), (before.map_or(revision, |b| b.0), revision));
                } else {
                    txn.ops.push((key.clone(), Op::Delete));
                    state.remove(&key);
                }
                next.push((state.clone(), (revision, key, *put, before)));
            }
            match now(store.commit(txn)) {
                Ok(done) => {
                    prop_assert!(holds);
                    prop_assert_eq!(done.first, states.len() as u64);
                    for (state, event) in next {
                        states.push(state);
                        events.extend(Some(event).filter(|e| e.2 || e.3.is_some()));
                    }
                }
                Err(CommitError::Conflict { .. }) => prop_assert!(!holds),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
        for (at, state) in states.iter().enumerate().skip(floor as usize) {
            for prefix in ["", "/a/", "/b/", "/b/0"] {
                prop_assert_eq!(shown(&store, prefix, at as u64), wanted(state, prefix));
            }
        }
        for prefix in ["", "/a/"] {
            let mut watch = store.watch(prefix, floor).unwrap();
            let mut seen = Vec::new();
            while let Some(item) = watch.next().now_or_never() {
                if let WatchItem::Event(e) = item.unwrap().unwrap() {
                    let previous = e.previous.as_ref().map(|p| (p.create_revision, p.mod_revision));
                    seen.push((e.revision, e.key.to_string(), e.value.is_some(), previous));
                }
            }
            let want = events.iter().filter(|e| e.0 > floor && e.1.starts_with(prefix));
            prop_assert_eq!(seen, want.cloned().collect::<Vec<_>>());
        }
    }

    #[test]
    fn paging_gives_every_key_once(limit in 1usize..12, count in 0u8..120) {
        let store = InlineStore::open(Arc::new(SimDisk::new(4)), Options::default()).unwrap();
        for i in 0..count {
            now(store.commit(Txn { ops: vec![(key(i), Op::Put(Bytes::new()))], ..Txn::default() })).unwrap();
        }
        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = now(store.range("/b/", seen.last().map(String::as_str), Some(limit), Some(u64::from(count)))).unwrap();
            seen.extend(page.entries.iter().map(|e| e.key.to_string()));
            // Later changes must not show.
            now(store.commit(Txn { ops: vec![(key(1), Op::Delete)], ..Txn::default() })).unwrap();
            if !page.more {
                prop_assert_eq!(page.remaining, 0);
                break;
            }
        }
        let mut want: Vec<String> = (0..count).map(key).filter(|k| k.starts_with("/b/")).collect();
        want.sort();
        prop_assert_eq!(seen, want);
    }
}
