//! Payloads, the atomic writer, subPaths.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::{
    Payload, PayloadFile, VolumeInputs, atomic_writer, certificate::Certificates, prepare, sub_path,
    tear_down, token::Tokens,
};
use crate::fields::FieldContext;
use crate::references::Sources;

fn payload(files: &[(&str, &str)]) -> Payload {
    let file = |text: &str| PayloadFile { bytes: text.as_bytes().to_vec(), mode: 0o640 };
    files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with("..0"))
        .collect();
    names.sort();
    names
}

#[test]
fn the_writer_swaps_versions() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("v");
    atomic_writer::write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
    assert_eq!(names(&dir), ["..data", "a", "sub"]);
    assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
    assert_eq!(std::fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    let first = std::fs::read_link(dir.join("..data")).unwrap();
    atomic_writer::write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
    assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), first, "nothing changed, nothing moved");
    atomic_writer::write(&dir, &payload(&[("a", "3")]), None).unwrap();
    assert_eq!(names(&dir), ["..data", "a"]);
    assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
    assert!(!dir.join(&first).exists(), "the old version is gone");
    for bad in ["../x", "/x", "", "a/../../x", "..x"] {
        assert!(atomic_writer::write(&dir, &payload(&[(bad, "1")]), None).is_err(), "{bad}");
    }
}

#[test]
fn all_kinds_of_payload() {
    let root = tempfile::tempdir().unwrap();
    let pod: core::Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "labels": {"b": "2", "a": "x\"y"}},
        "spec": {"containers": [], "volumes": [
            {"name": "cm", "configMap": {"name": "cm", "items": [{"key": "k", "path": "d/f", "mode": 256}]}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}},
            {"name": "gone", "configMap": {"name": "gone", "optional": true}},
            {"name": "all", "projected": {"sources": [
                {"configMap": {"name": "cm"}}, {"secret": {"name": "s"}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}},
            {"name": "e", "emptyDir": {}},
        ]},
    }))
    .unwrap();
    let mut sources = Sources::default();
    sources
        .config_maps
        .insert("cm".into(), serde_json::from_value(json!({"metadata": {}, "data": {"k": "v"}})).unwrap());
    sources
        .secrets
        .insert("s".into(), serde_json::from_value(json!({"metadata": {}, "data": {"p": "cHc="}})).unwrap());
    let claims = super::claim::Claims::new();
    let (fields, tokens, certificates) =
        (FieldContext::default(), Tokens::default(), Certificates::default());
    let inputs = VolumeInputs {
        pod: &pod,
        dir: root.path(),
        sources: &sources,
        claims: &claims,
        fields: &fields,
        tokens: &tokens,
        certificates: &certificates,
    };
    prepare(&inputs).unwrap();
    let read = |path: &str| std::fs::read_to_string(root.path().join("volumes").join(path)).unwrap();
    assert_eq!(read("cm/d/f"), "v");
    assert_eq!(read("s/p"), "pw");
    assert_eq!(read("all/k") + &read("all/p"), "vpw");
    assert_eq!(read("all/labels"), "a=\"x\\\"y\"\nb=\"2\"");
    let mode = |path: &str| std::fs::metadata(root.path().join("volumes").join(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("cm/d/f"), mode("s/p"), mode("e")), (0o400, 0o400, 0o777));
    let empty = Sources::default();
    let inputs = VolumeInputs { sources: &empty, ..inputs };
    let error = prepare(&inputs).unwrap_err().to_string();
    assert_eq!(error, "MountVolume.SetUp failed for volume \"cm\" : configmap \"cm\" not found");
    tear_down(root.path()).unwrap();
    assert!(!root.path().exists());
    tear_down(root.path()).unwrap();
}

#[test]
fn sub_paths_stay_inside() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("v");
    std::fs::create_dir_all(volume.join("a")).unwrap();
    symlink("/etc", volume.join("out")).unwrap();
    symlink("../..", volume.join("up")).unwrap();
    symlink("a", volume.join("in")).unwrap();
    assert!(sub_path::resolve(&volume, "a/new/folder").is_ok());
    assert!(volume.join("a/new/folder").is_dir());
    assert!(sub_path::resolve(&volume, "in").is_ok());
    for bad in ["out", "out/passwd", "up", "up/x", "../x", "/etc", "a/../../x"] {
        assert!(sub_path::resolve(&volume, bad).is_err(), "{bad}");
    }
}
