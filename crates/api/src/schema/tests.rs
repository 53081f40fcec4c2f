use super::*;

fn field(name: &'static str, ty: FieldType) -> Field {
    Field::new(name, ty)
}

/// A small kind with one field of each sort.
pub(super) fn table() -> (SchemaTable, TypeId) {
    let strings = || FieldType::Map(Box::new(FieldType::String));
    let list = |ty| FieldType::List(Box::new(ty));
    let meta = TypeDef::new(
        "Meta",
        vec![
            field("annotations", strings()),
            Field {
                list_type: ListType::Set,
                patch_merge: true,
                ..field("finalizers", list(FieldType::String))
            },
            field("labels", strings()),
            field("managedFields", list(FieldType::Any)),
            field("name", FieldType::String),
            field("namespace", FieldType::String),
            field("resourceVersion", FieldType::String),
            field("uid", FieldType::String),
        ],
    );
    let port = TypeDef::new(
        "Port",
        vec![
            field("name", FieldType::String),
            field("port", FieldType::Int32),
            Field { default: Some("\"TCP\"".into()), ..field("protocol", FieldType::String) },
            field("target", FieldType::IntOrString),
        ],
    );
    let item = TypeDef::new(
        "Item",
        vec![
            field("args", list(FieldType::String)),
            field("image", FieldType::String),
            field("name", FieldType::String),
            Field {
                list_type: ListType::Map(vec!["port".into(), "protocol".into()]),
                patch_merge: true,
                patch_merge_key: Some("port".into()),
                ..field("ports", list(FieldType::Ref(TypeId(1))))
            },
        ],
    );
    let spec = TypeDef::new(
        "ThingSpec",
        vec![
            field("any", FieldType::Any),
            field("at", FieldType::Time),
            field("atomicList", list(FieldType::String)),
            field("data", FieldType::Bytes),
            Field {
                list_type: ListType::Map(vec!["name".into()]),
                patch_merge: true,
                patch_merge_key: Some("name".into()),
                ..field("items", list(FieldType::Ref(TypeId(2))))
            },
            field("labels", strings()),
            field("limit", FieldType::Quantity),
            field("paused", FieldType::Boolean),
            field("port", FieldType::IntOrString),
            field("replicas", FieldType::Int32),
            Field { atomic: true, ..field("selector", strings()) },
            Field {
                patch_retain_keys: true,
                patch_merge: false,
                ..field("strategy", FieldType::Ref(TypeId(5)))
            },
        ],
    );
    let thing = TypeDef::new(
        "Thing",
        vec![
            field("apiVersion", FieldType::String),
            field("kind", FieldType::String),
            field("metadata", FieldType::Ref(TypeId(0))),
            field("spec", FieldType::Ref(TypeId(3))),
        ],
    );
    let strategy =
        TypeDef::new("Strategy", vec![field("rolling", strings()), field("type", FieldType::String)]);
    (SchemaTable::new(vec![meta, port, item, spec, thing, strategy], HashMap::new()), TypeId(4))
}

#[test]
fn defaults_fill_only_what_is_absent() {
    let (table, ty) = table();
    let value = serde_json::json!({"spec": {"items": [{"name": "a", "ports": [{"port": 1}, {"port": 2, "protocol": "UDP"}]}]}});
    let mut object = crate::Object::from_value(value).unwrap();
    apply_defaults(&table, ty, &mut object);
    let ports = &object.0["spec"]["items"][0]["ports"];
    assert_eq!(*ports, serde_json::json!([{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "UDP"}]));
}
