//! Power failures, torn writes and failing syncs on the simulated disk.
//!
//! The workload writes pairs of keys in one transaction (atomicity shows as equal values), mixes durable and
//! relaxed transactions, and remembers what was acknowledged. After a crash at every single disk operation
//! the survivors must be a leading part of the history that holds everything acknowledged as durable.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use store::sim::SimDisk;
use store::{CommitError, InlineStore, Op, Options, Store, StoreError, Txn};

const OPTIONS: Options = Options {
    history: store::HistoryBudget { events: 50, bytes: 1 << 20, age: std::time::Duration::from_secs(300) },
    segment_bytes: 1500,
    snapshot_min_bytes: 4000,
    relaxed_delay: std::time::Duration::from_secs(2),
};

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the inline store answers at once")
}

/// What the client knows, over all lives of the store.
#[derive(Default)]
struct Client {
    step: u64,
    /// Value last acknowledged as durable, and all values tried since, per pair.
    durable: BTreeMap<u64, (Option<u64>, Vec<u64>)>,
    highest_revision: u64,
    random: u64,
}

impl Client {
    fn below(&mut self, bound: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }

    fn transaction(&mut self) -> (u64, u64, Txn) {
        self.step += 1;
        let (pair, value) = (self.below(12), self.step);
        let relaxed = self.below(3) == 0;
        let fill = usize::try_from(self.below(60)).unwrap();
        let text = Bytes::from(format!("{value} {}", "x".repeat(fill)));
        let op = |side: &str| (format!("/{side}/{pair}"), Op::Put(text.clone()));
        (pair, value, Txn { ops: vec![op("left"), op("right")], relaxed, ..Txn::default() })
    }

    /// Commits groups until the disk fails or `groups` are done. False when it failed.
    fn work(&mut self, store: &InlineStore, groups: u64) -> bool {
        for _ in 0..groups {
            let size = 1 + self.below(3);
            let group: Vec<_> = (0..size).map(|_| self.transaction()).collect();
            for (pair, value, _) in &group {
                self.durable.entry(*pair).or_default().1.push(*value);
            }
            let outcomes = store.commit_group(group.iter().map(|(_, _, txn)| txn.clone()).collect());
            for ((pair, value, txn), outcome) in group.iter().zip(outcomes) {
                match outcome {
                    Ok(done) => {
                        assert!(done.first > self.highest_revision, "revision {} used twice", done.first);
                        self.highest_revision = done.first + 1;
                        if !txn.relaxed {
                            let known = self.durable.get_mut(pair).unwrap();
                            known.1.retain(|tried| tried > value);
                            known.0 = Some(*value);
                        }
                    }
                    Err(CommitError::Unknown(_) | CommitError::Closed) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            if store.has_stopped() {
                return false;
            }
        }
        true
    }

    fn check(&mut self, store: &InlineStore) {
        let revision = now(store.current_revision()).unwrap();
        assert!(
            revision >= self.highest_revision,
            "revision went back from {} to {revision}",
            self.highest_revision
        );
        self.highest_revision = revision;
        let mut found = BTreeMap::new();
        for entry in now(store.range("/", None, None, None)).unwrap().entries {
            let value: u64 =
                std::str::from_utf8(&entry.value).unwrap().split(' ').next().unwrap().parse().unwrap();
            found.insert(entry.key.to_string(), value);
        }
        for (pair, (acknowledged, tried)) in &mut self.durable {
            let left = found.get(&format!("/left/{pair}")).copied();
            assert_eq!(left, found.get(&format!("/right/{pair}")).copied(), "half a transaction");
            let allowed = left == *acknowledged || left.is_some_and(|value| tried.contains(&value));
            assert!(allowed, "pair {pair}: {left:?} instead of {acknowledged:?} or one of {tried:?}");
            // What a start has found is durable from then on.
            *acknowledged = left;
            tried.clear();
        }
    }
}

fn open(disk: &SimDisk) -> Result<Arc<InlineStore>, StoreError> {
    InlineStore::open(Arc::new(disk.clone()), OPTIONS)
}

#[test]
fn a_crash_at_any_disk_operation_loses_nothing_durable() {
    for seed in 0..6 {
        crash_everywhere(seed);
    }
}

fn crash_everywhere(seed: u64) {
    let mut crashes = 0;
    for operation in 0.. {
        let mut disk = SimDisk::new(operation + seed * 1000);
        let mut client = Client { random: seed, ..Client::default() };
        disk.power_off_at(operation);
        let finished = open(&disk).is_ok_and(|store| client.work(&store, 120));
        if finished && !disk.is_off() {
            break;
        }
        crashes += 1;
        // A second crash during recovery, then more work, then a clean start.
        disk = disk.crash();
        let during_recovery = disk.operations() + operation % 7;
        disk.power_off_at(during_recovery);
        if let Ok(store) = open(&disk) {
            client.check(&store);
            client.work(&store, 10);
        }
        disk = disk.crash();
        let store = open(&disk).unwrap_or_else(|e| panic!("crash at {operation}: {e}"));
        client.check(&store);
        assert!(client.work(&store, 10));
        store.close();
        let highest = client.highest_revision;
        let store = open(&disk.restart()).unwrap();
        client.check(&store);
        assert_eq!(now(store.current_revision()).unwrap(), highest, "a clean stop skips nothing");
    }
    assert!(crashes > 200, "only {crashes} crash points");
}

#[test]
fn old_resumption_points_end_when_relaxed_revisions_may_be_lost() {
    let disk = SimDisk::new(5);
    let store = open(&disk).unwrap();
    let put =
        |relaxed| Txn { ops: vec![("/a".into(), Op::Put(Bytes::from("x")))], relaxed, ..Txn::default() };
    for _ in 0..5 {
        now(store.commit(put(false))).unwrap();
    }
    let disk = disk.crash();
    let store = open(&disk).unwrap();
    assert_eq!(now(store.current_revision()).unwrap(), 5, "nothing relaxed, nothing skipped");
    assert!(store.watch("/a", 3).is_ok());
    for _ in 0..5 {
        now(store.commit(put(true))).unwrap();
    }
    let store = open(&disk.crash()).unwrap();
    let revision = now(store.current_revision()).unwrap();
    assert!(revision > 10);
    for old in [3, 5, 8, 10] {
        assert!(matches!(store.watch("/a", old), Err(StoreError::Compacted { .. })), "{old}");
        assert!(matches!(now(store.range("/a", None, None, Some(old))), Err(StoreError::Compacted { .. })));
    }
    assert!(store.watch("/a", revision).is_ok());
    assert_eq!(now(store.commit(put(false))).unwrap().first, revision + 1);
}

#[test]
fn a_failed_sync_stops_the_store_and_acknowledges_nothing() {
    let mut survived = 0;
    for operation in 0..100 {
        let disk = SimDisk::new(operation);
        let store = open(&disk).unwrap();
        disk.fail_sync_at(disk.operations() + operation);
        let mut client = Client { random: operation, ..Client::default() };
        if client.work(&store, 100) {
            // It hit a snapshot, which is given up: the log has everything.
            survived += 1;
            client.check(&store);
            continue;
        }
        let put = Txn { ops: vec![("/a".into(), Op::Put(Bytes::new()))], ..Txn::default() };
        assert_eq!(now(store.commit(put)), Err(CommitError::Closed));
        assert!(matches!(now(store.get("/a")), Err(StoreError::Closed)));
        let store = open(&disk.crash()).unwrap();
        client.check(&store);
    }
    assert!(survived < 10, "{survived} failed syncs went unnoticed");
}

#[test]
fn disk_use_stays_near_twice_the_live_data() {
    let disk = SimDisk::new(8);
    let options = Options { segment_bytes: 100_000, snapshot_min_bytes: 50_000, ..OPTIONS };
    let store = InlineStore::open(Arc::new(disk.clone()), options).unwrap();
    let live = 200 * 1000;
    for i in 0..5000u64 {
        let value = Bytes::from(vec![0; 1000]);
        now(store.commit(Txn { ops: vec![(format!("/{:03}", i % 200), Op::Put(value))], ..Txn::default() }))
            .unwrap();
        assert!(disk.size() < live * 5 / 2 + 50_000, "{} bytes after {i} commits", disk.size());
    }
    store.close();
    let store = InlineStore::open(Arc::new(disk.restart()), options).unwrap();
    assert_eq!(now(store.range("/", None, None, None)).unwrap().entries.len(), 200);
}

#[test]
fn damage_is_an_error_unless_it_can_be_a_torn_end() {
    let build = || {
        let disk = SimDisk::new(9);
        let options = Options { snapshot_min_bytes: 1 << 30, ..OPTIONS };
        let store = InlineStore::open(Arc::new(disk.clone()), options).unwrap();
        let mut client = Client { random: 5, ..Client::default() };
        assert!(client.work(&store, 60));
        (disk.restart(), options)
    };
    let reopen = |disk: &SimDisk, options| InlineStore::open(Arc::new(disk.clone()), options);
    let segment = |number: u64| format!("log-{number:020}");

    let (disk, options) = build();
    disk.tamper(&segment(2), |bytes| bytes[200] ^= 1);
    let error = reopen(&disk, options).err().unwrap();
    assert!(matches!(&error, StoreError::Corrupt { file, .. } if *file == segment(2)), "{error}");

    let (disk, options) = build();
    store::disk::Disk::remove(&disk, &segment(2)).unwrap();
    let error = reopen(&disk, options).err().unwrap();
    assert!(error.to_string().contains("the file is missing"), "{error}");

    let (disk, options) = build();
    let names = store::disk::Disk::list(&disk).unwrap();
    let last = names.iter().max().unwrap();
    disk.tamper(last, |bytes| bytes.extend_from_slice(b"torn"));
    assert!(reopen(&disk, options).is_ok());

    // Records that were synced before later ones were written cannot be torn.
    for bad in [60, 100, 200] {
        let (disk, options) = build();
        disk.tamper(last, |bytes| bytes[bad] ^= 1);
        let error = reopen(&disk, options).err().unwrap();
        assert!(matches!(&error, StoreError::Corrupt { file, .. } if file == last), "byte {bad}: {error}");
    }

    let (disk, options) = build();
    disk.tamper(last, |bytes| bytes[3] ^= 1);
    assert!(matches!(reopen(&disk, options), Err(StoreError::Corrupt { .. })), "records follow a bad header");

    let (disk, options) = build();
    disk.tamper(&segment(1), |bytes| {
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let error = reopen(&disk, options).err().unwrap();
    assert!(matches!(error, StoreError::NewerFormat { found: 9, .. }), "{error}");
}
