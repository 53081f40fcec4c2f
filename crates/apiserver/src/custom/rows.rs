//! The rows that a CustomResourceDefinition stands for: one per served version.

use std::sync::Arc;

use api::{FieldError, GroupVersionResource, Object, SchemaTable, TypeId, Verb};
use serde_json::{Map, Value, json};

use super::conversion::Conversion;
use super::jsonpath::JsonPath;
use super::rules::Rules;
use super::types::{self, KindName};
use super::validate;
use crate::printing::cells;
use crate::resource::{ALL_VERBS, Column, Durability, Resource, ScalePaths, Strategy, Subresource};
use crate::resources::names;

static NULL: Value = Value::Null;

/// The rows of an established definition, best version first.
pub(super) fn of(crd: &Object, base: &SchemaTable) -> Vec<Resource> {
    let spec = crd.get(&["spec"]).unwrap_or(&NULL);
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let stored =
        versions.iter().find(|version| version["storage"] == true).map(|version| text(&version["name"]));
    let mut served: Vec<&Value> = versions.into_iter().filter(|version| version["served"] == true).collect();
    served.sort_by_key(|version| priority(text(&version["name"])));
    served.into_iter().map(|version| row(crd, spec, version, stored.unwrap_or_default(), base)).collect()
}

/// Sorts versions as Kubernetes prefers them: `v2`, `v1`, `v1beta1`, `v1alpha1`, then others by name.
pub(crate) fn priority(version: &str) -> (u8, std::cmp::Reverse<u64>, std::cmp::Reverse<u64>, String) {
    use std::cmp::Reverse;
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (0, ""),
            other => match other.strip_prefix("beta") {
                Some(minor) => (1, minor),
                None => (2, other.strip_prefix("alpha")?),
            },
        };
        let minor: u64 = if stage == 0 { 0 } else { minor.parse().ok()? };
        Some((stage, Reverse(major), Reverse(minor), String::new()))
    };
    parse().unwrap_or_else(|| (3, Reverse(0), Reverse(0), version.to_owned()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn row(crd: &Object, spec: &Value, version: &Value, stored: &str, base: &SchemaTable) -> Resource {
    let names = &spec["names"];
    let (group, kind, plural) = (text(&spec["group"]), text(&names["kind"]), text(&names["plural"]));
    let list_kind = text(&names["listKind"]);
    let name = KindName { group, version: text(&version["name"]), kind, list_kind };
    let schema = &version["schema"]["openAPIV3Schema"];
    let (table, ty) = types::table(base, &name, schema);
    let table = Arc::new(table);
    let verbs = ALL_VERBS.iter().copied().filter(|verb| *verb != Verb::Create || !crd.is_deleting());
    let strategy = Custom {
        table: Arc::clone(&table),
        ty,
        schema: schema.clone(),
        rules: Rules::of(schema),
        conversion: Conversion::of(&spec["conversion"]),
        published: published(schema, &name, base).to_string(),
        warning: warning(version, &name),
    };
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    Resource {
        gvr: GroupVersionResource::new(group, name.version, plural),
        kind: kind.to_owned(),
        list_kind: list_kind.to_owned(),
        singular: text(&names["singular"]).to_owned(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        schema: ty,
        table,
        selectable_fields: fields.map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned()).collect(),
        columns: columns(version),
        subresources: subresources(version),
        verbs: verbs.collect(),
        durability: Durability::OnDisk,
        strategy: Arc::new(strategy),
        // The stored form is always read anew: it may be older than the present schema.
        stored_as: Some(GroupVersionResource::new(group, stored, plural)),
    }
}

fn path(value: &Value) -> Vec<String> {
    text(value).split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn subresources(version: &Value) -> Vec<Subresource> {
    let wanted = &version["subresources"];
    let mut list = Vec::new();
    if !wanted["status"].is_null() {
        list.push(Subresource::Status);
    }
    let scale = &wanted["scale"];
    if !scale.is_null() {
        list.push(Subresource::Scale(ScalePaths {
            spec_replicas: path(&scale["specReplicasPath"]),
            status_replicas: path(&scale["statusReplicasPath"]),
            selector: path(&scale["labelSelectorPath"]),
        }));
    }
    list
}

fn column(
    name: &str,
    type_: &str,
    value: impl Fn(&Object, jiff::Timestamp) -> Value + Send + Sync + 'static,
) -> Column {
    Column {
        name: name.to_owned(),
        type_: type_.to_owned(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        value: Arc::new(value),
    }
}

fn columns(version: &Value) -> Vec<Column> {
    let name = column("Name", "string", cells::name);
    let mut columns = vec![Column { format: "name".to_owned(), ..name }];
    let wanted = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    if wanted.is_empty() {
        columns.push(column("Age", "date", cells::age));
    }
    for want in wanted {
        let type_ = text(&want["type"]).to_owned();
        let path = JsonPath::parse(text(&want["jsonPath"]));
        let kind = type_.clone();
        let value = move |object: &Object, now| {
            let path = path.as_ref().ok();
            path.map(|path| cell(path, &kind, object, now)).unwrap_or_default()
        };
        columns.push(Column {
            format: text(&want["format"]).to_owned(),
            description: text(&want["description"]).to_owned(),
            priority: want["priority"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
            ..column(text(&want["name"]), &type_, value)
        });
    }
    columns
}

/// What a column shows: a value of its own type, or null.
fn cell(path: &JsonPath, type_: &str, object: &Object, now: jiff::Timestamp) -> Value {
    let tree = Value::Object(object.0.clone());
    let found = path.find(&tree);
    let Some(first) = found.first() else { return Value::Null };
    match (type_, first) {
        ("date", Value::String(then)) => cells::since(then, now).into(),
        ("integer", Value::Number(n)) if n.is_f64() => Value::Null,
        ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
        ("string", Value::Object(_) | Value::Array(_)) => first.to_string().into(),
        ("string", _) if found.len() > 1 => {
            cells::joined(&found.into_iter().cloned().collect::<Vec<_>>()).into()
        }
        ("string", _) => cells::plain(first).into(),
        _ => Value::Null,
    }
}

/// The version's schema as OpenAPI shows it, with the fields that every object has.
fn published(schema: &Value, name: &KindName<'_>, base: &SchemaTable) -> Value {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({"type": "object"}) };
    let meta = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let mut properties = schema["properties"].as_object().cloned().unwrap_or_else(Map::new);
    // as any built-in kind describes them
    let usual = |field: &str| {
        let any = base.kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let field = any.and_then(|any| base.get(any).field(field));
        field.map(|field| field.description.clone().into_owned()).unwrap_or_default()
    };
    for field in ["apiVersion", "kind"] {
        properties.insert(field.into(), json!({"type": "string", "description": usual(field)}));
    }
    properties
        .insert("metadata".into(), json!({"allOf": [{"$ref": meta}], "description": usual("metadata")}));
    schema["properties"] = Value::Object(properties);
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": name.group, "version": name.version, "kind": name.kind}]);
    schema
}

/// The text of a deprecated version's `Warning` header.
fn warning(version: &Value, name: &KindName<'_>) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let usual = || format!("{}/{} {} is deprecated", name.group, name.version, name.kind);
    Some(version["deprecationWarning"].as_str().map_or_else(usual, str::to_owned))
}

/// What custom resources have instead of hooks: their schema.
struct Custom {
    table: Arc<SchemaTable>,
    ty: TypeId,
    schema: Value,
    rules: Option<Rules>,
    conversion: Option<Conversion>,
    published: String,
    warning: Option<String>,
}

impl Custom {
    /// What the rules of the schema find. They are asked only about objects that have the shape of the schema.
    fn ask(&self, object: &Object, old: Option<&Object>) -> Vec<FieldError> {
        let tree = |object: &Object| Value::Object(object.0.clone());
        let Some(rules) = self.rules.as_ref() else { return Vec::new() };
        let value = tree(object);
        if !validate::object(&self.schema, &value).is_empty() {
            return Vec::new();
        }
        rules.check(&value, old.map(tree).as_ref())
    }
}

impl Strategy for Custom {
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !object.name().is_empty() {
            let details = names::dns_subdomain(object.name()).into_iter();
            errors.extend(details.map(|d| FieldError::invalid("metadata.name", object.name(), &d)));
        }
        errors.extend(validate::object(&self.schema, &Value::Object(object.0.clone())));
        errors
    }

    fn validate_create(&self, object: &Object) -> Vec<FieldError> {
        self.ask(object, None)
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        self.ask(new, Some(old))
    }

    fn warnings(&self, _: &Object) -> Vec<String> {
        self.warning.iter().cloned().collect()
    }

    fn from_stored(&self, object: &mut Object) {
        api::codec::prune(&self.table, self.ty, object);
        api::schema::apply_defaults(&self.table, self.ty, object);
    }

    fn conversion(&self) -> Option<&Conversion> {
        self.conversion.as_ref()
    }

    fn merges_strategically(&self) -> bool {
        false
    }

    fn counts_every_change(&self) -> bool {
        true
    }

    fn open_api(&self) -> Option<&str> {
        Some(&self.published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_sorted_as_kubernetes_prefers_them() {
        let mut list = ["foo1", "v1alpha1", "v1", "v10", "v2", "v2beta1", "v1beta2", "bar"];
        list.sort_by_key(|version| priority(version));
        assert_eq!(list, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "bar", "foo1"]);
    }
}
