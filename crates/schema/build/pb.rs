//! Messages from the k8s-pb source: field numbers, and the markers in doc comments.

use std::collections::HashMap;
use std::path::Path;

#[derive(Default, Clone, Debug)]
pub(crate) struct Markers {
    pub(crate) list_type: String,
    pub(crate) list_keys: Vec<String>,
    pub(crate) patch_strategy: String,
    pub(crate) patch_key: String,
    pub(crate) atomic: bool,
    pub(crate) default: String,
}

impl Markers {
    /// Takes one line such as `+listType=map`.
    pub(crate) fn read(&mut self, line: &str) {
        let Some((name, value)) = line.trim().trim_start_matches('+').split_once('=') else { return };
        match name {
            "listType" => value.clone_into(&mut self.list_type),
            "listMapKey" => self.list_keys.push(value.to_owned()),
            "patchStrategy" => value.clone_into(&mut self.patch_strategy),
            "patchMergeKey" => value.clone_into(&mut self.patch_key),
            "mapType" | "structType" => self.atomic = value == "atomic",
            // Empty strings are Go's zero value and never printed; references are made by code.
            "default" if !value.starts_with("ref(") && value != "\"\"" => value.clone_into(&mut self.default),
            _ => {}
        }
    }
}

pub(crate) struct Field {
    /// Lower case, without underscores
    pub(crate) name: String,
    pub(crate) number: u32,
    /// Key of the message when this is a single message
    pub(crate) message: Option<String>,
    pub(crate) markers: Markers,
}

#[derive(Default)]
pub(crate) struct Message {
    pub(crate) fields: Vec<Field>,
    pub(crate) markers: Markers,
}

/// Messages by `package/name` in lower case: `api/core/v1/podspec`.
pub(crate) type Messages = HashMap<String, Message>;

pub(crate) fn key(package: &str, name: &str) -> String {
    format!("{package}/{}", name.to_lowercase())
}

pub(crate) fn read(root: &Path) -> Messages {
    let mut messages = Messages::new();
    for (path, text) in crate::sources(root) {
        if let Some((package, _)) = path.rsplit_once('/') {
            file(package, &text, &mut messages);
        }
    }
    messages
}

fn file(package: &str, text: &str, out: &mut Messages) {
    let mut markers = Markers::default();
    let mut tag: Option<(u32, bool)> = None;
    let mut current: Option<(String, Message)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            markers.read(doc);
        } else if let Some(attribute) = line.strip_prefix("#[prost(") {
            tag = number(attribute).map(|n| (n, attribute.starts_with("message, optional")));
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{']).next().unwrap_or_default();
            let message = Message { fields: Vec::new(), markers: std::mem::take(&mut markers) };
            if line.ends_with("{}") {
                out.insert(key(package, name), message);
            } else {
                current = Some((key(package, name), message));
            }
        } else if line == "}" {
            out.extend(current.take());
            markers = Markers::default();
        } else if let (Some(rest), Some((_, message)), Some((number, single))) =
            (line.strip_prefix("pub "), current.as_mut(), tag.take())
        {
            let (name, ty) = rest.split_once(':').unwrap_or((rest, ""));
            let mut ty = ty.trim().to_owned();
            while !ty.ends_with(',') {
                ty.push_str(lines.next().expect("a field ends with a comma").trim());
            }
            message.fields.push(Field {
                name: name.trim_start_matches("r#").replace('_', "").to_lowercase(),
                number,
                message: single.then(|| resolve(package, &ty)),
                markers: std::mem::take(&mut markers),
            });
        }
    }
}

fn number(attribute: &str) -> Option<u32> {
    let from = attribute.find("tag = \"")? + "tag = \"".len();
    attribute[from..].split('"').next()?.parse().ok()
}

/// The message key of `::core::option::Option<super::super::core::v1::Name>,`.
fn resolve(package: &str, ty: &str) -> String {
    let path = ty.trim_end_matches(',').trim_start_matches("::core::option::Option<").trim_end_matches('>');
    let path = path.trim_start_matches("::prost::alloc::boxed::Box<").trim_end_matches('>');
    let mut base: Vec<&str> = package.split('/').collect();
    let mut parts: Vec<&str> = path.split("::").collect();
    let name = parts.pop().unwrap_or_default();
    for part in parts {
        if part == "super" {
            base.pop();
        } else {
            base.push(part);
        }
    }
    key(&base.join("/"), name)
}
