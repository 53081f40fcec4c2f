//! hostPath volumes: checks the path's type, or makes it.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use k8s_openapi::api::core::v1 as core;

pub(super) fn prepare(source: &core::HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" => std::fs::create_dir_all(path).map_err(|e| e.to_string())?,
        "FileOrCreate" if !path.exists() => drop(std::fs::File::create(path).map_err(|e| e.to_string())?),
        _ => {}
    }
    let found = std::fs::metadata(path).ok().map(|m| m.file_type());
    let (fits, noun) = match kind {
        "DirectoryOrCreate" | "Directory" => (found.is_some_and(|t| t.is_dir()), "a directory"),
        "FileOrCreate" | "File" => (found.is_some_and(|t| t.is_file()), "a file"),
        "Socket" => (found.is_some_and(|t| t.is_socket()), "a socket file"),
        "CharDevice" => (found.is_some_and(|t| t.is_char_device()), "a character device"),
        "BlockDevice" => (found.is_some_and(|t| t.is_block_device()), "a block device"),
        other => return Err(format!("hostPath type {other:?} is unknown")),
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {} is not {noun}", source.path)) }
}
