//! Joins definitions and messages and writes the table that `lib.rs` reads.
//!
//! Records end with 0x1e, their parts are separated by 0x1f:
//! - type: `T`, name, flags, description;
//! - field, of the type before it: `F`, name, type, flags, list type, merge key, default, number, inlined in, description;
//! - kind: `K`, group, version, kind, list kind, index of the type, index of the list's type.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;

use crate::openapi::{Definition, Value};
use crate::protobuf::{Field, Message, normal};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Types that are values of their own in JSON.
const SCALARS: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "t"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "m"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "a"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "a"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "x"),
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "q"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", "A"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", "B"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", "S"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceSubresourceStatus", "E"),
];

/// Marks a scalar that is a pointer in Go.
const POINTER: &str = "pointer";

struct Join<'a> {
    definitions: &'a BTreeMap<String, Definition>,
    messages: &'a BTreeMap<String, Message>,
    /// (type, field) → markers
    supplement: BTreeMap<(String, String), Vec<String>>,
    /// (type, field) of scalars behind pointers
    pointers: BTreeSet<(String, String)>,
    index: BTreeMap<String, usize>,
}

/// The whole table as text.
pub(crate) fn render(
    definitions: &BTreeMap<String, Definition>,
    messages: &BTreeMap<String, Message>,
    supplement: &str,
    pointers: &str,
) -> Result<String, Box<dyn Error>> {
    let is_type = |name: &str| SCALARS.iter().all(|(scalar, _)| *scalar != name);
    let mut names: Vec<String> = definitions.keys().filter(|name| is_type(name)).cloned().collect();
    let lists: Vec<(String, String)> = definitions
        .iter()
        .filter_map(|(name, d)| {
            let list = d.kind.as_ref()?.3.as_ref()?;
            let package = name.rsplit_once('.')?.0;
            Some((format!("{package}.{list}"), name.clone()))
        })
        .collect();
    names.extend(lists.iter().map(|(list, _)| list.clone()));
    let partial = [format!("{META}PartialObjectMetadata"), format!("{META}PartialObjectMetadataList")];
    names.extend(partial.iter().cloned());
    names.sort();
    names.dedup();
    let index = names.iter().enumerate().map(|(at, name)| (name.clone(), at)).collect();
    let (supplement, pointers) = (parse_supplement(supplement)?, parse_pointers(pointers));
    let join = Join { definitions, messages, supplement, pointers, index };
    let mut items: BTreeMap<_, _> = lists.into_iter().collect();
    items.insert(partial[1].clone(), partial[0].clone());
    let mut out = String::new();
    for name in &names {
        match items.get(name) {
            Some(item) => join.list(&mut out, name, item)?,
            None if *name == partial[0] => join.partial(&mut out, name)?,
            None => join.definition(&mut out, name)?,
        }
    }
    join.kinds(&mut out)?;
    Ok(out)
}

/// Lines `type field marker…`; `#` begins a comment.
fn parse_supplement(text: &str) -> Result<BTreeMap<(String, String), Vec<String>>, Box<dyn Error>> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(ty), Some(field)) = (words.next(), words.next()) else {
            return Err(format!("supplement.txt: {line:?} names no type and field").into());
        };
        found.insert((ty, field), words.collect());
    }
    Ok(found)
}

/// Lines `type field…`; `#` begins a comment.
fn parse_pointers(text: &str) -> BTreeSet<(String, String)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.filter_map(|line| line.split_once(' '));
    words
        .flat_map(|(ty, fields)| {
            fields.split_whitespace().map(move |field| (ty.to_owned(), field.to_owned()))
        })
        .collect()
}

fn record(out: &mut String, parts: &[&str]) {
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            out.push('\x1f');
        }
        out.push_str(part);
    }
    out.push('\x1e');
}

impl Join<'_> {
    fn definition(&self, out: &mut String, name: &str) -> Result<(), Box<dyn Error>> {
        let definition = self.definitions.get(name).ok_or("a name without a definition")?;
        let message = self.message(name);
        let mut markers = message.map(|m| m.markers.clone()).unwrap_or_default();
        markers.extend(self.supplement.get(&(name.to_owned(), "-".to_owned())).cloned().unwrap_or_default());
        let atomic = markers.iter().any(|marker| marker == "structType=atomic");
        let description = definition.schema.get("description").and_then(Value::text).unwrap_or_default();
        record(out, &["T", name, if atomic { "a" } else { "" }, description]);
        let Some(Value::Map(properties)) = definition.schema.get("properties") else { return Ok(()) };
        let required = match definition.schema.get("required") {
            Some(Value::List(values)) => values.iter().filter_map(Value::text).collect(),
            _ => Vec::new(),
        };
        let json_names: Vec<String> = properties.iter().map(|(name, _)| normal(name)).collect();
        let mut sorted: Vec<_> = properties.iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        for (field, schema) in sorted {
            // k8s-openapi requires metadata of every kind; Kubernetes does not
            let required = required.contains(&field.as_str()) && field != "metadata";
            let (inlined, source) = message.map_or((Vec::new(), None), |m| self.find(m, field, &json_names));
            let mut markers = source.map(|s| s.markers.clone()).unwrap_or_default();
            if self.pointers.contains(&(name.to_owned(), field.clone())) {
                markers.push(POINTER.to_owned());
            }
            if let Some(more) = self.supplement.get(&(name.to_owned(), field.clone())) {
                markers.extend(more.iter().cloned());
            }
            let given = markers.iter().find_map(|marker| marker.strip_prefix("number="));
            let number = match (source, given) {
                (Some(source), _) => source.number,
                (None, Some(given)) => given.parse()?,
                (None, None) => 0,
            };
            self.field(out, field, schema, required, &markers, number, &inlined)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a record has that many parts")]
    fn field(
        &self,
        out: &mut String,
        name: &str,
        schema: &Value,
        required: bool,
        markers: &[String],
        number: u32,
        inlined: &[u32],
    ) -> Result<(), Box<dyn Error>> {
        let marker = |key: &str| markers.iter().find_map(|m| m.strip_prefix(key)?.strip_prefix('='));
        let strategies: Vec<&str> = marker("patchStrategy").unwrap_or_default().split(',').collect();
        let mut flags = String::new();
        let rules = [
            ('r', required),
            ('a', marker("mapType") == Some("atomic") || marker("structType") == Some("atomic")),
            ('m', strategies.contains(&"merge")),
            ('k', strategies.contains(&"retainKeys")),
            ('p', markers.iter().any(|m| m == POINTER)),
        ];
        flags.extend(rules.iter().filter(|(_, holds)| *holds).map(|(flag, _)| *flag));
        let keys: Vec<&str> = markers.iter().filter_map(|m| m.strip_prefix("listMapKey=")).collect();
        let list = match marker("listType") {
            Some("set") => "s".to_owned(),
            Some("map") => format!("m{}", keys.join(",")),
            _ => String::new(),
        };
        let description = match schema {
            Value::Ref { description: Some(text), .. } => text,
            other => other.get("description").and_then(Value::text).unwrap_or_default(),
        };
        let ty = self.field_type(schema)?;
        // references are made by code; an empty string is what Go leaves out when it prints
        let default = marker("default").filter(|d| !d.starts_with("ref(") && *d != "\"\"");
        record(
            out,
            &[
                "F",
                name,
                &ty,
                &flags,
                &list,
                marker("patchMergeKey").unwrap_or_default(),
                default.unwrap_or_default(),
                &number.to_string(),
                &inlined.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
                description,
            ],
        );
        Ok(())
    }

    fn field_type(&self, schema: &Value) -> Result<String, Box<dyn Error>> {
        if let Value::Ref { path, .. } = schema {
            return self.reference(path);
        }
        let word = |name: &str| schema.get(name).and_then(Value::text).unwrap_or_default();
        if matches!(schema.get("x-kubernetes-int-or-string"), Some(Value::Word)) {
            return Ok("x".into());
        }
        Ok(match (word("type"), word("format")) {
            ("string", "byte") => "b".into(),
            ("string", "date-time") => "t".into(),
            ("string", _) => "s".into(),
            ("boolean", _) => "o".into(),
            ("integer", "int64") => "l".into(),
            ("integer", _) => "i".into(),
            ("number", _) => "d".into(),
            ("array", _) => {
                format!("L{}", self.field_type(schema.get("items").ok_or("a list without items")?)?)
            }
            ("object", _) => match schema.get("additionalProperties") {
                Some(values) => format!("M{}", self.field_type(values)?),
                None => "a".into(),
            },
            other => return Err(format!("unknown type {other:?}").into()),
        })
    }

    fn reference(&self, name: &str) -> Result<String, Box<dyn Error>> {
        if let Some((_, letter)) = SCALARS.iter().find(|(scalar, _)| *scalar == name) {
            return Ok((*letter).to_owned());
        }
        let index = self.index.get(name).ok_or_else(|| format!("no type {name}"))?;
        Ok(format!("r{index}"))
    }

    /// The message of a definition: of the same name, or of the newest older version of its group.
    fn message(&self, name: &str) -> Option<&Message> {
        let name = name.to_lowercase();
        if let Some(message) = self.messages.get(&name) {
            return Some(message);
        }
        let (package, short) = name.rsplit_once('.')?;
        let group = package.rsplit_once('.')?.0;
        let versions = ["v1", "v1beta2", "v1beta1", "v1alpha3", "v1alpha2", "v1alpha1"];
        versions.iter().find_map(|version| self.messages.get(&format!("{group}.{version}.{short}")))
    }

    /// A JSON field's source: a field of the message itself, or of a message that Go inlines (then with the numbers that
    /// lead to it).
    fn find<'a>(
        &'a self,
        message: &'a Message,
        field: &str,
        json_names: &[String],
    ) -> (Vec<u32>, Option<&'a Field>) {
        let wanted = normal(field);
        // JSON names that protobuf can't have
        let wanted = match wanted.as_str() {
            "$ref" => "ref".to_owned(),
            "$schema" => "schema".to_owned(),
            // x-kubernetes-list-type is xKubernetesListType
            _ => wanted.replace('-', ""),
        };
        if let Some(found) = message.fields.iter().find(|f| f.name == wanted) {
            return (Vec::new(), Some(found));
        }
        let inlined = message.fields.iter().filter(|f| !json_names.contains(&f.name));
        for outer in inlined {
            let Some(inner) = outer.message.as_ref().and_then(|name| self.messages.get(name)) else {
                continue;
            };
            if let (mut path, Some(found)) = self.find(inner, field, json_names) {
                path.insert(0, outer.number);
                return (path, Some(found));
            }
        }
        (Vec::new(), None)
    }

    /// The metadata of any object, as a kind of its own.
    fn partial(&self, out: &mut String, name: &str) -> Result<(), Box<dyn Error>> {
        record(out, &["T", name, "", "PartialObjectMetadata is the metadata of an object of any kind."]);
        let version = string("Version of the schema of this object.");
        self.field(out, "apiVersion", &version, false, &[], 0, &[])?;
        self.field(out, "kind", &string("Kind of the object."), false, &[], 0, &[])?;
        let meta = reference(&format!("{META}ObjectMeta"), "Standard object metadata.");
        self.field(out, "metadata", &meta, false, &[], 1, &[])
    }

    fn list(&self, out: &mut String, name: &str, item: &str) -> Result<(), Box<dyn Error>> {
        let short = item.rsplit('.').next().unwrap_or(item);
        record(out, &["T", name, "", &format!("{short}List is a list of {short}.")]);
        self.field(out, "apiVersion", &string("Version of the schema of this list."), false, &[], 0, &[])?;
        let items = Value::Map(vec![
            ("type".to_owned(), Value::Text("array".to_owned())),
            ("description".to_owned(), Value::Text("Objects of the list.".to_owned())),
            ("items".to_owned(), reference(item, "")),
        ]);
        self.field(out, "items", &items, true, &[], 2, &[])?;
        self.field(out, "kind", &string("Kind of the list."), false, &[], 0, &[])?;
        let meta = reference(&format!("{META}ListMeta"), "Standard list metadata.");
        self.field(out, "metadata", &meta, false, &[], 1, &[])
    }

    fn kinds(&self, out: &mut String) -> Result<(), Box<dyn Error>> {
        let at = |name: &str| self.index.get(&format!("{META}{name}")).map(usize::to_string);
        let (one, many) = ("PartialObjectMetadata", "PartialObjectMetadataList");
        let (one_at, many_at) = (at(one).ok_or("no partial object")?, at(many).ok_or("no partial list")?);
        record(out, &["K", "meta.k8s.io", "v1", one, many, &one_at, &many_at]);
        for (name, definition) in self.definitions {
            let Some((group, version, kind, list)) = &definition.kind else { continue };
            let Some(index) = self.index.get(name) else { continue };
            let package = name.rsplit_once('.').map_or("", |(package, _)| package);
            let mut list_index = String::new();
            if let Some(list) = list {
                let at = self.index.get(&format!("{package}.{list}")).ok_or("a list without a type")?;
                write!(list_index, "{at}")?;
            }
            let list = list.as_deref().unwrap_or_default();
            record(out, &["K", group, version, kind, list, &index.to_string(), &list_index]);
        }
        Ok(())
    }
}

fn string(description: &str) -> Value {
    Value::Map(vec![
        ("type".to_owned(), Value::Text("string".to_owned())),
        ("description".to_owned(), Value::Text(description.to_owned())),
    ])
}

fn reference(path: &str, description: &str) -> Value {
    Value::Ref { path: path.to_owned(), description: Some(description.to_owned()) }
}
