//! Reads the compact table; its strings are borrowed from the program's data.

use std::borrow::Cow;
use std::collections::HashMap;

use api::{Field, FieldType, ListType, SchemaTable, TypeDef, TypeId};

static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/table.bin"));

struct Reader {
    at: usize,
    texts: usize,
}

impl Reader {
    fn byte(&mut self) -> u8 {
        self.at += 1;
        BYTES[self.at - 1]
    }

    fn number(&mut self) -> u32 {
        let bytes = [self.byte(), self.byte(), self.byte(), self.byte()];
        u32::from_le_bytes(bytes)
    }

    fn text(&mut self) -> &'static str {
        let from = self.texts + self.number() as usize;
        let to = from + self.number() as usize;
        std::str::from_utf8(&BYTES[from..to]).expect("the build script wrote UTF-8")
    }

    fn optional(&mut self) -> Option<Cow<'static, str>> {
        let text = self.text();
        (!text.is_empty()).then_some(Cow::Borrowed(text))
    }

    fn ty(&mut self) -> FieldType {
        match self.byte() {
            0 => FieldType::String,
            1 => FieldType::Time,
            2 => FieldType::MicroTime,
            3 => FieldType::Bytes,
            4 => FieldType::Boolean,
            5 => FieldType::Int32,
            6 => FieldType::Int64,
            7 => FieldType::Double,
            8 => FieldType::IntOrString,
            9 => FieldType::Quantity,
            11 => FieldType::Ref(TypeId(self.number())),
            12 => FieldType::List(Box::new(self.ty())),
            13 => FieldType::Map(Box::new(self.ty())),
            _ => FieldType::Any,
        }
    }

    fn field(&mut self) -> Field {
        let name = Cow::Borrowed(self.text());
        let ty = self.ty();
        let flags = self.byte();
        let list_type = match self.byte() {
            1 => ListType::Set,
            2 => ListType::Map((0..self.number()).map(|_| self.text().to_owned()).collect()),
            _ => ListType::Atomic,
        };
        Field {
            name,
            ty,
            required: flags & 1 != 0,
            list_type,
            atomic: flags & 2 != 0,
            patch_merge_key: self.optional(),
            patch_merge: flags & 4 != 0,
            patch_retain_keys: flags & 8 != 0,
            default: self.optional(),
            number: self.number(),
            inlined_in: Some(self.number()).filter(|n| *n != 0),
            description: Cow::Borrowed(self.text()),
        }
    }
}

pub(crate) fn load() -> SchemaTable {
    assert!(BYTES.starts_with(b"PSCHEMA1"), "the schema table has an unknown format");
    let mut reader = Reader { at: 8, texts: 0 };
    reader.texts = reader.number() as usize;
    let types = (0..reader.number())
        .map(|_| {
            let name = Cow::Borrowed(reader.text());
            let description = Cow::Borrowed(reader.text());
            let atomic = reader.byte() != 0;
            let fields = (0..reader.number()).map(|_| reader.field()).collect();
            TypeDef { name, description, fields, preserve_unknown: false, atomic }
        })
        .collect();
    let mut kinds = HashMap::new();
    for _ in 0..reader.number() {
        let key = (reader.text().to_owned(), reader.text().to_owned(), reader.text().to_owned());
        kinds.insert(key, TypeId(reader.number()));
    }
    SchemaTable::new(types, kinds)
}
