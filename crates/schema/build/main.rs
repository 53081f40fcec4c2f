//! Writes the table of the built-in kinds into OUT_DIR.
//!
//! ```text
//!   k8s-openapi source ─ names, types, required, descriptions ─┐
//!   k8s-pb source ────── numbers, list and merge markers ──────┼─▶ join ─▶ table.bin
//!   data/supplement.txt  markers newer than k8s-pb ────────────┘
//! ```
//!
//! Both packages are found through `cargo metadata`; they are locked but never compiled. Alternatively
//! `PODIUM_SCHEMA_TABLE` names a ready table and `PODIUM_SCHEMA_SHA256` its digest.

mod encode;
mod join;
mod literal;
mod openapi;
mod pb;
mod sha256;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const OPENAPI: (&str, &str) = ("k8s-openapi", "0.29.0");
const PB: (&str, &str) = ("k8s-pb", "0.9.0");
const MODULE: &str = "v1_37";

fn main() {
    for file in ["build", "data"] {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=PODIUM_SCHEMA_TABLE");
    println!("cargo:rerun-if-env-changed=PODIUM_SCHEMA_SHA256");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("table.bin");
    let table = match env::var("PODIUM_SCHEMA_TABLE") {
        Ok(path) => ready_table(Path::new(&path)),
        Err(_) => build_table(),
    };
    fs::write(&out, table).unwrap_or_else(|e| panic!("cannot write {}: {e}", out.display()));
}

fn ready_table(path: &Path) -> Vec<u8> {
    println!("cargo:rerun-if-changed={}", path.display());
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("PODIUM_SCHEMA_TABLE {}: {e}", path.display()));
    let wanted = env::var("PODIUM_SCHEMA_SHA256").expect("PODIUM_SCHEMA_TABLE needs PODIUM_SCHEMA_SHA256");
    let found = sha256::hex(&bytes);
    assert!(found == wanted.trim().to_lowercase(), "the schema table has sha256 {found}, wanted {wanted}");
    bytes
}

fn build_table() -> Vec<u8> {
    let metadata = metadata();
    let openapi = source_of(&metadata, OPENAPI).join("src").join(MODULE);
    let pb = source_of(&metadata, PB).join("src");
    let supplement = fs::read_to_string("data/supplement.txt").expect("data/supplement.txt is part of the crate");
    let definitions = openapi::read(&openapi);
    let messages = pb::read(&pb);
    encode::table(&join::join(definitions, &messages, &supplement))
}

/// `cargo metadata` of the workspace, from the local cache where that suffices.
fn metadata() -> String {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let run = |offline: bool| {
        let mut command = Command::new(&cargo);
        command.args(["metadata", "--format-version", "1"]);
        if offline {
            command.arg("--offline");
        }
        command.output().unwrap_or_else(|e| panic!("cannot run cargo metadata: {e}"))
    };
    let mut output = run(true);
    if !output.status.success() {
        output = run(false);
    }
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// Folder of a package; the JSON is searched as text, so that the script needs no JSON parser.
fn source_of(metadata: &str, (name, version): (&str, &str)) -> PathBuf {
    let mark = format!("\"name\":\"{name}\",\"version\":\"{version}\"");
    let at = metadata.find(&mark).unwrap_or_else(|| panic!("{name} {version} is not in cargo metadata"));
    let key = "\"manifest_path\":\"";
    let from = at + metadata[at..].find(key).expect("every package has a manifest") + key.len();
    let length = metadata[from..].find('"').expect("a JSON string ends");
    let manifest = metadata[from..from + length].replace("\\\\", "\\");
    PathBuf::from(manifest).parent().expect("a manifest lies in a folder").to_path_buf()
}

/// All Rust files below a folder with their path relative to it.
fn sources(root: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let relative = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
                files.push((relative, text));
            }
        }
    }
    files.sort();
    files
}
