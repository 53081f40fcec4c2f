use super::*;

fn layout() -> Layout {
    Layout {
        executable: std::env::current_exe().unwrap(),
        program: "/program".into(),
        links: vec![("/bin/sh".into(), "/program".into())],
        folders: vec![("/tmp".into(), 0o1777)],
        files: vec![("/etc/passwd".into(), "root:x:0:0::/:/bin/sh\n".into(), 0o644)],
        cmd: vec!["sh".into()],
        ..Layout::default()
    }
}

#[test]
fn builtin_images_are_packed_once_and_found_by_every_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let first = store.ensure_builtin("podium.local/toolbox:latest", &layout()).unwrap();
    let layer = store.prepare("podium.local/toolbox").unwrap().1.pop().unwrap();
    assert!(layer.join("program").is_file() && layer.join("bin/sh").is_symlink());
    fs::write(layer.join("marker"), "").unwrap();
    assert_eq!(store.ensure_builtin("podium.local/toolbox", &layout()).unwrap(), first);
    assert!(layer.join("marker").exists(), "packed again for nothing");
    let changed = Layout { cmd: vec!["x".into()], ..layout() };
    assert_ne!(store.ensure_builtin("podium.local/toolbox", &changed).unwrap().id, first.id);

    let again = ImageStore::open(dir.path()).unwrap();
    assert_eq!(again.status("podium.local/toolbox:latest").unwrap().unwrap().cmd, ["x"]);
    assert_eq!(again.status(&first.id[7..27]).unwrap().unwrap().id, first.id);
    assert_eq!(again.status("podium.local/other").unwrap(), None);
    let in_use = vec![first.id.clone()];
    assert!(again.remove(&first.id, &in_use).is_err());
    again.remove(&first.id, &[]).unwrap();
    assert!(!layer.exists());
    assert_eq!(again.list().unwrap().len(), 1);
}

/// A docker archive with two layers, the second of which deletes a file of the first.
pub(super) fn docker_archive(tamper: bool) -> Vec<u8> {
    let tar_of = |files: &[(&str, &[u8])]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, *content).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let digest = |bytes: &[u8]| {
        let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
        format!("sha256:{}", hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let (one, two) = (tar_of(&[("a", b"1"), ("b", b"2")]), tar_of(&[(".wh.a", b"")]));
    let wrong = digest(b"");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["A=b=c"], "Entrypoint": null, "Cmd": ["/b"], "User": "7:8", "StopSignal": "SIGINT"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&one), if tamper { wrong } else { digest(&two) }]},
    });
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    tar_of(&[
        ("c.json", config.to_string().as_bytes()),
        ("1/layer.tar", &one),
        ("2/layer.tar", &two),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

#[test]
fn docker_archives_are_imported_and_verified() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("store")).unwrap();
    let archive = dir.path().join("a.tar");
    fs::write(&archive, docker_archive(true)).unwrap();
    assert!(matches!(store.import(&archive), Err(RuntimeError::Invalid(_))));
    assert_eq!(store.list().unwrap(), []);

    fs::write(&archive, docker_archive(false)).unwrap();
    let imported = store.import(&archive).unwrap().pop().unwrap();
    assert_eq!(imported.repo_tags, ["docker.io/library/app:1"]);
    assert_eq!(imported.env, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(
        (imported.cmd, imported.user, imported.stop_signal),
        (vec!["/b".to_owned()], "7:8".into(), Some("SIGINT".into()))
    );
    let (_, layers) = store.prepare("app:1").unwrap();
    assert_eq!(layers.len(), 2);
    assert!(layers[0].join("b").is_file());
    assert_eq!(fs::read_dir(dir.path().join("store/tmp")).unwrap().count(), 0);
}

#[test]
fn what_another_process_imports_is_seen_at_once() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("store");
    let running = ImageStore::open(&place).unwrap();
    assert_eq!(running.status("app:1").unwrap(), None);
    let archive = dir.path().join("a.tar");
    fs::write(&archive, docker_archive(false)).unwrap();
    let imported = ImageStore::open(&place).unwrap().import(&archive).unwrap().pop().unwrap();
    assert_eq!(running.status("app:1").unwrap().map(|image| image.id), Some(imported.id));
    // and neither side forgets the other's names
    running.ensure_builtin("podium.local/toolbox:latest", &layout()).unwrap();
    assert!(running.status("app:1").unwrap().is_some());
    assert_eq!(ImageStore::open(&place).unwrap().list().unwrap().len(), 2);
}
