use serde_json::{Value, json};

use super::*;
use crate::schema::{Field, FieldType, SchemaTable, TypeDef, TypeId};

/// Widget { metadata = 1 { name = 1, resourceVersion = 6 }, size = 2, part = 3 { id = 1 } inlined, tags = 4, sizes = 5 }
fn table() -> SchemaTable {
    let field = |name: &'static str, number: u32, ty: FieldType| Field { number, ..Field::new(name, ty) };
    let meta = TypeDef::new(
        "Meta",
        vec![field("name", 1, FieldType::String), field("resourceVersion", 6, FieldType::String)],
    );
    let strings = FieldType::List(Box::new(FieldType::String));
    let widget = TypeDef::new(
        "Widget",
        vec![
            field("metadata", 1, FieldType::Ref(TypeId(0))),
            Field { pointer: true, ..field("size", 2, FieldType::Int32) },
            Field { inlined_in: vec![3], ..field("id", 1, FieldType::String) },
            field("tags", 4, FieldType::Map(Box::new(strings))),
            field("sizes", 5, FieldType::List(Box::new(FieldType::Int64))),
            field("extra", 6, FieldType::List(Box::new(FieldType::Any))),
        ],
    );
    SchemaTable::new(vec![meta, widget], std::collections::HashMap::new())
}

const WIDGET: TypeId = TypeId(1);

fn encoded(tree: &Value) -> Vec<u8> {
    let (table, mut out, mut from_text) = (table(), Vec::new(), Vec::new());
    encode_value(&table, WIDGET, tree, &mut out).unwrap();
    encode_json(&table, WIDGET, tree.to_string().as_bytes(), &mut from_text).unwrap();
    assert_eq!(out, from_text, "bytes and trees are the same to the encoder");
    out
}

#[test]
fn messages_are_these_bytes() {
    let cases: [(Value, &[u8]); 8] = [
        (json!({"kind": "Widget", "size": null, "unknown": [1, {"a": "b"}]}), b""),
        (json!({"size": 300}), b"\x10\xac\x02"),
        (json!({"size": -1}), b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        (json!({"id": "x"}), b"\x1a\x03\x0a\x01x"),
        (json!({"id": null}), b""),
        (json!({"metadata": {}}), b"\x0a\x00"),
        (
            json!({"tags": {"k": ["a"], "l": []}}),
            b"\x22\x08\x0a\x01k\x12\x03\x0a\x01a\x22\x05\x0a\x01l\x12\x00",
        ),
        (
            json!({"sizes": [1, 2], "extra": [null, {"b": 1}]}),
            b"\x32\x00\x32\x09\x0a\x07{\"b\":1}\x28\x01\x28\x02",
        ),
    ];
    for (tree, want) in cases {
        assert_eq!(encoded(&tree).escape_ascii().to_string(), want.escape_ascii().to_string(), "{tree}");
    }
}

#[test]
fn values_of_another_type_are_refused() {
    let table = table();
    for tree in [json!({"size": "x"}), json!({"id": 1}), json!({"metadata": 5}), json!({"tags": [1]})] {
        assert!(encode_value(&table, WIDGET, &tree, &mut Vec::new()).is_err(), "{tree}");
    }
}

#[test]
fn long_messages_have_long_lengths() {
    let name = "n".repeat(20_000);
    let tree = json!({"metadata": {"name": name}, "size": 0});
    let body = envelope("v1", "Widget", &[&encoded(&tree)]);
    let want = json!({"apiVersion": "v1", "kind": "Widget", "metadata": {"name": name}, "size": 0});
    assert_eq!(decode(&table(), WIDGET, &body).unwrap(), want);
}

#[test]
fn a_revision_is_appended() {
    let message = encoded(&json!({"metadata": {"name": "a"}}));
    let body = envelope("v1", "Widget", &[&message, &revision(42)]);
    let got = decode(&table(), WIDGET, &body).unwrap();
    assert_eq!(got["metadata"], json!({"name": "a", "resourceVersion": "42"}));
    assert!(revision(0).is_empty());
}

#[test]
fn packed_numbers_and_damage() {
    let table = table();
    let packed = envelope("v1", "Widget", &[b"\x2a\x03\x01\xac\x02"]);
    assert_eq!(decode(&table, WIDGET, &packed).unwrap()["sizes"], json!([1, 300]));
    let good = envelope("v1", "Widget", &[&encoded(&json!({"id": "x", "tags": {"a": ["b"]}, "sizes": [7]}))]);
    assert!(decode(&table, WIDGET, b"nonsense").is_err());
    for cut in 1..good.len() {
        // Every cut is either refused or an object; never a panic.
        drop(decode(&table, WIDGET, &good[..cut]));
    }
    assert!(decode(&table, WIDGET, &good[..good.len() - 1]).is_err());
}

#[test]
fn watch_frames_are_these_bytes() {
    let object = envelope("v1", "Widget", &[&encoded(&json!({"size": 1}))]);
    let frame = watch_frame(EventKind::Added, &object);
    let want = b"\x00\x00\x00\x25\x0a\x05ADDED\x12\x1c\x0a\x1ak8s\0\x0a\x0c\x0a\x02v1\x12\x06Widget\x12\x02\x10\x01\x1a\0\x22\0";
    assert_eq!(frame.escape_ascii().to_string(), want.escape_ascii().to_string());
}
