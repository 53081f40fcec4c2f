//! Definitions from the k8s-openapi source.

use std::collections::HashMap;
use std::path::Path;

use crate::literal::{Literal, Reader};

pub(crate) struct Definition {
    /// `io.k8s.api.core.v1.Pod`
    pub(crate) name: String,
    /// `api/core/v1`
    pub(crate) package: String,
    pub(crate) description: String,
    pub(crate) properties: Vec<Property>,
    /// (group, version, kind, list kind or "")
    pub(crate) kind: Option<(String, String, String, String)>,
}

pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) ty: Type,
    pub(crate) required: bool,
    pub(crate) description: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Type {
    /// A type without parts, by its tag in the table
    Plain(u8),
    /// Definition name
    Ref(String),
    List(Box<Type>),
    Map(Box<Type>),
}

pub(crate) const STRING: u8 = 0;
pub(crate) const TIME: u8 = 1;
pub(crate) const MICRO_TIME: u8 = 2;
pub(crate) const BYTES: u8 = 3;
pub(crate) const BOOLEAN: u8 = 4;
pub(crate) const INT32: u8 = 5;
pub(crate) const INT64: u8 = 6;
pub(crate) const DOUBLE: u8 = 7;
pub(crate) const INT_OR_STRING: u8 = 8;
pub(crate) const QUANTITY: u8 = 9;
pub(crate) const ANY: u8 = 10;

struct Raw {
    name: String,
    package: String,
    schema: Literal,
    kind: Option<(String, String, String, String)>,
}

pub(crate) fn read(root: &Path) -> Vec<Definition> {
    let mut names = HashMap::new();
    let mut raw = Vec::new();
    for (path, text) in crate::sources(root) {
        let Some(found) = definition(&path, &text) else { continue };
        names.insert(found.0, found.1.name.clone());
        raw.push(found.1);
    }
    raw.into_iter().filter(|r| special(&r.name).is_none()).map(|r| build(r, &names)).collect()
}

/// Types that the table holds as scalars.
fn special(name: &str) -> Option<u8> {
    Some(match name.rsplit('.').next().unwrap_or_default() {
        "Time" if name.contains("meta.v1") => TIME,
        "MicroTime" => MICRO_TIME,
        "Quantity" => QUANTITY,
        "IntOrString" => INT_OR_STRING,
        "RawExtension" | "FieldsV1" | "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool"
        | "JSONSchemaPropsOrStringArray" | "Patch" => ANY,
        _ => return None,
    })
}

fn definition(path: &str, text: &str) -> Option<(String, Raw)> {
    let at = text.find("::schemars::JsonSchema for ")?;
    let after = &text[at + "::schemars::JsonSchema for ".len()..];
    let rust_name = after.split([' ', '<']).next()?;
    let name = after.split('"').nth(1)?.to_owned();
    let mark = "json_schema!(";
    let schema = Reader::new(&after[after.find(mark)? + mark.len()..]).value();
    let package = path.rsplit_once('/')?.0.to_owned();
    let rust_path = format!("crate::{}::{rust_name}", package.replace('/', "::"));
    Some((rust_path, Raw { name, package, schema, kind: kind(text) }))
}

fn kind(text: &str) -> Option<(String, String, String, String)> {
    text.find("impl crate::Resource for ")?;
    let constant = |name: &str| {
        let mark = format!("const {name}: &'static str = \"");
        let from = text.find(&mark)? + mark.len();
        Some(text[from..].split('"').next()?.to_owned())
    };
    Some((constant("GROUP")?, constant("VERSION")?, constant("KIND")?, constant("LIST_KIND").unwrap_or_default()))
}

fn build(raw: Raw, names: &HashMap<String, String>) -> Definition {
    let required: Vec<&str> = match raw.schema.get("required") {
        Some(Literal::Array(items)) => {
            items.iter().filter_map(|i| if let Literal::Text(t) = i { Some(t.as_str()) } else { None }).collect()
        }
        _ => Vec::new(),
    };
    let mut properties = Vec::new();
    if let Some(Literal::Object(members)) = raw.schema.get("properties") {
        for (name, schema) in members {
            let description = match schema {
                Literal::Type(_, description) => description.clone(),
                other => other.text("description").to_owned(),
            };
            // The source requires metadata everywhere, which Kubernetes does not.
            let required = required.contains(&name.as_str()) && name != "metadata";
            properties.push(Property { name: name.clone(), ty: ty(schema, names), required, description });
        }
    }
    let description = raw.schema.text("description").to_owned();
    Definition { name: raw.name, package: raw.package, description, properties, kind: raw.kind }
}

fn ty(schema: &Literal, names: &HashMap<String, String>) -> Type {
    if let Literal::Type(path, _) = schema {
        let name = names.get(path).unwrap_or_else(|| panic!("no schema for {path}"));
        return special(name).map_or_else(|| Type::Ref(name.clone()), Type::Plain);
    }
    match (schema.text("type"), schema.text("format")) {
        ("string", "byte") => Type::Plain(BYTES),
        ("string", "date-time") => Type::Plain(TIME),
        ("string", _) => Type::Plain(STRING),
        ("boolean", _) => Type::Plain(BOOLEAN),
        ("integer", "int32") => Type::Plain(INT32),
        ("integer", _) => Type::Plain(INT64),
        ("number", _) => Type::Plain(DOUBLE),
        ("array", _) => Type::List(Box::new(schema.get("items").map_or(Type::Plain(ANY), |i| ty(i, names)))),
        ("object", _) => match schema.get("additionalProperties") {
            Some(inner) => Type::Map(Box::new(ty(inner, names))),
            None => Type::Plain(ANY),
        },
        _ if schema.get("x-kubernetes-int-or-string").is_some() => Type::Plain(INT_OR_STRING),
        _ => Type::Plain(ANY),
    }
}
