//! Values. Objects and lists of the data are looked into, not copied.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use crate::library::{Check, Opaque};
use crate::types::Type;

/// What an expression gives.
#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    List(Arc<Vec<Val<'a>>>),
    Map(Arc<BTreeMap<Key, Val<'a>>>),
    /// A list or an object of the data, and what is known of its type.
    Tree(&'a Json, Type),
    /// An object made by an expression.
    Struct(Arc<Made<'a>>),
    Optional(Option<Arc<Val<'a>>>),
    Opaque(Arc<Opaque>),
    Type(Arc<str>),
}

/// An object made by an expression: `Object.spec{replicas: 3}`.
#[derive(Clone, Debug)]
pub struct Made<'a> {
    /// `Object.spec`
    pub name: String,
    pub fields: BTreeMap<String, Val<'a>>,
}

/// A key of a map. Whole numbers are the same key whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

impl<'a> Val<'a> {
    /// A value of the data. Text becomes a time where the type says so.
    pub fn of(json: &'a Json, ty: &Type) -> Self {
        match json {
            Json::Null => Val::Null,
            Json::Bool(b) => Val::Bool(*b),
            Json::Number(n) => match (ty, n.as_i64()) {
                (Type::Double, _) => Val::Double(n.as_f64().unwrap_or(f64::NAN)),
                (Type::Int, None) => n.as_f64().map_or(Val::Null, whole),
                (_, Some(n)) => Val::Int(n),
                _ => n.as_u64().map_or_else(|| Val::Double(n.as_f64().unwrap_or(f64::NAN)), Val::Uint),
            },
            Json::String(text) => match ty {
                Type::Timestamp => text.parse().map_or_else(|_| Val::text(text), Val::Timestamp),
                Type::Duration => {
                    crate::library::time::parse(text).map_or_else(|| Val::text(text), Val::Duration)
                }
                Type::Bytes => {
                    use base64::Engine as _;
                    let decoded = base64::prelude::BASE64_STANDARD.decode(text);
                    decoded.map_or_else(|_| Val::text(text), |bytes| Val::Bytes(bytes.into()))
                }
                _ => Val::text(text),
            },
            Json::Array(_) | Json::Object(_) => Val::Tree(json, ty.clone()),
        }
    }

    /// Text.
    pub fn text(text: &str) -> Self {
        Val::String(text.into())
    }

    pub(crate) fn list(items: Vec<Val<'a>>) -> Self {
        Val::List(Arc::new(items))
    }

    pub(crate) fn some(inner: Val<'a>) -> Self {
        Val::Optional(Some(Arc::new(inner)))
    }

    pub(crate) const NONE: Val<'static> = Val::Optional(None);

    /// The value's text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Val::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Val::List(items) => Some(items.to_vec()),
            Val::Tree(Json::Array(items), ty) => {
                let item = match ty {
                    Type::List(item) => (**item).clone(),
                    _ => Type::Dyn,
                };
                Some(items.iter().map(|json| Val::of(json, &item)).collect())
            }
            _ => None,
        }
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self, Val::List(_) | Val::Tree(Json::Array(_), _))
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self, Val::Map(_) | Val::Struct(_) | Val::Tree(Json::Object(_), _))
    }

    /// One item of a list.
    pub(crate) fn item(&self, at: usize) -> Option<Val<'a>> {
        match self {
            Val::List(items) => items.get(at).cloned(),
            Val::Tree(Json::Array(items), ty) => {
                let item = match ty {
                    Type::List(item) => (**item).clone(),
                    _ => Type::Dyn,
                };
                items.get(at).map(|json| Val::of(json, &item))
            }
            _ => None,
        }
    }

    /// How many items, entries or characters there are.
    pub(crate) fn size(&self) -> Option<usize> {
        match self {
            Val::String(text) => Some(text.chars().count()),
            Val::Bytes(bytes) => Some(bytes.len()),
            Val::List(items) => Some(items.len()),
            Val::Map(map) => Some(map.len()),
            Val::Tree(Json::Array(items), _) => Some(items.len()),
            Val::Tree(Json::Object(map), _) => Some(map.len()),
            _ => None,
        }
    }

    /// One field of an object or map by its name in the data.
    pub(crate) fn field(&self, name: &str) -> Option<Val<'a>> {
        match self {
            Val::Tree(Json::Object(map), ty) => {
                let ty = match ty {
                    Type::Struct(structure) => structure.field(name).unwrap_or(Type::Dyn),
                    Type::Map(_, value) => (**value).clone(),
                    _ => Type::Dyn,
                };
                map.get(name).map(|json| Val::of(json, &ty))
            }
            Val::Map(map) => map.get(&Key::String(name.into())).cloned(),
            Val::Opaque(opaque) => match (&**opaque, name) {
                (Opaque::Authorizer(user, about), "requestResource") => {
                    let check = Check { user: user.clone(), ..(**about).clone() };
                    Some(Val::Opaque(Arc::new(Opaque::Resource(check))))
                }
                _ => None,
            },
            Val::Struct(made) => made.fields.get(name).cloned(),
            _ => None,
        }
    }

    /// Keys and values of a map or object.
    pub(crate) fn entries(&self) -> Option<Vec<(Key, Val<'a>)>> {
        match self {
            Val::Map(map) => Some(map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
            Val::Tree(Json::Object(map), _) => Some(
                map.keys()
                    .filter_map(|name| Some((Key::String(name.as_str().into()), self.field(name)?)))
                    .collect(),
            ),
            Val::Struct(made) => {
                let entries = made.fields.iter();
                Some(
                    entries.map(|(name, value)| (Key::String(name.as_str().into()), value.clone())).collect(),
                )
            }
            _ => None,
        }
    }

    /// The value as a key of a map.
    pub(crate) fn key(&self) -> Option<Key> {
        Some(match self {
            Val::Bool(b) => Key::Bool(*b),
            Val::Int(n) => Key::Int(*n),
            Val::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Val::Double(n) => match whole(*n) {
                Val::Int(n) => Key::Int(n),
                _ => return None,
            },
            Val::String(text) => Key::String(Arc::clone(text)),
            _ => return None,
        })
    }

    /// The name of the value's type.
    pub(crate) fn type_name(&self) -> &str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::String(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::List(_) | Val::Tree(Json::Array(_), _) => "list",
            Val::Map(_) | Val::Tree(..) => "map",
            Val::Struct(made) => &made.name,
            Val::Optional(_) => "optional_type",
            Val::Opaque(opaque) => opaque.type_name(),
            Val::Type(_) => "type",
        }
    }

    /// Equality as the language defines it: numbers by value, everything else by type and content.
    pub(crate) fn equals(&self, other: &Val<'_>) -> bool {
        if let Some(order) = numbers(self, other) {
            return order == Some(Ordering::Equal);
        }
        match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::String(a), Val::String(b)) | (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Bytes(a), Val::Bytes(b)) => a == b,
            (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
            (Val::Duration(a), Val::Duration(b)) => a == b,
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Val::Opaque(a), Val::Opaque(b)) => a == b,
            (Val::Tree(a, Type::Dyn), Val::Tree(b, Type::Dyn)) if std::ptr::eq(*a, *b) => true,
            (a, b) => {
                if let (Some(a), Some(b)) = (a.items(), b.items()) {
                    return a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.equals(b));
                }
                if let (Some(mut a), Some(mut b)) = (a.entries(), b.entries()) {
                    a.sort_by(|(a, _), (b, _)| a.cmp(b));
                    b.sort_by(|(a, _), (b, _)| a.cmp(b));
                    let same = |((a, x), (b, y)): (&(Key, Val<'_>), &(Key, Val<'_>))| a == b && x.equals(y);
                    return a.len() == b.len() && a.iter().zip(&b).all(same);
                }
                false
            }
        }
    }

    /// Order of values that have one.
    pub(crate) fn order(&self, other: &Val<'_>) -> Option<Ordering> {
        if let Some(order) = numbers(self, other) {
            return order;
        }
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::String(a), Val::String(b)) => Some(a.cmp(b)),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// Whether objects made by the expression stand where their names say: `Object.spec` at `spec` of an `Object`.
    ///
    /// # Errors
    /// What stands in the wrong place.
    pub fn check_places(&self) -> Result<(), String> {
        let Val::Struct(made) = self else { return Ok(()) };
        let place = |field: &str, value: &Val<'a>| {
            let want = format!("{}.{field}", made.name);
            match value {
                Val::Struct(inner) if inner.name != want => Err(format!(
                    "unexpected type name {:?}, expected {want:?}, which matches field name path from root Object type",
                    inner.name
                )),
                other => other.check_places(),
            }
        };
        for (field, value) in &made.fields {
            match value {
                Val::List(items) => items.iter().try_for_each(|item| place(field, item))?,
                other => place(field, other)?,
            }
        }
        Ok(())
    }

    /// The value as JSON: what a patch is made of. `None` for what has no such form.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Val::Null => Json::Null,
            Val::Bool(b) => (*b).into(),
            Val::Int(n) => (*n).into(),
            Val::Uint(n) => (*n).into(),
            Val::Double(n) => (*n).into(),
            Val::String(text) => (&**text).into(),
            Val::Bytes(bytes) => {
                use base64::Engine as _;
                base64::prelude::BASE64_STANDARD.encode(bytes).into()
            }
            Val::Timestamp(time) => time.to_string().into(),
            Val::Duration(duration) => crate::library::time::text(*duration).into(),
            Val::Tree(json, _) => (*json).clone(),
            Val::List(items) => Json::Array(items.iter().map(Val::to_json).collect::<Option<_>>()?),
            Val::Map(_) | Val::Struct(_) => {
                let entries = self.entries()?;
                let mut map = serde_json::Map::new();
                for (key, value) in entries {
                    map.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(map)
            }
            Val::Optional(Some(inner)) => inner.to_json()?,
            Val::Opaque(opaque) => opaque.to_string().into(),
            Val::Optional(None) | Val::Type(_) => return None,
        })
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Bool(b) => write!(f, "{b}"),
            Key::Int(n) => write!(f, "{n}"),
            Key::Uint(n) => write!(f, "{n}"),
            Key::String(text) => f.write_str(text),
        }
    }
}

impl Key {
    pub(crate) fn into_val<'a>(self) -> Val<'a> {
        match self {
            Key::Bool(b) => Val::Bool(b),
            Key::Int(n) => Val::Int(n),
            Key::Uint(n) => Val::Uint(n),
            Key::String(text) => Val::String(text),
        }
    }
}

/// A number without a fraction as an integer.
#[allow(clippy::cast_possible_truncation)] // the range was checked
fn whole<'a>(n: f64) -> Val<'a> {
    let fits = n.fract() == 0.0 && (-9.2e18..=9.2e18).contains(&n);
    if fits { Val::Int(n as i64) } else { Val::Double(n) }
}

/// Order of two numbers of any types; `None` when one is no number.
#[allow(clippy::cast_precision_loss)] // doubles compare as doubles
fn numbers(a: &Val<'_>, b: &Val<'_>) -> Option<Option<Ordering>> {
    let as_double = |val: &Val<'_>| match val {
        Val::Int(n) => Some(*n as f64),
        Val::Uint(n) => Some(*n as f64),
        Val::Double(n) => Some(*n),
        _ => None,
    };
    Some(match (a, b) {
        (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
        (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
        (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (a, b) => as_double(a)?.partial_cmp(&as_double(b)?),
    })
}
