//! Joins definitions and messages and writes the table that `lib.rs` reads.
//!
//! Records end with 0x1e, their parts are separated by 0x1f:
//! - type: `T`, name, flags, description;
//! - field, of the type before it: `F`, name, type, flags, list type, merge key, default, number, inlined in, description;
//! - kind: `K`, group, version, kind, list kind, index of the type, index of the list's type.

use std::collections::BTreeMap;
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
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceSubresourceStatus", "a"),
];

struct Join<'a> {
    definitions: &'a BTreeMap<String, Definition>,
    messages: &'a BTreeMap<String, Message>,
    /// (type, field) → markers
    supplement: BTreeMap<(String, String), Vec<String>>,
    index: BTreeMap<String, usize>,
}

/// The whole table as text.
pub(crate) fn render(
    definitions: &BTreeMap<String, Definition>,
    messages: &BTreeMap<String, Message>,
    supplement: &str,
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
    names.sort();
    names.dedup();
    let index = names.iter().enumerate().map(|(at, name)| (name.clone(), at)).collect();
    let join = Join { definitions, messages, supplement: parse_supplement(supplement)?, index };
    let items: BTreeMap<_, _> = lists.into_iter().collect();
    let mut out = String::new();
    for name in &names {
        match items.get(name) {
            Some(item) => join.list(&mut out, name, item)?,
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
            let (inlined, source) = message.map_or((None, None), |m| self.find(m, field, &json_names));
            let mut markers = source.map(|s| s.markers.clone()).unwrap_or_default();
            if let Some(more) = self.supplement.get(&(name.to_owned(), field.clone())) {
                markers.extend(more.iter().cloned());
            }
            let given = markers.iter().find_map(|marker| marker.strip_prefix("number="));
            let number = match (source, given) {
                (Some(source), _) => source.number,
                (None, Some(given)) => given.parse()?,
                (None, None) => 0,
            };
            self.field(out, field, schema, required, &markers, number, inlined)?;
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
        inlined: Option<u32>,
    ) -> Result<(), Box<dyn Error>> {
        let marker = |key: &str| markers.iter().find_map(|m| m.strip_prefix(key)?.strip_prefix('='));
        let strategies: Vec<&str> = marker("patchStrategy").unwrap_or_default().split(',').collect();
        let mut flags = String::new();
        let rules = [
            ('r', required),
            ('a', marker("mapType") == Some("atomic") || marker("structType") == Some("atomic")),
            ('m', strategies.contains(&"merge")),
            ('k', strategies.contains(&"retainKeys")),
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
                &inlined.map(|n| n.to_string()).unwrap_or_default(),
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

    /// A JSON field's source: a field of the message itself, or of a message that Go inlines (then with its number).
    fn find<'a>(
        &'a self,
        message: &'a Message,
        field: &str,
        json_names: &[String],
    ) -> (Option<u32>, Option<&'a Field>) {
        let wanted = normal(field);
        // JSON names that protobuf can't have
        let wanted = match wanted.as_str() {
            "$ref" => "ref".to_owned(),
            "$schema" => "schema".to_owned(),
            // x-kubernetes-list-type is xKubernetesListType
            _ => wanted.replace('-', ""),
        };
        if let Some(found) = message.fields.iter().find(|f| f.name == wanted) {
            return (None, Some(found));
        }
        let inlined = message.fields.iter().filter(|f| !json_names.contains(&f.name));
        for outer in inlined {
            let Some(inner) = outer.message.as_ref().and_then(|name| self.messages.get(name)) else {
                continue;
            };
            if let (_, Some(found)) = self.find(inner, field, json_names) {
                return (Some(outer.number), Some(found));
            }
        }
        (None, None)
    }

    fn list(&self, out: &mut String, name: &str, item: &str) -> Result<(), Box<dyn Error>> {
        let short = item.rsplit('.').next().unwrap_or(item);
        record(out, &["T", name, "", &format!("{short}List is a list of {short}.")]);
        let strings = |text: &str| {
            Value::Map(vec![
                ("type".to_owned(), Value::Text("string".to_owned())),
                ("description".to_owned(), Value::Text(text.to_owned())),
            ])
        };
        let reference = |path: &str, description: &str| Value::Ref {
            path: path.to_owned(),
            description: Some(description.to_owned()),
        };
        self.field(out, "apiVersion", &strings("Version of the schema of this list."), false, &[], 0, None)?;
        let items = Value::Map(vec![
            ("type".to_owned(), Value::Text("array".to_owned())),
            ("description".to_owned(), Value::Text("Objects of the list.".to_owned())),
            ("items".to_owned(), reference(item, "")),
        ]);
        self.field(out, "items", &items, true, &[], 2, None)?;
        self.field(out, "kind", &strings("Kind of the list."), false, &[], 0, None)?;
        let meta = reference(&format!("{META}ListMeta"), "Standard list metadata.");
        self.field(out, "metadata", &meta, false, &[], 1, None)
    }

    fn kinds(&self, out: &mut String) -> Result<(), Box<dyn Error>> {
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
