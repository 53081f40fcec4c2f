//! JSON to protobuf in one walk over the source, bytes or a tree, without a tree in between.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::wire;
use crate::schema::{Embedded, Field, FieldType, SchemaTable, TypeDef, TypeId};

/// Appends the message of an encoded object. apiVersion and kind are no part of it.
///
/// # Errors
/// When the bytes are no JSON, or not of the type.
pub fn encode_json(
    table: &SchemaTable,
    ty: TypeId,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let mut source = serde_json::Deserializer::from_slice(json);
    Message { table, ty, out }.deserialize(&mut source)?;
    source.end()
}

/// Appends the message of a tree.
///
/// # Errors
/// When the tree is not of the type.
pub fn encode_value(
    table: &SchemaTable,
    ty: TypeId,
    tree: &Value,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    Message { table, ty, out }.deserialize(tree).map(drop)
}

/// Writes the fields of an object; false when it is null.
struct Message<'a> {
    table: &'a SchemaTable,
    ty: TypeId,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<bool, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of type {}", self.table.get(self.ty).name)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let def = self.table.get(self.ty);
        while let Some(field) = map.next_key_seed(Key(def))? {
            let Some(field) = field.filter(|field| field.number > 0) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let out = &mut *self.out;
            let inlined: Vec<wire::Open> = field.inlined_in.iter().map(|n| wire::open(out, *n)).collect();
            let (number, ty) = (field.number, &field.ty);
            map.next_value_seed(Item { table: self.table, owner: self.ty, field, ty, number, out })?;
            for open in inlined.into_iter().rev() {
                wire::close_unless_empty(out, open);
            }
        }
        Ok(true)
    }
}

/// A field by its JSON name.
struct Key<'a>(&'a TypeDef);

impl<'de, 'a> DeserializeSeed<'de> for Key<'a> {
    type Value = Option<&'a Field>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Self::Value, D::Error> {
        source.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Key<'a> {
    type Value = Option<&'a Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name))
    }
}

/// Writes a value with its tag, or nothing for null. Lists write one tag an item, maps one an entry.
struct Item<'a> {
    table: &'a SchemaTable,
    /// The type that has the field.
    owner: TypeId,
    field: &'a Field,
    ty: &'a FieldType,
    number: u32,
    out: &'a mut Vec<u8>,
}

impl Item<'_> {
    /// The same place for a part of the value.
    fn inner<'b>(&'b mut self, ty: &'b FieldType, number: u32) -> Item<'b> {
        Item { table: self.table, owner: self.owner, field: self.field, ty, number, out: self.out }
    }

    fn embed<'de, D: Deserializer<'de>>(mut self, source: D) -> Result<(), D::Error> {
        if self.field.embedded == Embedded::Raw {
            let raw = Box::<RawValue>::deserialize(source)?;
            let null = raw.get() == "null";
            // An item of a list has its place even when it is null.
            if !null || *self.ty != self.field.ty {
                let message = wire::open(self.out, self.number);
                if !null {
                    wire::bytes(self.out, 1, raw.get().as_bytes());
                }
                wire::close(self.out, message);
            }
            return Ok(());
        }
        let value = Value::deserialize(source)?;
        if value.is_null() {
            return Ok(());
        }
        let message = wire::open(self.out, self.number);
        match (self.field.embedded, &value) {
            (Embedded::Raw | Embedded::Empty, _) => {}
            (Embedded::SchemaOrBool, Value::Bool(allows)) => wire::varint(self.out, 1, u64::from(*allows)),
            (Embedded::SchemaOrBool, schema) => {
                wire::varint(self.out, 1, 1);
                self.schema(2, schema)?;
            }
            (Embedded::SchemaOrList, Value::Array(items)) => {
                items.iter().try_for_each(|item| self.schema(2, item))?;
            }
            (Embedded::SchemaOrStrings, Value::Array(items)) => {
                let texts = items.iter().filter_map(Value::as_str);
                texts.for_each(|text| wire::bytes(self.out, 2, text.as_bytes()));
            }
            (Embedded::SchemaOrList | Embedded::SchemaOrStrings, schema) => self.schema(1, schema)?,
        }
        wire::close(self.out, message);
        Ok(())
    }

    /// A schema within a schema.
    fn schema<E: Error>(&mut self, number: u32, tree: &Value) -> Result<(), E> {
        let nested = wire::open(self.out, number);
        encode_value(self.table, self.owner, tree, self.out).map_err(E::custom)?;
        wire::close(self.out, nested);
        Ok(())
    }

    fn integer<E: Error>(self, value: i64) -> Result<(), E> {
        match self.ty {
            // Negative numbers are written as their two's complement.
            FieldType::Int32 | FieldType::Int64 => {
                wire::varint(self.out, self.number, value.cast_unsigned());
            }
            #[allow(clippy::cast_precision_loss)]
            FieldType::Double => wire::fixed64(self.out, self.number, (value as f64).to_bits()),
            FieldType::Quantity => self.quantity(&value.to_string()),
            FieldType::IntOrString => self.int_or_string(value, ""),
            _ => return Err(self.mismatch()),
        }
        Ok(())
    }

    fn quantity(self, text: &str) {
        let message = wire::open(self.out, self.number);
        wire::bytes(self.out, 1, text.as_bytes());
        wire::close(self.out, message);
    }

    /// `{type = 1 (0 integer, 1 string), intVal = 2, strVal = 3}`
    fn int_or_string(self, number: i64, text: &str) {
        let message = wire::open(self.out, self.number);
        wire::varint(self.out, 1, u64::from(!text.is_empty()));
        wire::varint(self.out, 2, number.cast_unsigned());
        wire::bytes(self.out, 3, text.as_bytes());
        wire::close(self.out, message);
    }

    /// `{seconds = 1, nanos = 2}`
    fn time(self, at: jiff::Timestamp) {
        let message = wire::open(self.out, self.number);
        // Before 1970 both count towards the past; protobuf wants nanos that count forward.
        let behind = at.subsec_nanosecond() < 0;
        let seconds = at.as_second() - i64::from(behind);
        let nanos = i64::from(at.subsec_nanosecond()) + if behind { 1_000_000_000 } else { 0 };
        wire::varint(self.out, 1, seconds.cast_unsigned());
        wire::varint(self.out, 2, nanos.cast_unsigned());
        wire::close(self.out, message);
    }

    fn mismatch<E: Error>(&self) -> E {
        let owner = &self.table.get(self.owner).name;
        E::custom(format_args!("{owner} {}: the value is not of its type", self.field.name))
    }
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        match self.ty {
            FieldType::Any => self.embed(source),
            FieldType::Ref(ty) => {
                let message = wire::open(self.out, self.number);
                let inner = Message { table: self.table, ty: *ty, out: self.out };
                if inner.deserialize(source)? {
                    wire::close(self.out, message);
                } else {
                    wire::drop_open(self.out, &message);
                }
                Ok(())
            }
            _ => source.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Item<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value of {} {}", self.table.get(self.owner).name, self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        if *self.ty != FieldType::Boolean {
            return Err(self.mismatch());
        }
        wire::varint(self.out, self.number, u64::from(value));
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.integer(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.integer(value),
            Err(_) => Err(self.mismatch()),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match self.ty {
            FieldType::Double => wire::fixed64(self.out, self.number, value.to_bits()),
            FieldType::Quantity => self.quantity(&value.to_string()),
            _ => return Err(self.mismatch()),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match self.ty {
            FieldType::String => wire::bytes(self.out, self.number, text.as_bytes()),
            FieldType::Bytes => {
                let content = STANDARD.decode(text).map_err(|_| self.mismatch::<E>())?;
                wire::bytes(self.out, self.number, &content);
            }
            FieldType::Quantity => self.quantity(text),
            FieldType::IntOrString => self.int_or_string(0, text),
            FieldType::Time | FieldType::MicroTime => match crate::time::parse(text) {
                Ok(at) => self.time(at),
                Err(_) => return Err(self.mismatch()),
            },
            _ => return Err(self.mismatch()),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let FieldType::List(inner) = self.ty else { return Err(self.mismatch()) };
        let number = self.number;
        while items.next_element_seed(self.inner(inner, number))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        let FieldType::Map(inner) = self.ty else { return Err(self.mismatch()) };
        loop {
            let entry = wire::open(self.out, self.number);
            if entries.next_key_seed(MapKey(self.out))?.is_none() {
                wire::drop_open(self.out, &entry);
                return Ok(());
            }
            if matches!(**inner, FieldType::List(_)) {
                // Lists as values of a map are a message with the items in field 1.
                let list = wire::open(self.out, 2);
                entries.next_value_seed(self.inner(inner, 1))?;
                wire::close(self.out, list);
            } else {
                entries.next_value_seed(self.inner(inner, 2))?;
            }
            wire::close(self.out, entry);
        }
    }
}

/// Writes the key of a map's entry.
struct MapKey<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for MapKey<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for MapKey<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<(), E> {
        wire::bytes(self.0, 1, key.as_bytes());
        Ok(())
    }
}
