//! What every back end promises, run on the embedded store (real directory, simulated disk) and inline.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use store::sim::SimDisk;
use store::{
    CommitError, Condition, EmbeddedStore, InlineStore, Op, Options, Store, StoreError, Txn, WatchError,
    WatchItem, WatchStream,
};

/// A store and what must live as long.
struct Fixture {
    store: Arc<dyn Store>,
    _dir: Option<tempfile::TempDir>,
}

fn fixtures(options: Options) -> Vec<Fixture> {
    let dir = tempfile::tempdir().unwrap();
    let real = EmbeddedStore::open(dir.path(), options).unwrap();
    let simulated = EmbeddedStore::open_on(Arc::new(SimDisk::new(1)), options).unwrap();
    let inline = InlineStore::open(Arc::new(SimDisk::new(2)), options).unwrap();
    vec![
        Fixture { store: real, _dir: Some(dir) },
        Fixture { store: simulated, _dir: None },
        Fixture { store: inline, _dir: None },
    ]
}

fn all() -> Vec<Fixture> {
    fixtures(Options::default())
}

fn put(key: &str, value: &str) -> (String, Op) {
    (key.to_owned(), Op::Put(Bytes::copy_from_slice(value.as_bytes())))
}

fn delete(key: &str) -> (String, Op) {
    (key.to_owned(), Op::Delete)
}

fn txn(ops: Vec<(String, Op)>) -> Txn {
    Txn { ops, ..Txn::default() }
}

async fn commit(store: &dyn Store, ops: Vec<(String, Op)>) -> u64 {
    store.commit(txn(ops)).await.unwrap().first
}

/// Items of a watch up to a revision: events as `revision key value`, and the last progress.
async fn until(watch: &mut WatchStream, revision: u64) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let (at, text) = match watch.next().await.unwrap().unwrap() {
            WatchItem::Progress(at) => (at, format!("{at} progress")),
            WatchItem::Event(e) => {
                let value = e.value.as_ref().map_or("-".into(), |v| String::from_utf8_lossy(v).into_owned());
                (e.revision, format!("{} {} {value}", e.revision, e.key))
            }
        };
        seen.push(text);
        if at >= revision {
            return seen;
        }
    }
}

#[tokio::test]
async fn get_shows_the_newest_value_and_its_revisions() {
    for Fixture { store, .. } in all() {
        assert_eq!(store.get("/a").await.unwrap(), None);
        assert_eq!(commit(&*store, vec![put("/a", "1"), put("/b", "1")]).await, 1);
        assert_eq!(commit(&*store, vec![put("/a", "2")]).await, 3);
        let entry = store.get("/a").await.unwrap().unwrap();
        assert_eq!(
            (&*entry.key, &entry.value[..], entry.create_revision, entry.mod_revision),
            ("/a", &b"2"[..], 1, 3)
        );
        commit(&*store, vec![delete("/a")]).await;
        assert_eq!(store.get("/a").await.unwrap(), None);
        commit(&*store, vec![put("/a", "3")]).await;
        assert_eq!(store.get("/a").await.unwrap().unwrap().create_revision, 5);
        assert_eq!(store.current_revision().await.unwrap(), 5);
    }
}

#[tokio::test]
async fn conditions_decide_about_the_whole_transaction() {
    for Fixture { store, .. } in all() {
        commit(&*store, vec![put("/a", "1")]).await;
        let cases = [
            ("/a", Condition::Absent, false),
            ("/a", Condition::Present, true),
            ("/a", Condition::ModifiedAt(1), true),
            ("/a", Condition::ModifiedAt(2), false),
            ("/x", Condition::Absent, true),
            ("/x", Condition::Present, false),
            ("/x", Condition::ModifiedAt(0), false),
        ];
        for (i, (key, condition, holds)) in cases.into_iter().enumerate() {
            let mut attempt = txn(vec![put(&format!("/new{i}"), "v"), put("/other", "v")]);
            attempt.conditions = vec![
                ("/a".into(), Condition::Present),
                (key.into(), condition),
                ("/y".into(), Condition::Absent),
            ];
            let before = store.current_revision().await.unwrap();
            match store.commit(attempt).await {
                Ok(done) => assert!(holds && done.first == before + 1, "{key} {condition:?}"),
                Err(CommitError::Conflict { key: conflicting, current }) => {
                    assert!(!holds, "{key} {condition:?}");
                    assert_eq!(conflicting, key);
                    assert_eq!(current, store.get(key).await.unwrap());
                    assert_eq!(store.current_revision().await.unwrap(), before);
                }
                Err(other) => panic!("{other}"),
            }
            assert_eq!(store.get(&format!("/new{i}")).await.unwrap().is_some(), holds);
        }
    }
}

#[tokio::test]
async fn limits_are_kept() {
    for Fixture { store, .. } in all() {
        let many = |count: usize| (0..count).map(|i| put(&format!("/k{i}"), "v")).collect::<Vec<_>>();
        assert_eq!(commit(&*store, many(128)).await, 1);
        let big = |bytes: usize| vec![put("/big", &"x".repeat(bytes))];
        assert_eq!(commit(&*store, big(1_499_996)).await, 129);
        let long_key = vec![put(&"k".repeat(4097), "v")];
        for bad in
            [many(129), big(1_499_997), vec![put("/a", "1"), delete("/a")], vec![put("", "v")], long_key]
        {
            assert!(matches!(store.commit(txn(bad)).await, Err(CommitError::Invalid(_))));
        }
        assert_eq!(store.current_revision().await.unwrap(), 129);
    }
}

#[tokio::test]
async fn pages_of_one_revision_show_one_state() {
    for Fixture { store, .. } in all() {
        for i in 0..10 {
            commit(&*store, vec![put(&format!("/p/{i}"), "old")]).await;
        }
        commit(&*store, vec![put("/o", "x"), put("/q/1", "x")]).await;
        let first = store.range("/p/", None, Some(4), None).await.unwrap();
        assert_eq!((first.entries.len(), first.more, first.remaining, first.revision), (4, true, 6, 12));
        commit(&*store, vec![put("/p/5", "new"), delete("/p/6"), put("/p/55", "new"), put("/p/7", "a")])
            .await;
        commit(&*store, vec![put("/p/7", "b"), delete("/p/9")]).await;
        commit(&*store, vec![put("/p/9", "again")]).await;
        let last = first.entries.last().unwrap().key.clone();
        let rest = store.range("/p/", Some(&last), None, Some(first.revision)).await.unwrap();
        let keys: Vec<&str> = rest.entries.iter().map(|e| &*e.key).collect();
        assert_eq!(keys, ["/p/4", "/p/5", "/p/6", "/p/7", "/p/8", "/p/9"]);
        assert!(rest.entries.iter().all(|e| &e.value[..] == b"old" && e.mod_revision == e.create_revision));
        assert_eq!((rest.more, rest.remaining, rest.revision), (false, 0, first.revision));
        let now = store.range("/p/", Some(&last), Some(100), None).await.unwrap();
        let keys: Vec<&str> = now.entries.iter().map(|e| &*e.key).collect();
        assert_eq!(keys, ["/p/4", "/p/5", "/p/55", "/p/7", "/p/8", "/p/9"]);
        assert_eq!(store.range("/none/", None, None, None).await.unwrap().entries, []);
        let everything = store.range("", None, None, Some(0)).await.unwrap();
        assert_eq!((everything.entries.len(), everything.revision), (0, 0));
        assert!(matches!(
            store.range("/p/", None, None, Some(1000)).await,
            Err(StoreError::FutureRevision { requested: 1000, .. })
        ));
    }
}

#[tokio::test]
async fn watches_deliver_in_order_exactly_once_with_progress() {
    for Fixture { store, .. } in all() {
        commit(&*store, vec![put("/a/1", "x"), put("/b/1", "x")]).await;
        let mut from_start = store.watch("/a/", 0).unwrap();
        let mut live = store.watch("/a/", 2).unwrap();
        let mut other = store.watch("/b/", 1).unwrap();
        commit(&*store, vec![put("/a/1", "y"), put("/b/2", "y")]).await;
        commit(&*store, vec![delete("/a/1")]).await;
        commit(&*store, vec![delete("/absent")]).await;
        commit(&*store, vec![put("/c", "z")]).await;
        let tail = ["3 /a/1 y", "5 /a/1 -", "7 progress"];
        assert_eq!(until(&mut from_start, 7).await, [&["1 /a/1 x"][..], &tail].concat());
        assert_eq!(until(&mut live, 7).await, tail);
        assert_eq!(until(&mut other, 7).await, ["2 /b/1 x", "4 /b/2 y", "7 progress"]);
        commit(&*store, vec![put("/a/2", "w")]).await;
        assert_eq!(until(&mut from_start, 8).await, ["8 /a/2 w"]);
        assert!(matches!(
            store.watch("/a/", 9),
            Err(StoreError::FutureRevision { requested: 9, current: 8 })
        ));
    }
}

#[tokio::test]
async fn events_carry_what_was_before() {
    for Fixture { store, .. } in all() {
        let mut watch = store.watch("/a", 0).unwrap();
        commit(&*store, vec![put("/a", "1")]).await;
        commit(&*store, vec![put("/a", "2")]).await;
        commit(&*store, vec![delete("/a")]).await;
        let mut previous = Vec::new();
        while previous.len() < 3 {
            if let WatchItem::Event(e) = watch.next().await.unwrap().unwrap() {
                assert_eq!(e.create_revision, 1);
                previous.push(e.previous.as_ref().map(|p| (p.value.to_vec(), p.mod_revision)));
            }
        }
        assert_eq!(previous, [None, Some((b"1".to_vec(), 1)), Some((b"2".to_vec(), 2))]);
    }
}

#[tokio::test]
async fn compaction_moves_the_floor() {
    for Fixture { store, .. } in all() {
        for i in 1..=10 {
            commit(&*store, vec![put("/a", &i.to_string())]).await;
        }
        let mut slow = store.watch("/a", 2).unwrap();
        let mut fine = store.watch("/a", 6).unwrap();
        store.compact(6).await.unwrap();
        store.compact(4).await.unwrap();
        assert!(matches!(
            store.range("/a", None, None, Some(5)).await,
            Err(StoreError::Compacted { requested: 5, floor: 6 })
        ));
        assert!(matches!(store.watch("/a", 5), Err(StoreError::Compacted { .. })));
        let page = store.range("/a", None, None, Some(6)).await.unwrap();
        assert_eq!(&page.entries[0].value[..], b"6");
        assert_eq!(slow.next().await.unwrap(), Err(WatchError::Compacted { position: 2, floor: 6 }));
        assert_eq!(slow.next().await, None);
        assert_eq!(until(&mut fine, 10).await.len(), 4);
        assert!(matches!(store.compact(11).await, Err(StoreError::FutureRevision { .. })));
    }
}

#[tokio::test]
async fn a_slow_watcher_is_told_that_history_is_gone() {
    let mut options = Options::default();
    options.history.events = 10;
    for Fixture { store, .. } in fixtures(options) {
        let mut slow = store.watch("/a", 0).unwrap();
        for _ in 0..20 {
            commit(&*store, vec![put("/a", "x")]).await;
        }
        assert_eq!(slow.next().await.unwrap(), Err(WatchError::Lagged { position: 0, floor: 10 }));
        assert_eq!(slow.next().await, None);
        let mut resumed = store.watch("/a", 10).unwrap();
        assert_eq!(until(&mut resumed, 20).await.len(), 10);
    }
}

#[tokio::test]
async fn history_keeps_within_its_bytes() {
    let mut options = Options::default();
    options.history.bytes = 64 << 10;
    for Fixture { store, .. } in fixtures(options) {
        for _ in 0..40 {
            commit(&*store, vec![put("/a", &"x".repeat(8 << 10))]).await;
        }
        assert!(matches!(store.watch("/a", 30), Err(StoreError::Compacted { .. })));
        let mut watch = store.watch("/a", 35).unwrap();
        assert_eq!(until(&mut watch, 40).await.len(), 5);
    }
}

#[tokio::test]
async fn relaxed_transactions_obey_the_same_rules() {
    for Fixture { store, .. } in all() {
        let mut watch = store.watch("/lease", 0).unwrap();
        for i in 0..3 {
            let relaxed = Txn { relaxed: true, ..txn(vec![put("/lease", &i.to_string())]) };
            assert_eq!(store.commit(relaxed).await.unwrap().first, 1 + 2 * i);
            commit(&*store, vec![put("/pod", "x")]).await;
        }
        let conflicting = Txn {
            relaxed: true,
            conditions: vec![("/lease".into(), Condition::Absent)],
            ops: vec![put("/lease", "no")],
        };
        assert!(matches!(store.commit(conflicting).await, Err(CommitError::Conflict { .. })));
        assert_eq!(&store.get("/lease").await.unwrap().unwrap().value[..], b"2");
        let seen = until(&mut watch, 6).await;
        let events: Vec<_> = seen.iter().filter(|s| !s.ends_with("progress")).collect();
        assert_eq!(events, ["1 /lease 0", "3 /lease 1", "5 /lease 2"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_are_serialized() {
    for Fixture { store, .. } in all() {
        commit(&*store, vec![put("/counter", "0")]).await;
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut done = 0;
                    while done < 20 {
                        let entry = store.get("/counter").await.unwrap().unwrap();
                        let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                        let mut next = txn(vec![put("/counter", &(count + 1).to_string())]);
                        next.conditions =
                            vec![("/counter".into(), Condition::ModifiedAt(entry.mod_revision))];
                        match store.commit(next).await {
                            Ok(_) => done += 1,
                            Err(CommitError::Conflict { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(&store.get("/counter").await.unwrap().unwrap().value[..], b"160");
        let mut watch = store.watch("/counter", 0).unwrap();
        let values: Vec<_> = until(&mut watch, 161).await;
        let want: Vec<_> = (0..=160).map(|i| format!("{} /counter {i}", i + 1)).collect();
        assert_eq!(values, want);
    }
}

#[tokio::test]
async fn a_closed_store_refuses_everything_and_reopens() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), Options::default()).unwrap();
    commit(&*store, vec![put("/a", "1"), put("/b", "1")]).await;
    let relaxed = Txn { relaxed: true, ..txn(vec![put("/a", "2")]) };
    store.commit(relaxed).await.unwrap();
    let in_use = EmbeddedStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(in_use, StoreError::InUse(_)), "{in_use}");
    assert!(in_use.to_string().starts_with("data directory in use"), "{in_use}");
    let mut watch = store.watch("/a", 3).unwrap();
    store.close();
    store.closed().await;
    assert_eq!(watch.next().await.unwrap(), Err(WatchError::Closed));
    assert!(matches!(store.get("/a").await, Err(StoreError::Closed)));
    assert_eq!(store.commit(txn(vec![put("/a", "3")])).await, Err(CommitError::Closed));

    let store = EmbeddedStore::open(dir.path(), Options::default()).unwrap();
    assert_eq!(store.current_revision().await.unwrap(), 3, "a clean stop skips no revision");
    assert_eq!(&store.get("/a").await.unwrap().unwrap().value[..], b"2");
    let mut watch = store.watch("/a", 1).unwrap();
    assert_eq!(until(&mut watch, 3).await, ["3 /a 2"], "watches resume over a restart");
}

#[tokio::test]
async fn relaxed_transactions_are_synced_by_the_deadline() {
    let disk = SimDisk::new(7);
    let options = Options { relaxed_delay: std::time::Duration::from_millis(1), ..Options::default() };
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options).unwrap();
    commit(&*store, vec![put("/first", "1")]).await;
    for i in 0..2 {
        store.commit(Txn { relaxed: true, ..txn(vec![put("/a", &i.to_string())]) }).await.unwrap();
    }
    while disk.unsynced_bytes() > 0 {
        tokio::task::yield_now().await;
    }
    let store = EmbeddedStore::open_on(Arc::new(disk.crash()), options).unwrap();
    assert_eq!(&store.get("/a").await.unwrap().unwrap().value[..], b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_in_the_background_keep_everything() {
    let options = Options { segment_bytes: 20_000, snapshot_min_bytes: 10_000, ..Options::default() };
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u64 {
        let store = EmbeddedStore::open(dir.path(), options).unwrap();
        assert_eq!(store.current_revision().await.unwrap(), round * 400);
        let writers = (0..4).map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 0..100 {
                    let ops = vec![put(
                        &format!("/{writer}/{}", i % 20),
                        &format!("{round} {i} {}", "x".repeat(200)),
                    )];
                    commit(&*store, ops).await;
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        store.close();
        drop(store);
        let store = EmbeddedStore::open(dir.path(), options).unwrap();
        let page = store.range("/", None, None, None).await.unwrap();
        assert_eq!((page.entries.len(), page.revision), (80, (round + 1) * 400));
        for entry in &page.entries {
            let i: usize = entry.key.rsplit('/').next().unwrap().parse().unwrap();
            assert!(entry.value.starts_with(format!("{round} {} ", 80 + i).as_bytes()), "{}", entry.key);
        }
    }
    let snapshots = std::fs::read_dir(dir.path()).unwrap();
    let names: Vec<_> = snapshots.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("snapshot-") && !name.ends_with(".tmp")), "{names:?}");
}
