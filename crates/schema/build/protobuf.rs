//! Reads messages out of `k8s-pb`'s generated sources: field numbers, types and the Go markers in the comments.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// A message. Its name is kept in lower case (`io.k8s.api.core.v1.httpgetaction`): the two sources write capitals in their own
/// ways.
#[derive(Default)]
pub(crate) struct Message {
    /// Markers of the type: `+structType=atomic`
    pub(crate) markers: Vec<String>,
    pub(crate) fields: Vec<Field>,
}

pub(crate) struct Field {
    /// Name in lower case without underscores: joins with the JSON name
    pub(crate) name: String,
    pub(crate) number: u32,
    /// Message name when the field is one message (not repeated): an inlined struct, possibly
    pub(crate) message: Option<String>,
    /// `listType=map`, `patchMergeKey=name`, …: the comment lines that begin with `+`, without it
    pub(crate) markers: Vec<String>,
}

/// A name as both sides write it.
pub(crate) fn normal(name: &str) -> String {
    name.trim_start_matches("r#").chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// All messages below a folder, by name.
pub(crate) fn read(root: &Path) -> Result<BTreeMap<String, Message>, Box<dyn Error>> {
    let mut messages = BTreeMap::new();
    let mut folders = vec![(root.to_owned(), Vec::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                let mut inner: Vec<String> = module.clone();
                inner.push(stem);
                folders.push((path, inner));
            } else if stem == "mod" {
                read_module(&fs::read_to_string(&path)?, &module, &mut messages);
            }
        }
    }
    Ok(messages)
}

fn package(module: &[String]) -> String {
    format!(
        "io.k8s.{}",
        module
            .join(".")
            .replace("apiextensions_apiserver", "apiextensions-apiserver")
            .replace("kube_aggregator", "kube-aggregator")
    )
}

fn read_module(text: &str, module: &[String], messages: &mut BTreeMap<String, Message>) {
    let package = package(module);
    let mut current: Option<(String, Message)> = None;
    let mut markers = Vec::new();
    let mut number = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("///") {
            markers.extend(comment.trim().strip_prefix('+').map(str::to_owned));
        } else if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.split([' ', '{']).next().unwrap_or_default();
            let message = Message { markers: std::mem::take(&mut markers), fields: Vec::new() };
            current = Some((format!("{package}.{name}").to_lowercase(), message));
            if line.ends_with("{}") {
                messages.extend(current.take());
            }
        } else if line.starts_with("#[prost(") {
            let mut attribute = line.to_owned();
            while !attribute.ends_with(")]") {
                let Some(more) = lines.next() else { break };
                attribute.push_str(more.trim());
            }
            number = attribute
                .split("tag = \"")
                .nth(1)
                .and_then(|t| t.split('"').next())
                .and_then(|t| t.parse().ok());
        } else if let Some(field) = line.strip_prefix("pub ").filter(|_| number.is_some()) {
            let mut field = field.to_owned();
            while !field.ends_with(',') {
                let Some(more) = lines.next() else { break };
                field.push_str(more.trim());
            }
            let (name, ty) = field.split_once(':').unwrap_or((&field, ""));
            if let (Some((_, message)), Some(number)) = (&mut current, number.take()) {
                message.fields.push(Field {
                    name: normal(name),
                    number,
                    message: single_message(ty, module),
                    markers: std::mem::take(&mut markers),
                });
            }
        } else if line == "}" {
            messages.extend(current.take());
            markers.clear();
        } else if line.is_empty() {
            markers.clear();
        }
    }
}

/// `::core::option::Option<super::super::x::Y>` → the message's name; `None` for lists, maps and scalars.
fn single_message(ty: &str, module: &[String]) -> Option<String> {
    let inner = ty.trim().trim_end_matches(',').strip_prefix("::core::option::Option<")?.strip_suffix('>')?;
    let inner =
        inner.strip_prefix("::prost::alloc::boxed::Box<").and_then(|i| i.strip_suffix('>')).unwrap_or(inner);
    if inner.starts_with("::") || !inner.contains(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    let mut base = module.to_vec();
    let mut path = inner;
    while let Some(after) = path.strip_prefix("super::") {
        base.pop();
        path = after;
    }
    let mut segments: Vec<String> = path.split("::").map(str::to_owned).collect();
    let name = segments.pop()?;
    base.extend(segments);
    Some(format!("{}.{name}", package(&base)).to_lowercase())
}
