//! What a dynamic executable needs to run: its loader and libraries, found as the loader would without a cache.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{During as _, RuntimeError};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Interpreter and needed libraries of one file; both empty for a static one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    interpreter: Option<PathBuf>,
    libraries: Vec<String>,
}

/// All files an executable needs besides itself, by the path they must have.
pub(super) fn dependencies(executable: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let mut found: BTreeSet<PathBuf> = BTreeSet::new();
    let mut open = vec![executable.to_owned()];
    while let Some(file) = open.pop() {
        let bytes = std::fs::read(&file).during(|| format!("cannot read {}", file.display()))?;
        let needs = parse(&bytes)
            .ok_or_else(|| RuntimeError::Invalid(format!("{} is no 64-bit ELF file", file.display())))?;
        let libraries = needs.libraries.iter().map(|name| search(name)).collect::<Result<Vec<_>, _>>()?;
        for path in needs.interpreter.into_iter().chain(libraries) {
            if found.insert(path.clone()) {
                open.push(path);
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn search(name: &str) -> Result<PathBuf, RuntimeError> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let folders = [
        format!("/lib/{triple}"),
        format!("/usr/lib/{triple}"),
        "/lib64".into(),
        "/usr/lib64".into(),
        "/lib".into(),
        "/usr/lib".into(),
    ];
    let mut candidates = folders.iter().map(|folder| Path::new(folder).join(name));
    candidates.find(|path| path.is_file()).ok_or_else(|| RuntimeError::NotFound(format!("library {name}")))
}

fn parse(bytes: &[u8]) -> Option<Needs> {
    // 64-bit, little-endian.
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (u64_at(bytes, 32)?, u16_at(bytes, 54)?, u16_at(bytes, 56)?);
    let mut needs = Needs::default();
    let (mut loads, mut dynamic) = (Vec::new(), None);
    for index in 0..u64::from(count) {
        let header = usize::try_from(table + index * u64::from(size)).ok()?;
        let (offset, address, length) =
            (u64_at(bytes, header + 8)?, u64_at(bytes, header + 16)?, u64_at(bytes, header + 32)?);
        match u32_at(bytes, header)? {
            PT_LOAD => loads.push((offset, address, length)),
            PT_DYNAMIC => dynamic = Some((usize::try_from(offset).ok()?, usize::try_from(length).ok()?)),
            PT_INTERP => {
                needs.interpreter = Some(PathBuf::from(text_at(bytes, usize::try_from(offset).ok()?)?))
            }
            _ => {}
        }
    }
    let Some((offset, length)) = dynamic else { return Some(needs) };
    let entries: Vec<(u64, u64)> = (offset..offset.checked_add(length)?)
        .step_by(16)
        .map(|at| Some((u64_at(bytes, at)?, u64_at(bytes, at + 8)?)))
        .collect::<Option<_>>()?;
    let address = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    let (file_offset, load_address, _) =
        loads.iter().find(|(_, start, length)| (*start..start + length).contains(&address))?;
    let strings = usize::try_from(address - load_address + file_offset).ok()?;
    for (_, value) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        needs.libraries.push(text_at(bytes, strings + usize::try_from(*value).ok()?)?.to_owned());
    }
    Some(needs)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn text_at(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == 0)?]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_and_its_libraries_are_found() {
        let exe = std::env::current_exe().unwrap();
        let needs = parse(&std::fs::read(&exe).unwrap()).unwrap();
        let all = dependencies(&exe).unwrap();
        assert_eq!(needs.interpreter.is_some(), !all.is_empty());
        for library in &needs.libraries {
            assert!(all.iter().any(|path| path.ends_with(library)), "{library}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(parse(b"#!/bin/sh"), None);
        assert_eq!(parse(b"\x7fELF\x02\x01"), None);
    }
}
