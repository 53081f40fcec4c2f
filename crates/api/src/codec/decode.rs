//! Decoding under a schema: one pass finds unknown and duplicate fields, checks types and drops what is unknown.

use std::cell::RefCell;
use std::fmt;

use base64::Engine;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{FieldType, GroupVersionKind, Object, Quantity, SchemaTable, Status, TypeId, time};

/// What to do with unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// They are an error.
    Strict,
    /// They are dropped and reported as warnings.
    #[default]
    Warn,
    /// They are dropped.
    Ignore,
}

impl Mode {
    /// Reads a `fieldValidation` parameter; absent means `Warn`.
    ///
    /// # Errors
    /// A text for a BadRequest.
    pub fn parse(text: Option<&str>) -> Result<Self, String> {
        match text.unwrap_or_default() {
            "Strict" => Ok(Mode::Strict),
            "" | "Warn" => Ok(Mode::Warn),
            "Ignore" => Ok(Mode::Ignore),
            other => Err(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            )),
        }
    }
}

/// Most unknown and duplicate fields that are reported of one body.
const MAX_FINDINGS: usize = 100;

/// A decoded object; `warnings` are texts for `Warning` headers.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub object: Object,
    pub warnings: Vec<String>,
}

/// Why a body is no object of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// No JSON or YAML, or no object.
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong type; the text names the field.
    #[error("{0}")]
    Type(String),
}

impl DecodeError {
    /// The BadRequest for an object of this kind, in Kubernetes' words.
    pub fn status(&self, gvk: &GroupVersionKind) -> Status {
        let kind = &gvk.kind;
        Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {self}",
            gvk.version
        ))
    }
}

impl From<DecodeError> for Status {
    fn from(error: DecodeError) -> Self {
        Status::bad_request(error.to_string())
    }
}

/// Decodes JSON.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_json(
    table: &SchemaTable,
    ty: TypeId,
    bytes: &[u8],
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    let mut source = serde_json::Deserializer::from_slice(bytes);
    run(table, ty, mode, false, |walk| {
        let value = walk.deserialize(&mut source).map_err(|e| e.to_string())?;
        source.end().map_err(|e| e.to_string())?;
        Ok(value)
    })
}

/// Decodes YAML (of which JSON is a subset).
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_yaml(
    table: &SchemaTable,
    ty: TypeId,
    bytes: &[u8],
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    let source = serde_yaml_ng::Deserializer::from_slice(bytes);
    run(table, ty, mode, true, |walk| walk.deserialize(source).map_err(|e| format!("yaml: {e}")))
}

/// Checks a tree that came from elsewhere (a patch) the same way; duplicates cannot be seen any more.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_value(
    table: &SchemaTable,
    ty: TypeId,
    value: Value,
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    run(table, ty, mode, false, |walk| walk.deserialize(value).map_err(|e| e.to_string()))
}

fn run(
    table: &SchemaTable,
    ty: TypeId,
    mode: Mode,
    yaml: bool,
    read: impl FnOnce(Walk<'_>) -> Result<Value, String>,
) -> Result<Decoded, DecodeError> {
    let state = State {
        table,
        yaml,
        path: RefCell::default(),
        found: RefCell::default(),
        failure: RefCell::default(),
    };
    let root = FieldType::Ref(ty);
    let value = read(Walk { state: &state, ty: &root, owner: "" });
    if let Some(failure) = state.failure.into_inner() {
        return Err(DecodeError::Type(failure));
    }
    let object = match value {
        Ok(Value::Object(map)) => Object(map),
        Ok(_) => return Err(DecodeError::Syntax("the body holds no object".into())),
        Err(text) => return Err(DecodeError::Syntax(text)),
    };
    let found = state.found.into_inner();
    match mode {
        Mode::Strict if !found.is_empty() => Err(DecodeError::Strict(found)),
        Mode::Strict | Mode::Ignore => Ok(Decoded { object, warnings: Vec::new() }),
        Mode::Warn => Ok(Decoded { object, warnings: found }),
    }
}

enum Step {
    Name(String),
    Index(usize),
}

struct State<'t> {
    table: &'t SchemaTable,
    yaml: bool,
    path: RefCell<Vec<Step>>,
    /// Unknown and duplicate fields, in order of occurrence.
    found: RefCell<Vec<String>>,
    /// The first type error; kept here because the formats add positions to error texts.
    failure: RefCell<Option<String>>,
}

impl State<'_> {
    fn path(&self) -> String {
        let mut out = String::new();
        for step in self.path.borrow().iter() {
            match step {
                Step::Index(i) => out.push_str(&format!("[{i}]")),
                Step::Name(name) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                }
            }
        }
        out
    }

    fn report(&self, what: &str) {
        let mut found = self.found.borrow_mut();
        if found.len() >= MAX_FINDINGS {
            return;
        }
        let text = format!("{what} field {:?}", self.path());
        if !found.contains(&text) {
            found.push(text);
        }
    }

    fn fail<E: serde::de::Error>(&self, text: String) -> E {
        let error = E::custom(&text);
        self.failure.borrow_mut().get_or_insert(text);
        error
    }
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    state: &'a State<'a>,
    ty: &'a FieldType,
    /// Name of the type that holds the field, for error texts.
    owner: &'a str,
}

/// The value that Go leaves for an explicit null.
fn zero(ty: &FieldType) -> Value {
    match ty {
        FieldType::String | FieldType::Bytes => Value::String(String::new()),
        FieldType::Quantity => Value::String("0".into()),
        FieldType::Boolean => Value::Bool(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::Double | FieldType::IntOrString => 0.into(),
        FieldType::Ref(_) => Value::Object(Map::new()),
        FieldType::Time | FieldType::MicroTime | FieldType::Any | FieldType::List(_) | FieldType::Map(_) => {
            Value::Null
        }
    }
}

fn go_type(ty: &FieldType) -> &'static str {
    match ty {
        FieldType::String => "string",
        FieldType::Time => "v1.Time",
        FieldType::MicroTime => "v1.MicroTime",
        FieldType::Bytes => "[]uint8",
        FieldType::Boolean => "bool",
        FieldType::Int32 => "int32",
        FieldType::Int64 => "int64",
        FieldType::Double => "float64",
        FieldType::IntOrString => "intstr.IntOrString",
        FieldType::Quantity => "resource.Quantity",
        FieldType::Any => "interface {}",
        FieldType::Ref(_) => "struct",
        FieldType::List(_) => "slice",
        FieldType::Map(_) => "map",
    }
}

impl Walk<'_> {
    fn mismatch<E: serde::de::Error>(&self, got: &str) -> E {
        let path = self.state.path();
        let ty = go_type(self.ty);
        self.state.fail(if path.is_empty() {
            format!("json: cannot unmarshal {got} into Go value of type {ty}")
        } else {
            format!("json: cannot unmarshal {got} into Go struct field {}.{path} of type {ty}", self.owner)
        })
    }

    fn invalid<E: serde::de::Error>(&self, why: &str) -> E {
        let path = self.state.path();
        self.state.fail(format!("{path}: {why}"))
    }

    fn integer<E: serde::de::Error>(&self, number: i128, text: &str) -> Result<Value, E> {
        let fits = match self.ty {
            FieldType::Int32 | FieldType::IntOrString => i32::try_from(number).is_ok(),
            _ => i64::try_from(number).is_ok(),
        };
        match self.ty {
            FieldType::Int32 | FieldType::Int64 | FieldType::IntOrString if fits => {
                Ok(i64::try_from(number).map(Value::from).unwrap_or_default())
            }
            FieldType::Double => Ok(i64::try_from(number).map_or_else(|_| Value::Null, Value::from)),
            FieldType::Any => Ok(serde_json::from_str(text).unwrap_or_default()),
            FieldType::Quantity => self.quantity(text),
            _ => Err(self.mismatch(&format!("number {text}"))),
        }
    }

    fn quantity<E: serde::de::Error>(&self, text: &str) -> Result<Value, E> {
        match Quantity::parse(text.trim()) {
            Ok(quantity) => Ok(Value::String(quantity.to_string())),
            Err(error) => Err(self.invalid(&error.to_string())),
        }
    }

    fn string<E: serde::de::Error>(&self, text: String) -> Result<Value, E> {
        match self.ty {
            FieldType::String | FieldType::IntOrString | FieldType::Any => Ok(Value::String(text)),
            FieldType::Quantity => self.quantity(&text),
            FieldType::Time | FieldType::MicroTime if text.is_empty() => Ok(Value::Null),
            FieldType::Time => {
                time::parse(&text).map(|t| time::seconds(t).into()).map_err(|e| self.invalid(&e))
            }
            FieldType::MicroTime => {
                time::parse(&text).map(|t| time::micros(t).into()).map_err(|e| self.invalid(&e))
            }
            FieldType::Bytes => {
                let packed: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                match base64::engine::general_purpose::STANDARD.decode(&packed) {
                    Ok(_) => Ok(Value::String(packed)),
                    Err(_) => Err(self.invalid("illegal base64 data")),
                }
            }
            _ => Err(self.mismatch("string")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(go_type(self.ty))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        match self.ty {
            FieldType::Boolean | FieldType::Any => Ok(Value::Bool(value)),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.integer(i128::from(value), &value.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.integer(i128::from(value), &value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        match self.ty {
            FieldType::Double | FieldType::Any => {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }
            FieldType::Quantity => self.quantity(&value.to_string()),
            // YAML turns into JSON before Go sees it, and 1.0 is written as 1 there.
            #[allow(clippy::cast_possible_truncation)]
            _ if self.state.yaml && value.fract() == 0.0 && value.abs() < 1e15 => {
                self.integer(value as i128, &value.to_string())
            }
            _ => Err(self.mismatch(&format!("number {value}"))),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.string(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        self.string(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = match self.ty {
            FieldType::List(inner) => inner,
            FieldType::Any => &FieldType::Any,
            _ => return Err(self.mismatch("array")),
        };
        let mut out = Vec::new();
        loop {
            self.state.path.borrow_mut().push(Step::Index(out.len()));
            let Some(item) = items.next_element_seed(Walk { ty: inner, ..self })? else { break };
            self.state.path.borrow_mut().pop();
            out.push(if item.is_null() { zero(inner) } else { item });
        }
        self.state.path.borrow_mut().pop();
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let def = match self.ty {
            FieldType::Ref(id) => Some(self.state.table.get(*id)),
            FieldType::Map(_) | FieldType::Any => None,
            _ => return Err(self.mismatch("object")),
        };
        // A field that was null leaves no entry, so duplicates of nulls are remembered apart.
        let mut nulls: Vec<String> = Vec::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            let repeated = out.contains_key(&key) || nulls.contains(&key);
            let field = def.and_then(|def| def.field(&key));
            // The path keeps the key while its value is read and gives it back, which saves a copy of every key.
            self.state.path.borrow_mut().push(Step::Name(key));
            if repeated {
                self.state.report("duplicate");
            }
            let inner = match (self.ty, def, field) {
                (_, Some(def), Some(field)) => Some((&field.ty, short(&def.name))),
                (_, Some(def), None) if def.preserve_unknown => Some((&FieldType::Any, self.owner)),
                (FieldType::Map(inner), _, _) => Some((&**inner, self.owner)),
                (FieldType::Any, _, _) => Some((&FieldType::Any, self.owner)),
                _ => None,
            };
            let value = match inner {
                Some((ty, owner)) => entries.next_value_seed(Walk { ty, owner, ..self })?,
                None => {
                    self.state.report("unknown");
                    entries.next_value::<serde::de::IgnoredAny>()?;
                    Value::Null
                }
            };
            let Some(Step::Name(key)) = self.state.path.borrow_mut().pop() else { continue };
            match self.ty {
                _ if inner.is_none() => {}
                FieldType::Ref(_) if value.is_null() => {
                    out.remove(&key);
                    if !nulls.contains(&key) {
                        nulls.push(key);
                    }
                }
                FieldType::Map(inner) if value.is_null() => {
                    out.insert(key, zero(inner));
                }
                _ => {
                    out.insert(key, value);
                }
            }
        }
        Ok(Value::Object(out))
    }
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// A key; YAML keys that are numbers or booleans become their text.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<String, D::Error> {
        source.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string key")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}
