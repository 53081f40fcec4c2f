//! `/openapi/v2`: all groups in one Swagger 2.0 document, as JSON or in the protobuf form that Go clients ask for.
//!
//! kubectl reads it when a manifest's kind is not among the v3 documents, to find out that there is no such kind.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use api::{ApiResponse, ResponseBody};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{VERSION, build};
use crate::resource::{Resource, ResourceSet};

const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const PROTOBUF_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// What one group version adds to the document, in both forms.
struct Piece {
    /// The rows that it was made from.
    shape: String,
    paths: BTreeMap<String, Part>,
    definitions: BTreeMap<String, Part>,
}

/// The value of one name.
struct Part {
    json: String,
    binary: Vec<u8>,
}

/// The document in both forms, and the pieces that it was made from.
#[derive(Default)]
struct Made {
    pieces: BTreeMap<(String, String), Arc<Piece>>,
    json: Bytes,
    binary: Bytes,
}

/// When a kind comes or goes only its own group is made anew: clients read this document often while they wait for a kind.
static CACHE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);

/// The document in the form that the client prefers.
pub(super) fn document(resources: &ResourceSet, accept: &str) -> ApiResponse {
    let mut made = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let pieces = pieces(resources, &made.pieces);
    let same = pieces.len() == made.pieces.len()
        && pieces.iter().zip(&made.pieces).all(|((a, new), (b, old))| a == b && Arc::ptr_eq(new, old));
    if !same || made.json.is_empty() {
        *made = Made { json: json_of(&pieces), binary: binary_of(&pieces), pieces };
    }
    if !accept.contains(PROTOBUF) {
        return ApiResponse::json(200, made.json.clone());
    }
    let body = ResponseBody::Bytes(vec![made.binary.clone()]);
    ApiResponse { code: 200, content_type: PROTOBUF_TYPE.into(), body, warnings: Vec::new() }
}

type Pieces = BTreeMap<(String, String), Arc<Piece>>;

/// The pieces of all groups; those whose rows are as before are the ones from before.
fn pieces(resources: &ResourceSet, before: &Pieces) -> Pieces {
    let groups = resources.group_versions().into_iter();
    let piece = |(group, version): (String, String)| {
        let of_group = |row: &&Resource| row.gvr.group == group && row.gvr.version == version;
        let rows: Vec<&Resource> = resources.iter().map(AsRef::as_ref).filter(of_group).collect();
        let shape = super::shape(&rows);
        let key = (group, version);
        let old = before.get(&key).filter(|piece| piece.shape == shape);
        let piece = old.map_or_else(|| Arc::new(Piece::new(shape, &rows)), Arc::clone);
        (key, piece)
    };
    groups.map(piece).collect()
}

impl Piece {
    fn new(shape: String, rows: &[&Resource]) -> Self {
        let document = build(rows);
        let parts = |map: &Value, convert: fn(&Value) -> Value, encode: fn(&Value) -> Message| {
            let part = |(name, value): (&String, &Value)| {
                let value = convert(value);
                (name.clone(), Part { json: value.to_string(), binary: encode(&value).0 })
            };
            members(map).map(part).collect()
        };
        Self {
            shape,
            paths: parts(&document["paths"], path_item, encode_path_item),
            definitions: parts(&document["components"]["schemas"], definition, encode_schema),
        }
    }
}

/// All parts of a kind by name; groups share the definitions of meta types.
fn merged(pieces: &Pieces, parts: fn(&Piece) -> &BTreeMap<String, Part>) -> BTreeMap<&str, &Part> {
    pieces.values().flat_map(|piece| parts(piece)).map(|(name, part)| (name.as_str(), part)).collect()
}

fn json_of(pieces: &Pieces) -> Bytes {
    let head = json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": VERSION}}).to_string();
    let mut out = head.strip_suffix('}').unwrap_or_default().to_owned();
    for (name, parts) in
        [("paths", merged(pieces, |p| &p.paths)), ("definitions", merged(pieces, |p| &p.definitions))]
    {
        out.push_str(&format!(",{name:?}:{{"));
        for (index, (name, part)) in parts.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(&Value::from(name).to_string());
            out.push(':');
            out.push_str(&part.json);
        }
        out.push('}');
    }
    out.push('}');
    out.into()
}

fn binary_of(pieces: &Pieces) -> Bytes {
    let named = |number: usize, parts: BTreeMap<&str, &Part>| {
        parts.into_iter().fold(Message::default(), |mut message, (name, part)| {
            let mut pair = Message::default();
            pair.bytes(1, name.as_bytes());
            pair.bytes(2, &part.binary);
            message.bytes(number, &pair.0);
            message
        })
    };
    let info = Message::default().text(1, &json!("Kubernetes")).text(2, &json!(VERSION));
    let start = Message::default().text(1, &json!("2.0")).message(2, &info);
    let paths = named(2, merged(pieces, |p| &p.paths));
    let definitions = named(1, merged(pieces, |p| &p.definitions));
    start.message(8, &paths).message(9, &definitions).0.into()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Marks a schema that keeps fields it doesn't name.
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

/// A kind's schema. One that keeps unknown fields is published as a bare object: clients of v2 would refuse what it
/// doesn't name.
fn definition(value: &Value) -> Value {
    const KIND: &str = "x-kubernetes-group-version-kind";
    if value.get(KIND).is_some() && value[OPEN] == true {
        return json!({"type": "object", KIND: value[KIND]});
    }
    schema(value)
}

/// A v3 schema as a v2 schema.
fn schema(value: &Value) -> Value {
    let Value::Object(map) = value else {
        return match value {
            Value::Array(list) => list.iter().map(schema).collect(),
            other => other.clone(),
        };
    };
    let mut out = Map::new();
    for (key, value) in map {
        match (key.as_str(), value) {
            ("$ref", Value::String(target)) => {
                out.insert(key.clone(), target.replace("#/components/schemas/", "#/definitions/").into());
            }
            // A reference with siblings; v2 readers take it as it is.
            ("allOf", Value::Array(list)) if list.len() == 1 => {
                out.extend(members(&schema(&list[0])).map(|(key, value)| (key.clone(), value.clone())))
            }
            // Values of two types; v2 knows one and a format.
            ("oneOf", Value::Array(list)) => {
                out.insert("type".into(), "string".into());
                if list.iter().any(|one| one["type"] == "integer") {
                    out.insert("format".into(), "int-or-string".into());
                }
            }
            _ => {
                out.insert(key.clone(), schema(value));
            }
        }
    }
    if out.get(OPEN) == Some(&Value::Bool(true)) {
        out.remove("properties");
        out.remove("items");
        out.retain(|key, value| key != "type" || !matches!(value.as_str(), Some("object" | "array")));
    }
    Value::Object(out)
}

fn path_item(item: &Value) -> Value {
    let convert = |(key, value): (&String, &Value)| {
        let value = match key.as_str() {
            "parameters" => items(value).map(parameter).collect(),
            _ => operation(value),
        };
        (key.clone(), value)
    };
    Value::Object(members(item).map(convert).collect())
}

fn parameter(parameter: &Value) -> Value {
    json!({
        "name": parameter["name"], "in": parameter["in"], "required": parameter["required"],
        "type": parameter["schema"]["type"],
    })
}

fn operation(operation: &Value) -> Value {
    let mut parameters: Vec<Value> = items(&operation["parameters"]).map(parameter).collect();
    let content = &operation["requestBody"]["content"];
    let consumes: Vec<&String> = members(content).map(|(name, _)| name).collect();
    if let Some((_, body)) = members(content).next() {
        parameters
            .push(json!({"name": "body", "in": "body", "required": true, "schema": schema(&body["schema"])}));
    }
    let answer = |(code, response): (&String, &Value)| {
        let mut answer = json!({"description": response["description"]});
        if let Some((_, content)) = members(&response["content"]).next() {
            answer["schema"] = schema(&content["schema"]);
        }
        (code.clone(), answer)
    };
    let responses: Map<String, Value> = members(&operation["responses"]).map(answer).collect();
    let mut out = json!({
        "operationId": operation["operationId"], "tags": operation["tags"], "consumes": consumes,
        "produces": ["application/json"], "parameters": parameters, "responses": responses,
    });
    for (name, value) in members(operation).filter(|(name, _)| name.starts_with("x-")) {
        out[name] = value.clone();
    }
    out
}

/// A protobuf message being written. The numbers are those of gnostic's `openapi.v2` messages.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or(0));
    }

    fn bytes(&mut self, number: usize, content: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(content.len());
        self.0.extend_from_slice(content);
    }

    fn text(mut self, number: usize, value: &Value) -> Self {
        if let Some(text) = value.as_str() {
            self.bytes(number, text.as_bytes());
        }
        self
    }

    fn texts(self, number: usize, list: &Value) -> Self {
        items(list).fold(self, |message, text| message.text(number, text))
    }

    fn flag(mut self, number: usize, value: &Value) -> Self {
        if value.as_bool() == Some(true) {
            self.varint(number << 3);
            self.varint(1);
        }
        self
    }

    fn message(mut self, number: usize, content: &Message) -> Self {
        self.bytes(number, &content.0);
        self
    }

    /// A message made of a value, if there is one.
    fn made(self, number: usize, value: &Value, make: fn(&Value) -> Message) -> Self {
        if value.is_null() { self } else { self.message(number, &make(value)) }
    }

    /// One `{name = 1, value = 2}` for each member that is wanted.
    fn named(
        self,
        number: usize,
        map: &Value,
        wanted: fn(&str) -> bool,
        make: fn(&Value) -> Message,
    ) -> Self {
        members(map).filter(|(name, _)| wanted(name)).fold(self, |message, (name, value)| {
            let pair = Message::default().text(1, &json!(name)).message(2, &make(value));
            message.message(number, &pair)
        })
    }

    fn extensions(self, number: usize, map: &Value) -> Self {
        self.named(number, map, |name| name.starts_with("x-"), any)
    }
}

fn every(_: &str) -> bool {
    true
}

/// Any value as YAML text, of which JSON is a part.
fn any(value: &Value) -> Message {
    Message::default().text(2, &json!(value.to_string()))
}

fn encode_path_item(item: &Value) -> Message {
    let methods = BTreeMap::from([("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)]);
    let message = methods.into_iter().fold(Message::default(), |message, (method, number)| {
        message.made(number, &item[method], encode_operation)
    });
    items(&item["parameters"]).fold(message, |message, p| message.message(9, &encode_parameter(p)))
}

fn encode_operation(operation: &Value) -> Message {
    let message = Message::default()
        .texts(1, &operation["tags"])
        .text(5, &operation["operationId"])
        .texts(6, &operation["produces"])
        .texts(7, &operation["consumes"]);
    let parameters = items(&operation["parameters"]);
    let message = parameters.fold(message, |message, p| message.message(8, &encode_parameter(p)));
    let responses = Message::default().named(1, &operation["responses"], every, encode_response);
    message.message(9, &responses).extensions(13, operation)
}

/// Each choice is a message around the chosen one.
fn within(number: usize, message: &Message) -> Message {
    Message::default().message(number, message)
}

fn encode_parameter(parameter: &Value) -> Message {
    if parameter["in"] == "body" {
        let body = Message::default()
            .text(2, &parameter["name"])
            .text(3, &parameter["in"])
            .flag(4, &parameter["required"])
            .made(5, &parameter["schema"], encode_schema);
        return within(1, &within(1, &body));
    }
    let path = parameter["in"] == "path";
    let (choice, type_number) = if path { (4, 5) } else { (3, 6) };
    let common = Message::default()
        .flag(1, &parameter["required"])
        .text(2, &parameter["in"])
        .text(4, &parameter["name"])
        .text(type_number, &parameter["type"]);
    within(1, &within(2, &within(choice, &common)))
}

fn encode_response(response: &Value) -> Message {
    let wrapped = |schema: &Value| within(1, &encode_schema(schema));
    let message = Message::default().text(1, &response["description"]);
    within(1, &message.made(2, &response["schema"], wrapped))
}

fn encode_schema(schema: &Value) -> Message {
    let one = |schema: &Value| within(1, &encode_schema(schema));
    let type_ = |name: &Value| Message::default().text(1, name);
    let properties = |map: &Value| Message::default().named(1, map, every, encode_schema);
    Message::default()
        .text(1, &schema["$ref"])
        .text(2, &schema["format"])
        .text(4, &schema["description"])
        .made(5, &schema["default"], any)
        .texts(19, &schema["required"])
        .made(21, &schema["additionalProperties"], one)
        .made(22, &schema["type"], type_)
        .made(23, &schema["items"], one)
        .made(25, &schema["properties"], properties)
        .extensions(31, schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_unknown_fields_names_none() {
        let inner = json!({"type": "object", "description": "d", OPEN: true, "properties": {"a": {"type": "string"}}});
        let gvk = json!([{"group": "g", "version": "v1", "kind": "K"}]);
        let closed =
            json!({"type": "object", "x-kubernetes-group-version-kind": gvk, "properties": {"spec": inner}});
        assert_eq!(definition(&closed)["properties"]["spec"], json!({"description": "d", OPEN: true}));
        let mut open = closed;
        open[OPEN] = true.into();
        assert_eq!(definition(&open), json!({"type": "object", "x-kubernetes-group-version-kind": gvk}));
    }
}
