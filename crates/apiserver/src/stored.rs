//! Objects at rest: encoded JSON without resourceVersion, and the little that selectors need to know of them.
//!
//! `apiVersion`, `kind` and `metadata` come first, so that the place where the revision is spliced in
//! follows the first `"metadata":{`.

use std::sync::Arc;

use api::{FieldSelector, FieldType, LabelSelector, Object};
use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::resource::Resource;

const METADATA: &[u8] = b"\"metadata\":{";

/// Encodes an object for the store, without its resourceVersion.
pub(crate) fn encode(object: &Object) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    for name in ["apiVersion", "kind"] {
        write_pair(&mut out, name, &Value::String(object.str(&[name]).to_owned()));
        out.push(b',');
    }
    out.extend_from_slice(METADATA);
    let start = out.len();
    let metadata = object.get(&["metadata"]).and_then(Value::as_object);
    for (name, value) in metadata.into_iter().flatten().filter(|(name, _)| *name != "resourceVersion") {
        if out.len() > start {
            out.push(b',');
        }
        write_pair(&mut out, name, value);
    }
    out.push(b'}');
    for (name, value) in
        object.0.iter().filter(|(n, _)| !matches!(n.as_str(), "apiVersion" | "kind" | "metadata"))
    {
        out.push(b',');
        write_pair(&mut out, name, value);
    }
    out.push(b'}');
    out.into()
}

fn write_pair(out: &mut Vec<u8>, name: &str, value: &Value) {
    serde_json::to_writer(&mut *out, name).expect("a string is always JSON");
    out.push(b':');
    serde_json::to_writer(&mut *out, value).expect("a JSON tree is always JSON");
}

/// Decodes stored bytes and sets the resourceVersion (0: never stored, a dry run).
///
/// # Errors
/// When the bytes are no JSON object: the store was written by something else.
pub(crate) fn decode(value: &Bytes, revision: u64) -> Result<Object, api::Status> {
    let tree: Value =
        serde_json::from_slice(value).map_err(|e| api::Status::internal(format!("stored object: {e}")))?;
    let mut object =
        Object::from_value(tree).ok_or_else(|| api::Status::internal("stored value is no object"))?;
    if revision > 0 {
        object.set(&["metadata", "resourceVersion"], revision.to_string());
    }
    Ok(object)
}

/// Appends stored bytes with the revision spliced in; none for revision 0 (a dry run's new object).
pub(crate) fn splice_into(out: &mut BytesMut, value: &[u8], revision: u64) {
    let at = value.windows(METADATA.len()).position(|window| window == METADATA);
    let Some(at) = at.map(|at| at + METADATA.len()).filter(|_| revision > 0) else {
        out.put_slice(value);
        return;
    };
    out.put_slice(&value[..at]);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.to_string().as_bytes());
    out.put_slice(if value.get(at) == Some(&b'}') { b"\"" } else { b"\"," });
    out.put_slice(&value[at..]);
}

/// Stored bytes with the revision spliced in.
pub(crate) fn splice(value: &[u8], revision: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + 48);
    splice_into(&mut out, value, revision);
    out.freeze()
}

/// What selectors look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    labels: Vec<(String, String)>,
    /// Values of the row's selectable fields, in their order.
    fields: Vec<String>,
}

/// How to read a [`Meta`] for one row.
pub(crate) struct MetaReader {
    /// Field paths; the last one is `metadata.labels`.
    paths: Vec<Vec<String>>,
    names: Vec<String>,
    /// For each name the first of its paths, and how many it has.
    places: Vec<(usize, usize)>,
    /// What an absent field compares as: "", "false" or "0" by its type.
    absent: Vec<&'static str>,
}

impl MetaReader {
    pub(crate) fn new(resource: &Resource) -> Self {
        let split = |path: &str| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (mut paths, mut names, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (name, of_name) in resource.field_paths() {
            names.push(name.to_owned());
            places.push((paths.len(), of_name.len()));
            paths.extend(of_name.into_iter().map(split));
        }
        let absent = places.iter().map(|(first, _)| absent_value(resource, &paths[*first])).collect();
        paths.push(split("metadata.labels"));
        Self { paths, names, places, absent }
    }

    /// Reads the selectable parts of stored bytes and skips over the rest.
    pub(crate) fn read(&self, value: &[u8]) -> Meta {
        let mut found: Vec<Option<Value>> = vec![None; self.paths.len()];
        let wanted = (0..self.paths.len()).collect();
        let walk = Walk { reader: self, depth: 0, wanted, found: &mut found };
        let mut deserializer = serde_json::Deserializer::from_slice(value);
        if let Err(error) = walk.deserialize(&mut deserializer) {
            tracing::error!(%error, "stored object cannot be read");
        }
        let labels = match found.pop().flatten() {
            Some(Value::Object(map)) => map.into_iter().map(|(k, v)| (k, text(Some(&v), ""))).collect(),
            _ => Vec::new(),
        };
        let value = |(first, count): &(usize, usize)| {
            found[*first..first + count].iter().flatten().find(|value| **value != "")
        };
        let fields =
            self.places.iter().zip(&self.absent).map(|(place, absent)| text(value(place), absent)).collect();
        Meta { labels, fields }
    }
}

fn text(value: Option<&Value>, absent: &str) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => absent.to_owned(),
        Some(other) => other.to_string(),
    }
}

/// Go's zero value of a field as a selector sees it.
fn absent_value(resource: &Resource, path: &[String]) -> &'static str {
    let mut ty = resource.schema;
    for (index, name) in path.iter().enumerate() {
        match resource.table.get(ty).field(name).map(|f| &f.ty) {
            Some(FieldType::Ref(next)) => ty = *next,
            Some(FieldType::Boolean) if index + 1 == path.len() => return "false",
            Some(FieldType::Int32 | FieldType::Int64) if index + 1 == path.len() => return "0",
            _ => return "",
        }
    }
    ""
}

/// Walks a JSON object along the wanted paths only.
struct Walk<'a> {
    reader: &'a MetaReader,
    depth: usize,
    wanted: Vec<usize>,
    found: &'a mut [Option<Value>],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let here =
                |index: &&usize| self.reader.paths[**index].get(self.depth).is_some_and(|p| *p == name);
            let wanted: Vec<usize> = self.wanted.iter().filter(here).copied().collect();
            let leaves = || wanted.iter().copied().filter(|i| self.reader.paths[*i].len() == self.depth + 1);
            if leaves().next().is_some() {
                let value: Value = map.next_value()?;
                leaves().for_each(|index| self.found[index] = Some(value.clone()));
            } else if wanted.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Walk {
                    reader: self.reader,
                    depth: self.depth + 1,
                    wanted,
                    found: self.found,
                })?;
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Namespace and name of a store key: the parts after `/registry/{group}/{resource}/`.
pub(crate) fn key_parts<'a>(resource: &Resource, key: &'a str) -> (&'a str, &'a str) {
    let rest = key.splitn(5, '/').nth(4).unwrap_or_default();
    if resource.namespaced { rest.split_once('/').unwrap_or(("", rest)) } else { ("", rest) }
}

/// The label and field selector of a request.
#[derive(Clone, Default)]
pub(crate) struct Selection {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selection {
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.requirements.is_empty() && self.fields.terms.is_empty()
    }

    /// Whether an object is selected; `key` is its store key.
    pub(crate) fn matches(&self, resource: &Resource, reader: &MetaReader, key: &str, meta: &Meta) -> bool {
        let label = |name: &str| meta.labels.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        self.labels.matches_with(label)
            && (self.fields.terms.is_empty() || {
                let (namespace, name) = key_parts(resource, key);
                self.fields.matches_with(|path| match path {
                    "metadata.name" => name,
                    "metadata.namespace" => namespace,
                    _ => {
                        let index = reader.names.iter().position(|n| n == path);
                        index.and_then(|i| meta.fields.get(i)).map(String::as_str).unwrap_or_default()
                    }
                })
            })
    }

    /// The one value that `field=x` leaves of a field, if any.
    pub(crate) fn pinned(&self, field: &str) -> Option<&str> {
        let term = self.fields.terms.iter().find(|(path, _, equal)| path == field && *equal)?;
        Some(&term.1)
    }
}

/// A stored object with what selectors need.
pub(crate) struct CachedObject {
    pub(crate) key: Arc<str>,
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
    pub(crate) meta: Meta,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn encoding_and_splicing_give_the_object_back() {
        let tree = json!({"kind": "Pod", "apiVersion": "v1", "aaa": 1, "status": {"phase": "Running"},
            "metadata": {"name": "x", "resourceVersion": "7", "annotations": {"a": "\"metadata\":{"}}});
        let object = Object::from_value(tree).expect("object");
        let bytes = encode(&object);
        assert!(bytes.starts_with(b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{"));
        assert!(!String::from_utf8_lossy(&bytes).contains("resourceVersion"));
        let again: Value = serde_json::from_slice(&splice(&bytes, 7)).expect("JSON");
        assert_eq!(again, object.clone().into_value());
        assert_eq!(decode(&bytes, 7).expect("object"), object);
    }

    #[test]
    fn metadata_without_fields_can_be_spliced() {
        let object = Object::from_value(json!({"apiVersion": "v1", "kind": "Pod"})).expect("object");
        let again: Value = serde_json::from_slice(&splice(&encode(&object), 1)).expect("JSON");
        assert_eq!(again["metadata"], json!({"resourceVersion": "1"}));
    }

    #[test]
    fn meta_finds_labels_and_fields_only() {
        let reader = MetaReader {
            paths: [vec!["spec", "nodeName"], vec!["spec", "unschedulable"], vec!["metadata", "labels"]]
                .map(|p| p.into_iter().map(str::to_owned).collect())
                .to_vec(),
            names: vec!["spec.nodeName".into(), "spec.unschedulable".into()],
            places: vec![(0, 1), (1, 1)],
            absent: vec!["", "false"],
        };
        let value = json!({"metadata": {"labels": {"app": "web"}, "name": "x"}, "spec": {"nodeName": "n1", "containers": [{}]}});
        let meta = reader.read(value.to_string().as_bytes());
        assert_eq!(meta.labels, [("app".to_owned(), "web".to_owned())]);
        assert_eq!(meta.fields, ["n1", "false"]);
        assert_eq!(reader.read(b"{\"spec\": 5}").fields, ["", "false"]);
    }
}
