//! Choosing and reading logs.

use api::stream::LogOptions;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::format::{Wanted, parse};
use super::read::{Follow, stream};
use super::{last_lines, pick_attempt, pick_container};
use crate::fake::situation::container;

const LOG: &str = "2026-01-01T00:00:01.000000001Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n\
                   2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F \n2026-01-01T00:00:04Z stdout F four\n";

async fn read(tail: Option<u64>, wanted: Wanted) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), LOG).unwrap();
    let mut stream = stream(file.path(), tail, wanted, None).unwrap();
    let mut text = Vec::new();
    while let Some(part) = stream.next().await {
        text.extend_from_slice(&part.unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn reading() {
    let all = Wanted::default;
    let since = Wanted { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..all() };
    let table = [
        (None, all(), "one\ntwo\n\nfour\n"),
        (Some(1), all(), "four\n"),
        (Some(2), all(), "\nfour\n"),
        (Some(0), all(), ""),
        (Some(100), all(), "one\ntwo\n\nfour\n"),
        (None, since, "\nfour\n"),
        (None, Wanted { limit: Some(5), ..all() }, "one\nt"),
        (None, Wanted { limit: Some(4), ..all() }, "one\n"),
        (Some(1), Wanted { timestamps: true, ..all() }, "2026-01-01T00:00:04Z four\n"),
    ];
    for (tail, wanted, text) in table {
        assert_eq!(read(tail, wanted.clone()).await, text, "{tail:?} {wanted:?}");
    }
}

#[test]
fn tails_cross_chunks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let long = "x".repeat(100_000);
    let text: String = (0..4).map(|n| format!("2026-01-01T00:00:00Z stdout F {n}{long}\n")).collect();
    std::fs::write(file.path(), text).unwrap();
    let tail = last_lines(file.path(), 2, u64::MAX);
    assert_eq!(tail.lines().map(|l| &l[..1]).collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(last_lines(file.path(), 2, 10).len(), 10);
}

/// Appends an entry to a log.
fn append(path: &std::path::Path, text: &str) {
    use std::io::Write as _;
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    writeln!(file, "2026-01-01T00:00:00Z stdout F {text}").unwrap();
}

/// Renames a log as the runtime does.
fn rotate(path: &std::path::Path) {
    let name = |number: u32| path.with_file_name(format!("0.log.{number}"));
    for number in (1..4).rev().filter(|number| name(*number).exists()) {
        std::fs::rename(name(number), name(number + 1)).unwrap();
    }
    std::fs::rename(path, name(1)).unwrap();
}

#[tokio::test]
async fn rotated_files_are_part_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    for text in ["a", "b", "rotate", "c", "d", "rotate", "e"] {
        if text == "rotate" { rotate(&path) } else { append(&path, text) }
    }
    for (tail, want) in [
        (None, "a\nb\nc\nd\ne\n"),
        (Some(0), ""),
        (Some(1), "e\n"),
        (Some(2), "d\ne\n"),
        (Some(4), "b\nc\nd\ne\n"),
    ] {
        let mut stream = stream(&path, tail, Wanted::default(), None).unwrap();
        let mut text = Vec::new();
        while let Some(part) = stream.next().await {
            text.extend_from_slice(&part.unwrap());
        }
        assert_eq!(String::from_utf8(text).unwrap(), want, "{tail:?}");
    }
}

#[tokio::test]
async fn following_goes_on_in_the_new_file() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    append(&path, "a");
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let over = Arc::new(AtomicBool::new(false));
    let exited = {
        let over = over.clone();
        Box::new(move || -> futures_util::future::BoxFuture<'static, bool> {
            let over = over.load(Ordering::SeqCst);
            Box::pin(async move { over })
        })
    };
    let follow = Follow { events: receiver, exited };
    let mut stream = stream(&path, None, Wanted::default(), Some(follow)).unwrap();
    let mut next = async || String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(next().await, "a\n");
    // Written to the old file after the reader saw its end; then twice a new one.
    for text in ["b", "rotate", "c", "rotate", "d"] {
        if text == "rotate" { rotate(&path) } else { append(&path, text) }
    }
    let mut text = String::new();
    while text.len() < "b\nc\nd\n".len() {
        text += &next().await;
    }
    assert_eq!(text, "b\nc\nd\n");
    over.store(true, Ordering::SeqCst);
    drop(events);
    assert!(stream.next().await.is_none());
}

#[test]
fn malformed_lines_are_left_out() {
    assert_eq!(parse(b"no"), None);
    assert_eq!(parse(b"t stdout F").unwrap().text, b"");
    assert!(parse(b"t stdout P:x a b").unwrap().partial);
}

fn pod(value: serde_json::Value) -> core::Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": value})).unwrap()
}

#[test]
fn containers_are_picked_or_refused() {
    let two = pod(json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}));
    assert_eq!(pick_container(&two, "i").unwrap(), "i");
    assert_eq!(pick_container(&two, "x").unwrap_err().message, "container x is not valid for pod p");
    assert_eq!(
        pick_container(&two, "").unwrap_err().message,
        "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
    );
    assert_eq!(pick_container(&pod(json!({"containers": [{"name": "a"}]})), "").unwrap(), "a");
}

#[test]
fn attempts_are_picked_or_refused() {
    let one = pod(json!({"containers": [{"name": "a"}]}));
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    let runs = [container("a").exited(1, 9, 8), container("a").attempt(1).running(7)];
    let pick = |list: &[_], options: &LogOptions| pick_attempt(&one, "a", list, options).map(|c| c.attempt);
    assert_eq!(pick(&runs, &LogOptions::default()), Ok(1));
    assert_eq!(pick(&runs, &previous), Ok(0));
    let error = pick(&runs[1..], &previous).unwrap_err();
    assert_eq!(error.message, "previous terminated container \"a\" in pod \"p\" not found");
    let error = pick(&[], &LogOptions::default()).unwrap_err();
    assert_eq!(error.message, "container \"a\" in pod \"p\" is waiting to start: ContainerCreating");
    let mut waiting = one.clone();
    let status = json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
    waiting.status = Some(serde_json::from_value(status).unwrap());
    let dead = [container("a").exited(1, 9, 8)];
    assert_eq!(pick_attempt(&waiting, "a", &dead, &previous).unwrap().attempt, 0);
}

#[test]
fn a_log_goes_with_its_rotated_files() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["1.log", "1.log.1", "11.log", "2.log"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    super::remove(&dir.path().join("1.log")).unwrap();
    super::remove(&dir.path().join("gone/1.log")).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["11.log", "2.log"]);
}
