//! The compact form of the table, read by `src/load.rs`.
//!
//! ```text
//!   "PSCHEMA1"  u32 offset of the texts  u32 number of types  types…  u32 number of kinds  kinds…  texts
//! ```
//! Numbers are little-endian; a string is offset and length within the texts.

use std::collections::HashMap;

use crate::join::{Joined, JoinedField};
use crate::openapi::Type;

const REF: u8 = 11;
const LIST: u8 = 12;
const MAP: u8 = 13;

#[derive(Default)]
struct Writer {
    out: Vec<u8>,
    texts: String,
    seen: HashMap<String, (u32, u32)>,
}

impl Writer {
    fn number(&mut self, value: usize) {
        let value = u32::try_from(value).expect("the table is small");
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        let (offset, length) = match self.seen.get(text) {
            Some(found) => *found,
            None => {
                let small = |n: usize| u32::try_from(n).expect("the texts are small");
                let place = (small(self.texts.len()), small(text.len()));
                self.texts.push_str(text);
                self.seen.insert(text.to_owned(), place);
                place
            }
        };
        self.out.extend_from_slice(&offset.to_le_bytes());
        self.out.extend_from_slice(&length.to_le_bytes());
    }

    fn ty(&mut self, ty: &Type, ids: &HashMap<String, usize>) {
        match ty {
            Type::Plain(tag) => self.out.push(*tag),
            Type::Ref(name) => {
                self.out.push(REF);
                let id = *ids.get(name).unwrap_or_else(|| panic!("no type {name}"));
                self.number(id);
            }
            Type::List(inner) => {
                self.out.push(LIST);
                self.ty(inner, ids);
            }
            Type::Map(inner) => {
                self.out.push(MAP);
                self.ty(inner, ids);
            }
        }
    }

    fn field(&mut self, field: &JoinedField, ids: &HashMap<String, usize>) {
        let markers = &field.markers;
        let strategy = |word: &str| markers.patch_strategy.split(',').any(|s| s == word);
        let flags = [field.required, markers.atomic, strategy("merge"), strategy("retainKeys")];
        self.text(&field.name);
        self.ty(&field.ty, ids);
        self.out.push(flags.iter().enumerate().map(|(i, set)| u8::from(*set) << i).sum());
        let list = match markers.list_type.as_str() {
            "set" => 1,
            "map" => 2,
            _ => 0,
        };
        self.out.push(list);
        if list == 2 {
            self.number(markers.list_keys.len());
            markers.list_keys.iter().for_each(|key| self.text(key));
        }
        self.text(&markers.patch_key);
        self.text(&markers.default);
        self.number(field.number as usize);
        self.number(field.inlined_in as usize);
        self.text(&field.description);
    }
}

pub(crate) fn table(joined: &Joined) -> Vec<u8> {
    let ids: HashMap<String, usize> = joined.types.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    let mut writer = Writer::default();
    writer.number(joined.types.len());
    for ty in &joined.types {
        writer.text(&ty.name);
        writer.text(&ty.description);
        writer.out.push(u8::from(ty.atomic));
        writer.number(ty.fields.len());
        ty.fields.iter().for_each(|field| writer.field(field, &ids));
    }
    writer.number(joined.kinds.len());
    for (group, version, kind, id) in &joined.kinds {
        writer.text(group);
        writer.text(version);
        writer.text(kind);
        writer.number(*id);
    }
    let mut out = b"PSCHEMA1".to_vec();
    let texts_at = u32::try_from(out.len() + 4 + writer.out.len()).expect("the table is small");
    out.extend_from_slice(&texts_at.to_le_bytes());
    out.extend_from_slice(&writer.out);
    out.extend_from_slice(writer.texts.as_bytes());
    out
}
