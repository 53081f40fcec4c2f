#![allow(unsafe_code, clippy::unwrap_used)]
//! Volumes that are mounts: a tmpfs and a subPath, in a mount namespace of the test's own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use node::fields::FieldContext;
use node::references::Sources;
use node::volumes::{self, VolumeInputs, certificate::Certificates, sub_path, token::Tokens};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;

fn may_mount() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert_ne!(std::env::var("PODIUM_TEST_REQUIRE").as_deref(), Ok("root"), "root is required");
    println!("skipped: needs root");
    false
}

/// Mounts of this thread are seen by nobody else.
fn own_mounts() {
    // SAFETY: only the mount namespace and working folder of this thread change; no descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

fn device(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().dev()
}

#[test]
fn mounts_are_made_and_taken_away() {
    if !may_mount() {
        return;
    }
    own_mounts();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("uid");
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [], "volumes": [
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "disk", "emptyDir": {}},
        ]},
    }))
    .unwrap();
    let (sources, fields, tokens) = (Sources::default(), FieldContext::default(), Tokens::default());
    let certificates = Certificates::default();
    let claims = node::volumes::claim::Claims::new();
    let inputs = VolumeInputs {
        pod: &pod,
        dir: &dir,
        sources: &sources,
        claims: &claims,
        fields: &fields,
        tokens: &tokens,
        certificates: &certificates,
    };
    volumes::prepare(&inputs).unwrap();
    let memory = dir.join("volumes/mem");
    assert_ne!(device(&memory), device(&dir));
    std::fs::write(memory.join("kept"), "1").unwrap();
    assert!(std::fs::write(memory.join("big"), vec![0; 2 << 20]).is_err(), "the size limit holds");
    volumes::prepare(&inputs).unwrap();
    assert!(memory.join("kept").exists(), "preparing again changes nothing");

    let disk = dir.join("volumes/disk");
    std::fs::create_dir(disk.join("a")).unwrap();
    std::fs::write(disk.join("a/file"), "inside").unwrap();
    let target = dir.join("volume-subpaths/main/0");
    sub_path::bind(&disk, "a", &target).unwrap();
    assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "inside");
    let single = dir.join("volume-subpaths/main/1");
    sub_path::bind(&disk, "a/file", &single).unwrap();
    sub_path::bind(&disk, "a/file", &single).unwrap();
    assert_eq!(std::fs::read_to_string(&single).unwrap(), "inside");

    volumes::tear_down(&dir).unwrap();
    assert!(!dir.exists());
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    assert!(!mounts.contains(&*dir.to_string_lossy()));
}
