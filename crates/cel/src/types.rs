//! Types of expressions.

use std::fmt;
use std::sync::Arc;

/// A type with fields that are known by name.
pub trait Structure: Send + Sync {
    /// `Object.spec`, `io.k8s.api.core.v1.PodSpec`
    fn name(&self) -> &str;

    /// The type of a field, by its name in the data.
    fn field(&self, name: &str) -> Option<Type>;
}

/// A structure of a few known fields.
pub struct Fields {
    pub name: String,
    pub fields: Vec<(String, Type)>,
}

impl Fields {
    /// A type from its fields.
    pub fn structure(name: &str, fields: &[(&str, Type)]) -> Type {
        let fields = fields.iter().map(|(field, ty)| ((*field).to_owned(), ty.clone())).collect();
        Type::Struct(Arc::new(Self { name: name.to_owned(), fields }))
    }
}

impl Structure for Fields {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, name: &str) -> Option<Type> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, ty)| ty.clone())
    }
}

/// What an expression may give.
#[derive(Clone)]
pub enum Type {
    /// Anything; checked when it is evaluated.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Struct(Arc<dyn Structure>),
    /// A type of a library: `kubernetes.Quantity`
    Opaque(&'static str),
    Optional(Arc<Type>),
    /// The type of types
    Type,
    /// A type that a signature leaves open
    Param(u8),
}

impl Type {
    /// A list of something.
    pub fn list(item: Type) -> Self {
        Type::List(Arc::new(item))
    }

    /// A map with text keys.
    pub fn map(value: Type) -> Self {
        Type::Map(Arc::new(Type::String), Arc::new(value))
    }

    pub(crate) fn optional(inner: Type) -> Self {
        Type::Optional(Arc::new(inner))
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Param(_))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Struct(structure) => f.write_str(structure.name()),
            Type::Opaque(name) => f.write_str(name),
            Type::Optional(inner) => write!(f, "optional_type({inner})"),
            Type::Type => f.write_str("type"),
            Type::Param(index) => write!(f, "{}", char::from(b'A' + index)),
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a == b,
            (Type::Map(a, b), Type::Map(c, d)) => a == c && b == d,
            (Type::Struct(a), Type::Struct(b)) => a.name() == b.name(),
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// What the open types of a signature turned out to be.
#[derive(Default, Clone)]
pub(crate) struct Found([Option<Type>; 4]);

impl Found {
    /// A type with what is known put in; what is not known may be anything.
    pub(crate) fn fill(&self, ty: &Type) -> Type {
        match ty {
            Type::Param(index) => self.0[usize::from(*index)].clone().unwrap_or(Type::Dyn),
            Type::List(item) => Type::list(self.fill(item)),
            Type::Optional(inner) => Type::optional(self.fill(inner)),
            Type::Map(key, value) => Type::Map(Arc::new(self.fill(key)), Arc::new(self.fill(value))),
            other => other.clone(),
        }
    }

    /// Whether a value of type `is` may be given where `want` is asked for.
    pub(crate) fn takes(&mut self, want: &Type, is: &Type) -> bool {
        match (want, is) {
            (Type::Param(index), is) => {
                let slot = usize::from(*index);
                match self.0[slot].clone() {
                    None => {
                        self.0[slot] = Some(is.clone());
                        true
                    }
                    Some(known) if known.is_dyn() => true,
                    Some(known) => {
                        let fits = fits(&known, is) || fits(is, &known);
                        if matches!(known, Type::Null) && fits {
                            self.0[slot] = Some(is.clone());
                        }
                        fits
                    }
                }
            }
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.takes(a, b),
            (Type::Map(a, b), Type::Map(c, d)) => self.takes(a, c) && self.takes(b, d),
            (want, is) => fits(want, is),
        }
    }
}

/// Whether a value of type `is` may stand for one of type `want`.
pub(crate) fn fits(want: &Type, is: &Type) -> bool {
    match (want, is) {
        (a, b) if a.is_dyn() || b.is_dyn() => true,
        (
            Type::Struct(_) | Type::Timestamp | Type::Duration | Type::Opaque(_) | Type::Optional(_),
            Type::Null,
        ) => true,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => fits(a, b),
        (Type::Map(a, b), Type::Map(c, d)) => fits(a, c) && fits(b, d),
        (a, b) => a == b,
    }
}

/// The type of values of both types: one of them, or anything.
pub(crate) fn join(a: &Type, b: &Type) -> Option<Type> {
    if a.is_dyn() || b.is_dyn() {
        return Some(Type::Dyn);
    }
    if fits(a, b) {
        return Some(a.clone());
    }
    fits(b, a).then(|| b.clone())
}
