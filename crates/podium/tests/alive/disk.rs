//! A disk that is full: nothing that was acknowledged is lost, one line says so, and it goes on once there is room.

use std::process::Command;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use crate::server::{Server, eventually};

/// Set in the copy of the test that runs in a mount namespace.
const INSIDE: &str = "PODIUM_DISK_INSIDE";
const NAME: &str = "disk::a_full_disk_is_one_line_and_not_the_end";

#[test]
fn a_full_disk_is_one_line_and_not_the_end() {
    if std::env::var_os(INSIDE).is_some() {
        let pool = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return pool.block_on(full_disk());
    }
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("PODIUM_TEST_REQUIRE").is_ok_and(|what| what == "root");
        assert!(!required, "this test needs root, and root is required");
        println!("skipped: needs root");
        return;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) starts");
    assert!(status.success(), "failed: {status}");
}

async fn full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(dir.path()).status();
    assert!(mount.unwrap().success());
    let (data, filler) = (dir.path().join("data"), dir.path().join("filler"));
    let log = dir.path().join("log");

    let mut command = Command::new(env!("CARGO_BIN_EXE_podium"));
    // opened before the disk is full, and long enough for its lines
    std::fs::write(&log, " ".repeat(8192)).unwrap();
    command.stderr(std::fs::OpenOptions::new().write(true).open(&log).unwrap());
    let server = Server::start_by(command, &data);
    let admin = server.access().admin();
    let map = |number: usize| -> ConfigMap {
        serde_json::from_value(
            json!({"metadata": {"name": format!("m{number}")}, "data": {"k": "v".repeat(4096)}}),
        )
        .unwrap()
    };
    eventually("a write", async || admin.create(Some("default"), &map(0)).await.is_ok()).await;
    // every byte that is left
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok() {}
    let mut acknowledged = 1;
    while acknowledged < 5000 && admin.create(Some("default"), &map(acknowledged)).await.is_ok() {
        acknowledged += 1;
    }
    assert!(acknowledged < 5000, "the disk was full");
    assert_eq!(server.ended().code(), Some(1));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("podium: the store can no longer write to"), "{text}");

    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let server = Server::start(&data);
    let admin = server.access().admin();
    let list = admin.list::<ConfigMap>(Some("default"), api::RequestOptions::default()).await.unwrap();
    let kept =
        list.items.iter().filter(|m| m.metadata.name.as_ref().is_some_and(|n| n.starts_with('m'))).count();
    assert!(kept >= acknowledged, "{kept} of {acknowledged}");
    admin.create(Some("default"), &map(9999)).await.unwrap();
    server.stop();
    let unmount = Command::new("umount").arg(dir.path()).status();
    assert!(unmount.unwrap().success());
}
