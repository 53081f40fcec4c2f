//! Makes the schema table from the source text of two packages that are locked but never compiled here.
//!
//! - `k8s-openapi`, module `v1_37`: names, types, required fields, descriptions, kinds;
//! - `k8s-pb`: protobuf field numbers, list and merge markers, defaults (Kubernetes v1.35);
//! - `supplement.txt`: the markers of what v1.36 and v1.37 added;
//! - `pointers.txt`: scalars whose zero differs from their absence.
//!
//! `PODIUM_SCHEMA_TABLE` names a ready table instead (checked against the hex SHA-256 in `PODIUM_SCHEMA_SHA256`).

#[path = "build/openapi.rs"]
mod openapi;
#[path = "build/protobuf.rs"]
mod protobuf;
#[path = "build/sha256.rs"]
mod sha256;
#[path = "build/table.rs"]
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    for variable in ["PODIUM_SCHEMA_TABLE", "PODIUM_SCHEMA_SHA256"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in ["build.rs", "build", "supplement.txt", "pointers.txt", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("table.txt");
    if let Ok(ready) = env::var("PODIUM_SCHEMA_TABLE") {
        fs::write(out, verified(Path::new(&ready))?)?;
        return Ok(());
    }
    let [openapi_dir, protobuf_dir] = package_dirs(["k8s-openapi", "k8s-pb"])?;
    let definitions = openapi::read(&openapi_dir.join("src/v1_37"))?;
    let messages = protobuf::read(&protobuf_dir.join("src"))?;
    let supplement = fs::read_to_string("supplement.txt")?;
    let pointers = fs::read_to_string("pointers.txt")?;
    fs::write(out, table::render(&definitions, &messages, &supplement, &pointers)?)?;
    Ok(())
}

fn verified(path: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", path.display());
    let table = fs::read(path)?;
    let wanted =
        env::var("PODIUM_SCHEMA_SHA256").map_err(|_| "PODIUM_SCHEMA_TABLE needs PODIUM_SCHEMA_SHA256")?;
    let found = sha256::hex(&table);
    if found != wanted.trim() {
        return Err(format!("{}: SHA-256 is {found}, not {wanted}", path.display()).into());
    }
    Ok(table)
}

/// Source folders of packages, from cargo's metadata; first without the network.
fn package_dirs<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let run = |offline: bool| {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]).arg(&manifest);
        if offline {
            command.arg("--offline");
        }
        command.output()
    };
    let mut output = run(true)?;
    if !output.status.success() {
        output = run(false)?;
    }
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let mut dirs = Vec::new();
    for name in names {
        let package = packages.iter().find(|package| package["name"] == name);
        let manifest =
            package.and_then(|p| p["manifest_path"].as_str()).ok_or(format!("no package {name}"))?;
        dirs.push(Path::new(manifest).parent().ok_or("a manifest without a folder")?.to_owned());
    }
    dirs.try_into().map_err(|_| "one folder per package".into())
}
