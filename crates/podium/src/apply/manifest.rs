//! Manifests on disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use api::Object;
use serde::Deserialize as _;

/// One document of a manifest.
#[derive(Debug)]
pub(super) struct Document {
    /// File and number of the document, for messages.
    pub(super) source: String,
    pub(super) object: Object,
}

/// Reads files, and the `.yaml`, `.yml` and `.json` files of folders in the order of their names.
///
/// # Errors
/// When a path can't be read or a document is no Kubernetes object.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            documents.extend(parse(&file.display().to_string(), &text)?);
        }
    }
    ensure!(!documents.is_empty(), "nothing to apply in {paths:?}");
    Ok(documents)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"));
    files.sort();
    Ok(files)
}

/// Splits a YAML stream into its objects; the items of a `List` are objects of their own; empty documents vanish.
fn parse(file: &str, text: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let source = format!("{file} (document {})", number + 1);
        let value = serde_json::Value::deserialize(document).with_context(|| source.clone())?;
        if value.is_null() {
            continue;
        }
        let values = match value {
            serde_json::Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                list.remove("items").and_then(|items| items.as_array().cloned()).unwrap_or_default()
            }
            other => vec![other],
        };
        for value in values {
            let object = Object::from_value(value).ok_or_else(|| anyhow!("{source}: not an object"))?;
            for field in ["apiVersion", "kind"] {
                ensure!(!object.str(&[field]).is_empty(), "{source}: {field} is missing");
            }
            ensure!(!object.name().is_empty(), "{source}: metadata.name is missing");
            documents.push(Document { source: source.clone(), object });
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_lists_and_errors() {
        let show = |text: &str| match parse("f.yaml", text) {
            Ok(documents) => documents.iter().map(|d| format!("{} ", d.object.name())).collect::<String>(),
            Err(error) => format!("{error:#}"),
        };
        let kind = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: ";
        assert_eq!(show(&format!("{kind}a\n---\n# nothing\n---\n{kind}b\n")), "a b ");
        let list = r#"{"kind":"List","apiVersion":"v1","items":[{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}]}"#;
        assert_eq!(show(list), "p ");
        assert_eq!(show("kind: Pod\n"), "f.yaml (document 1): apiVersion is missing");
        assert_eq!(show("apiVersion: v1\nkind: Pod\n"), "f.yaml (document 1): metadata.name is missing");
        assert_eq!(show("- a\n"), "f.yaml (document 1): not an object");
    }
}
