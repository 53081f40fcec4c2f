//! Request bodies in Kubernetes' protobuf form, read by the schema table's field numbers.
//!
//! ```text
//!   "k8s\0"  Unknown { typeMeta = 1 { apiVersion = 1, kind = 2 }, raw = 2 }      raw: the object, by its schema
//! ```
//! Go writes plain numbers, booleans and strings even when they are zero, and leaves pointers out when they are nil; the
//! schema does not tell the two apart. So zeros are dropped, as JSON's `omitempty` does, except where a field is
//! required or is a pointer (`pointers.txt`).

use std::collections::HashSet;
use std::sync::LazyLock;

use api::{Field, FieldType, SchemaTable, TypeDef, TypeId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused.
const MAX_DEPTH: usize = 64;

/// Fields of type IntOrString that are pointers in Go.
const POINTED_INT_OR_STRING: [&str; 4] = ["maxSurge", "maxUnavailable", "minAvailable", "port"];
/// Pointers to scalars in Go, by type: their zero differs from their absence.
static POINTERS: LazyLock<HashSet<(&'static str, &'static str)>> = LazyLock::new(|| {
    let lines = include_str!("pointers.txt").lines().filter(|line| !line.starts_with('#'));
    let words = lines.filter_map(|line| line.split_once(' '));
    words.flat_map(|(ty, fields)| fields.split_whitespace().map(move |field| (ty, field))).collect()
});

/// Reads a body; apiVersion and kind come from the envelope.
///
/// # Errors
/// What is wrong, for a BadRequest.
pub(crate) fn decode(table: &SchemaTable, ty: TypeId, body: &[u8]) -> Result<Value, String> {
    let body = body.strip_prefix(MAGIC).ok_or("the body does not begin with the protobuf prefix")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = message(table, ty, raw, None, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// A field's value on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("truncated protobuf")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("malformed protobuf number".into())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("truncated protobuf")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), String> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "malformed protobuf tag")?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| "truncated protobuf")?))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "truncated protobuf")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| "truncated protobuf")?))
            }
            _ => return Err("unknown protobuf wire type".into()),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a protobuf string is no UTF-8".into())
}

/// An object, or the part of it that Go inlines as the message field `inlined`.
fn message(
    table: &SchemaTable,
    ty: TypeId,
    bytes: &[u8],
    inlined: Option<u32>,
    depth: usize,
) -> Result<Map<String, Value>, String> {
    if depth > MAX_DEPTH {
        return Err("the protobuf message is nested too deeply".into());
    }
    let ty_def = table.get(ty);
    let fields = &ty_def.fields;
    let mut out = Map::new();
    for item in Fields(bytes) {
        let (number, wire) = item?;
        if let Some(field) =
            fields.iter().find(|f| f.inlined_in == inlined && f.number == number && number > 0)
        {
            add(table, ty_def, field, wire, &mut out, depth)?;
        } else if inlined.is_none()
            && fields.iter().any(|f| f.inlined_in == Some(number))
            && let Wire::Bytes(part) = wire
        {
            out.append(&mut message(table, ty, part, Some(number), depth + 1)?);
        }
    }
    Ok(out)
}

fn add(
    table: &SchemaTable,
    owner: &TypeDef,
    field: &Field,
    wire: Wire<'_>,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    let name = field.name.as_ref();
    match &field.ty {
        FieldType::List(inner) => {
            let list = out.entry(name).or_insert_with(|| json!([]));
            let Value::Array(list) = list else { return Err(format!("{name} is no list")) };
            list.push(value(table, inner, wire, depth)?.unwrap_or(Value::Null));
        }
        FieldType::Map(inner) => {
            let Wire::Bytes(entry) = wire else { return Err(format!("{name} is no map")) };
            let (mut key, mut item) = (String::new(), None);
            for part in Fields(entry) {
                match part? {
                    (1, Wire::Bytes(text)) => key = utf8(text)?,
                    (2, wire) => item = map_value(table, inner, wire, depth)?,
                    _ => {}
                }
            }
            let map = out.entry(name).or_insert_with(|| json!({}));
            let Value::Object(map) = map else { return Err(format!("{name} is no map")) };
            map.insert(key, item.unwrap_or_else(|| json!("")));
        }
        ty => {
            let value = value(table, ty, wire, depth)?;
            let keep = field.required || is_pointer(owner, field);
            if let Some(value) = value.filter(|value| keep || !is_zero(value)) {
                out.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// Lists as values of a map are a message with the items in field 1.
fn map_value(
    table: &SchemaTable,
    ty: &FieldType,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Option<Value>, String> {
    match (ty, wire) {
        (FieldType::List(inner), Wire::Bytes(bytes)) => {
            let mut items = Vec::new();
            for part in Fields(bytes) {
                if let (1, wire) = part? {
                    items.extend(value(table, inner, wire, depth + 1)?);
                }
            }
            Ok(Some(items.into()))
        }
        (_, wire) => value(table, ty, wire, depth),
    }
}

/// An integer or string behind a pointer counts as the scalar that it stands for.
fn is_pointer(owner: &TypeDef, field: &Field) -> bool {
    field.ty == FieldType::IntOrString && POINTED_INT_OR_STRING.contains(&field.name.as_ref())
        || POINTERS.contains(&(owner.name.as_ref(), field.name.as_ref()))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) => false,
        // An empty struct behind a pointer is a choice: `emptyDir: {}`.
        Value::Object(_) => false,
    }
}

fn value(table: &SchemaTable, ty: &FieldType, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    Ok(match (ty, wire) {
        (FieldType::String, Wire::Bytes(bytes)) => Some(utf8(bytes)?.into()),
        (FieldType::Bytes, Wire::Bytes(bytes)) => Some(STANDARD.encode(bytes).into()),
        (FieldType::Boolean, Wire::Varint(number)) => Some((number != 0).into()),
        // Negative numbers are written as their two's complement.
        (FieldType::Int32 | FieldType::Int64, Wire::Varint(number)) => Some(number.cast_signed().into()),
        (FieldType::Double, Wire::Fixed64(bits)) => Some(f64::from_bits(bits).into()),
        (FieldType::Double, Wire::Fixed32(bits)) => Some(f64::from(f32::from_bits(bits)).into()),
        (FieldType::Ref(inner), Wire::Bytes(bytes)) => {
            Some(Value::Object(message(table, *inner, bytes, None, depth + 1)?))
        }
        (FieldType::Time | FieldType::MicroTime, Wire::Bytes(bytes)) => time(ty, bytes)?,
        (FieldType::IntOrString, Wire::Bytes(bytes)) => Some(int_or_string(bytes)?),
        (FieldType::Quantity, Wire::Bytes(bytes)) => {
            let text = first_bytes(bytes, 1)?.map(utf8).transpose()?;
            Some(text.unwrap_or_else(|| "0".to_owned()).into())
        }
        (FieldType::Any, Wire::Bytes(bytes)) => match first_bytes(bytes, 1)? {
            Some(raw) if !raw.is_empty() => {
                Some(serde_json::from_slice(raw).map_err(|e| format!("embedded JSON: {e}"))?)
            }
            _ => None,
        },
        _ => return Err("a protobuf field has the wrong wire type".into()),
    })
}

fn first_bytes(bytes: &[u8], number: u32) -> Result<Option<&[u8]>, String> {
    for field in Fields(bytes) {
        if let (found, Wire::Bytes(content)) = field?
            && found == number
        {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// `{seconds = 1, nanos = 2}`; an empty message is no time.
fn time(ty: &FieldType, bytes: &[u8]) -> Result<Option<Value>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = i32::try_from(number).unwrap_or(0),
            _ => {}
        }
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
    let text = if *ty == FieldType::Time { api::time::seconds(time) } else { api::time::micros(time) };
    Ok(Some(text.into()))
}

/// `{type = 1 (0 integer, 1 string), intVal = 2, strVal = 3}`
fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut kind, mut number, mut text) = (0, 0i64, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(value)) => kind = value,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(value)?,
            _ => {}
        }
    }
    Ok(if kind == 0 { number.into() } else { text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(out: &mut Vec<u8>, number: u8, content: &[u8]) {
        out.extend([number << 3 | 2, u8::try_from(content.len()).unwrap()]);
        out.extend(content);
    }

    fn body(kind: &str, api_version: &str, raw: &[u8]) -> Vec<u8> {
        let mut meta = Vec::new();
        put(&mut meta, 1, api_version.as_bytes());
        put(&mut meta, 2, kind.as_bytes());
        let mut out = MAGIC.to_vec();
        put(&mut out, 1, &meta);
        put(&mut out, 2, raw);
        out
    }

    /// ConfigMap { metadata = 1 { name = 1, namespace = 3, creationTimestamp = 8 }, data = 2, immutable = 4 }
    #[test]
    fn a_config_map_is_read() {
        let table = schema::table();
        let ty = table.kind("", "v1", "ConfigMap").unwrap();
        let (mut meta, mut entry, mut raw) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut meta, 1, b"a");
        put(&mut meta, 3, b"");
        put(&mut meta, 8, b"");
        put(&mut entry, 1, b"k");
        put(&mut entry, 2, b"v");
        put(&mut raw, 1, &meta);
        put(&mut raw, 2, &entry);
        let got = decode(&table, ty, &body("ConfigMap", "v1", &raw)).unwrap();
        let want =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
        assert_eq!(got, want);
    }

    /// Pod { spec = 2 { volumes = 1 { name = 1, volumeSource = 2 (inlined) { emptyDir = 2 } }, containers = 2 {…} } }
    #[test]
    fn inlined_structs_are_flat() {
        let table = schema::table();
        let ty = table.kind("", "v1", "Pod").unwrap();
        let (mut source, mut volume, mut spec, mut raw) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        put(&mut source, 2, b"");
        put(&mut volume, 1, b"scratch");
        put(&mut volume, 2, &source);
        put(&mut spec, 1, &volume);
        put(&mut raw, 2, &spec);
        let got = decode(&table, ty, &body("Pod", "v1", &raw)).unwrap();
        assert_eq!(got["spec"]["volumes"][0]["name"], "scratch");
    }

    /// Deployment { spec = 2 { replicas = 1 (pointer), minReadySeconds = 5, paused = 7 } }
    #[test]
    fn zeros_behind_pointers_count() {
        let table = schema::table();
        let ty = table.kind("apps", "v1", "Deployment").unwrap();
        let mut raw = Vec::new();
        put(&mut raw, 2, &[1 << 3, 0, 5 << 3, 0, 7 << 3, 0]);
        let got = decode(&table, ty, &body("Deployment", "apps/v1", &raw)).unwrap();
        assert_eq!(got["spec"], json!({"replicas": 0}));
    }

    #[test]
    fn listed_pointers_exist() {
        let table = schema::table();
        for (ty, field) in POINTERS.iter() {
            let Some(id) = table.by_name(ty) else { continue };
            assert!(table.get(id).field(field).is_some(), "{ty} {field}");
        }
        let core = ("io.k8s.api.core.v1.PersistentVolumeClaimSpec", "storageClassName");
        assert!(POINTERS.contains(&core), "an empty class is a choice");
    }

    #[test]
    fn damage_is_refused() {
        let table = schema::table();
        let ty = table.kind("", "v1", "ConfigMap").unwrap();
        let good = body("ConfigMap", "v1", &[0x0a, 0x03, 0x0a, 0x01, b'a']);
        assert!(decode(&table, ty, &good).is_ok());
        for cut in 1..good.len() {
            // Every cut is either refused or an object; never a panic.
            drop(decode(&table, ty, &good[..cut]));
        }
        assert!(decode(&table, ty, b"nonsense").is_err());
        assert!(decode(&table, ty, &good[..good.len() - 1]).is_err());
    }
}
