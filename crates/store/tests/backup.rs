//! Backups of a running store, and what a restored one does.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use store::backup::{REVISION_JUMP, State};
use store::{EmbeddedStore, HistoryBudget, Op, Options, Store, StoreError, Txn};

/// Files small enough that segments and snapshots come and go under the reader.
const BUSY: Options = Options {
    history: HistoryBudget { events: 50, bytes: 1 << 20, age: std::time::Duration::from_secs(300) },
    segment_bytes: 4000,
    snapshot_min_bytes: 20_000,
    relaxed_delay: std::time::Duration::from_secs(2),
};

fn wait<T>(future: impl Future<Output = T>) -> T {
    let pool = tokio::runtime::Builder::new_current_thread().build().unwrap();
    pool.block_on(future)
}

fn put(key: &str, value: &str) -> (String, Op) {
    (key.to_owned(), Op::Put(Bytes::copy_from_slice(value.as_bytes())))
}

fn commit(store: &EmbeddedStore, ops: Vec<(String, Op)>) -> u64 {
    wait(store.commit(Txn { ops, ..Txn::default() })).unwrap().first
}

fn get(store: &EmbeddedStore, key: &str) -> Option<String> {
    let entry = wait(store.get(key)).unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

fn encoded(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.write(&mut bytes).unwrap();
    bytes
}

fn load(bytes: &[u8]) -> Result<State, StoreError> {
    State::load("backup", Box::new(std::io::Cursor::new(bytes.to_vec())))
}

#[test]
fn a_backup_under_load_is_one_moment_and_holds_everything_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), BUSY).unwrap();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writer = {
        let (store, acknowledged) = (Arc::clone(&store), Arc::clone(&acknowledged));
        std::thread::spawn(move || {
            for number in 1..=600_u64 {
                let value = format!("{number} {}", "x".repeat(100));
                let key = number % 7;
                commit(
                    &store,
                    vec![put(&format!("/left/{key}"), &value), put(&format!("/right/{key}"), &value)],
                );
                acknowledged.store(number, Ordering::SeqCst);
            }
        })
    };
    let mut backups = 0;
    while !writer.is_finished() || backups == 0 {
        let before = acknowledged.load(Ordering::SeqCst);
        let state = State::read(dir.path()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        load(&encoded(&state)).unwrap().install(copy.path()).unwrap();
        let restored = EmbeddedStore::open(copy.path(), BUSY).unwrap();
        let number = |side: &str, key: u64| -> u64 {
            get(&restored, &format!("/{side}/{key}"))
                .map_or(0, |v| v.split(' ').next().unwrap().parse().unwrap())
        };
        let newest = (0..7).map(|key| number("left", key)).max().unwrap();
        assert!(newest >= before, "{before} was acknowledged, the backup ends at {newest}");
        for key in 0..7 {
            assert_eq!(number("left", key), number("right", key), "half a transaction");
            let expected = (newest.saturating_sub(6)..=newest).find(|n| n % 7 == key).unwrap_or(0);
            assert_eq!(number("left", key), expected, "not one moment");
        }
        backups += 1;
    }
    writer.join().unwrap();
    assert_eq!(State::read(dir.path()).unwrap().keys(), 14);
}

#[test]
fn a_restored_store_goes_on_beyond_every_revision_given_away_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), Options::default()).unwrap();
    commit(&store, vec![put("/a", "1")]);
    let mut state = State::read(dir.path()).unwrap();
    state.files.insert("ca.key".into(), b"secret".to_vec());
    let later = commit(&store, vec![put("/a", "2")]);

    let copy = tempfile::tempdir().unwrap();
    let loaded = load(&encoded(&state)).unwrap();
    assert_eq!((loaded.revision(), loaded.keys()), (1, 1));
    assert_eq!(loaded.files["ca.key"], b"secret");
    loaded.install(copy.path()).unwrap();
    let restored = EmbeddedStore::open(copy.path(), Options::default()).unwrap();
    assert_eq!(get(&restored, "/a").as_deref(), Some("1"));
    for known in [1, later] {
        assert!(matches!(restored.watch("/", known), Err(StoreError::Compacted { .. })), "revision {known}");
    }
    let current = restored.current_revision().now_or_never().unwrap().unwrap();
    assert_eq!(current, 1 + REVISION_JUMP);
    assert!(restored.watch("/", current).is_ok());
    assert_eq!(commit(&restored, vec![put("/a", "3")]), current + 1);
    restored.close();
    let again = EmbeddedStore::open(copy.path(), Options::default()).unwrap();
    assert_eq!(get(&again, "/a").as_deref(), Some("3"));
}

#[test]
fn a_damaged_a_cut_and_a_newer_backup_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), Options::default()).unwrap();
    commit(&store, vec![put("/a", "1"), put("/b", "2")]);
    let mut state = State::read(dir.path()).unwrap();
    state.files.insert("ca.key".into(), b"secret".to_vec());
    let good = encoded(&state);
    for position in 0..good.len() {
        let mut bad = good.clone();
        bad[position] ^= 1;
        assert!(matches!(load(&bad), Err(StoreError::Corrupt { .. })), "byte {position}");
        assert!(matches!(load(&good[..position]), Err(StoreError::Corrupt { .. })), "cut at {position}");
    }
    let longer = [good.as_slice(), b"x"].concat();
    assert!(matches!(load(&longer), Err(StoreError::Corrupt { .. })));
    let mut newer = good;
    newer[8] = 9;
    let crc = crc32fast::hash(&newer[..12]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(load(&newer), Err(StoreError::NewerFormat { found: 9, .. })));
}

#[test]
fn nothing_is_restored_over_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), Options::default()).unwrap();
    commit(&store, vec![put("/a", "1")]);
    store.close();
    let state = State::read(dir.path()).unwrap();
    assert!(matches!(state.install(dir.path()), Err(StoreError::Io { .. })));
    assert_eq!(
        get(&EmbeddedStore::open(dir.path(), Options::default()).unwrap(), "/a").as_deref(),
        Some("1")
    );
}
