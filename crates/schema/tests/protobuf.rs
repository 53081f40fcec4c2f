//! The protobuf codec under the built-in table: every kind with every field set, there and back.

use std::collections::BTreeMap;

use api::codec::protobuf;
use api::{Embedded, Field, FieldType, SchemaTable, TypeId};
use schema::table;
use serde_json::{Map, Value, json};

/// How often a type may occur within itself (JSON schemas do).
const NESTED: usize = 2;

/// Makes values in which no two scalars are alike.
struct Maker<'t> {
    table: &'t SchemaTable,
    count: i64,
    path: Vec<TypeId>,
}

impl Maker<'_> {
    fn object(&mut self, ty: TypeId) -> Value {
        let mut out = Map::new();
        self.path.push(ty);
        for field in &self.table.get(ty).fields {
            if field.number > 0
                && let Some(value) = self.value(ty, field, &field.ty)
            {
                out.insert(field.name.clone().into_owned(), value);
            }
        }
        self.path.pop();
        Value::Object(out)
    }

    fn value(&mut self, owner: TypeId, field: &Field, ty: &FieldType) -> Option<Value> {
        self.count += 1;
        let count = self.count;
        Some(match ty {
            FieldType::String => format!("text {count}").into(),
            FieldType::Time => format!("2026-01-02T03:{:02}:05Z", count % 60).into(),
            FieldType::MicroTime => format!("1969-01-02T03:04:05.{:06}Z", count).into(),
            FieldType::Bytes => "AP8B".into(),
            FieldType::Boolean => true.into(),
            FieldType::Int32 => (-count).into(),
            FieldType::Int64 => (count << 40).into(),
            FieldType::Double => (f64::from(i32::try_from(count).ok()?) + 0.5).into(),
            FieldType::IntOrString if count % 2 == 0 => count.into(),
            FieldType::IntOrString => format!("{count}%").into(),
            FieldType::Quantity => format!("{count}Mi").into(),
            FieldType::Any => self.embedded(owner, field)?,
            FieldType::Ref(inner) if self.path.iter().filter(|at| *at == inner).count() >= NESTED => {
                return None;
            }
            FieldType::Ref(inner) => self.object(*inner),
            FieldType::List(inner) => {
                let items: Option<Vec<Value>> = (0..2).map(|_| self.value(owner, field, inner)).collect();
                items?.into()
            }
            FieldType::Map(inner) => {
                json!({"key": self.value(owner, field, inner)?, "another": self.value(owner, field, inner)?})
            }
        })
    }

    fn embedded(&mut self, owner: TypeId, field: &Field) -> Option<Value> {
        let odd = self.count % 2 == 1;
        let deep = self.path.len() > 6;
        Some(match field.embedded {
            Embedded::Raw => json!({"any": [self.count, null, "x"]}),
            Embedded::Empty => json!({}),
            _ if deep => return None,
            Embedded::SchemaOrBool if odd => false.into(),
            Embedded::SchemaOrBool => self.object(owner),
            Embedded::SchemaOrList if odd => json!([self.object(owner)]),
            Embedded::SchemaOrList => self.object(owner),
            Embedded::SchemaOrStrings if odd => json!(["a", "b"]),
            Embedded::SchemaOrStrings => self.object(owner),
        })
    }
}

/// Into protobuf and back, from a tree and from text.
fn there_and_back(table: &SchemaTable, ty: TypeId, api_version: &str, kind: &str, tree: &Value) -> Value {
    let (mut message, mut from_text) = (Vec::new(), Vec::new());
    protobuf::encode_value(table, ty, tree, &mut message).expect("encoded");
    protobuf::encode_json(table, ty, tree.to_string().as_bytes(), &mut from_text).expect("encoded");
    assert_eq!(message, from_text);
    protobuf::decode(table, ty, &protobuf::envelope(api_version, kind, &[&message])).expect("decoded")
}

#[test]
fn every_kind_survives_with_every_field_set() {
    let table = table();
    let (mut kinds, mut bytes) = (0, 0);
    let sorted: BTreeMap<_, _> = table.kinds().collect();
    for ((group, version, kind), ty) in sorted {
        let api_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
        let mut maker = Maker { table: &table, count: 0, path: Vec::new() };
        let mut tree = maker.object(ty);
        let got = there_and_back(&table, ty, &api_version, kind, &tree);
        tree["apiVersion"] = api_version.into();
        tree["kind"] = kind.as_str().into();
        assert_eq!(got, tree, "{group}/{version} {kind}");
        kinds += 1;
        bytes += tree.to_string().len();
    }
    assert!(kinds > 150 && bytes > 1_000_000, "{kinds} kinds, {bytes} bytes");
}

#[test]
fn zeros_of_pointers_and_required_fields_survive() {
    let table = table();
    let deployment = table.kind("apps", "v1", "Deployment").unwrap();
    let tree = json!({"spec": {"replicas": 0, "minReadySeconds": 0, "paused": false, "selector": {},
        "strategy": {"rollingUpdate": {"maxSurge": 0}},
        "template": {"spec": {"containers": [{"name": "", "resources": {}}]}}}});
    let mut want = tree.clone();
    want["apiVersion"] = "apps/v1".into();
    want["kind"] = "Deployment".into();
    let spec = want["spec"].as_object_mut().unwrap();
    assert!(spec.remove("paused").is_some() && spec.remove("minReadySeconds").is_some());
    assert_eq!(there_and_back(&table, deployment, "apps/v1", "Deployment", &tree), want);
}

/// The codec appends resourceVersions and makes lists of any kind by these numbers.
#[test]
fn every_kind_has_its_metadata_in_the_same_place() {
    let table = table();
    let meta = table.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
    assert_eq!(table.get(meta).field("resourceVersion").unwrap().number, 6);
    for ((group, version, kind), ty) in table.kinds() {
        let def = table.get(ty);
        let number = |name: &str| def.field(name).map(|field| field.number);
        assert!(matches!(number("metadata"), None | Some(1)), "{group}/{version} {kind}");
        if kind.ends_with("List") && number("items").is_some() {
            assert_eq!((number("metadata"), number("items")), (Some(1), Some(2)), "{group}/{version} {kind}");
        }
    }
}

/// A field without a number would be lost silently. `version.Info` and the like have no protobuf form.
#[test]
fn every_field_of_a_kind_has_a_number() {
    let table = table();
    let mut without = Vec::new();
    for (_, ty) in table.types().filter(|(_, ty)| ty.fields.iter().any(|field| field.number > 0)) {
        let unnumbered =
            ty.fields.iter().filter(|f| f.number == 0 && !matches!(&*f.name, "apiVersion" | "kind"));
        without.extend(unnumbered.map(|field| format!("{} {}", ty.name, field.name)));
    }
    assert!(without.is_empty(), "{without:#?}");
}

/// A pointer that the table does not know would turn zeros into absence.
#[test]
fn listed_pointers_exist() {
    let table = table();
    let lines = include_str!("../pointers.txt").lines().filter(|line| !line.starts_with('#'));
    for (ty, fields) in lines.filter_map(|line| line.split_once(' ')) {
        let Some(id) = table.by_name(ty) else { continue };
        for name in fields.split_whitespace() {
            assert!(table.get(id).field(name).is_some_and(|field| field.pointer), "{ty} {name}");
        }
    }
}
