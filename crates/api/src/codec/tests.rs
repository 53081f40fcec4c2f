use super::*;
use crate::schema::test_table;
use proptest::prelude::*;
use serde_json::json;

fn text_of(decoded: &Decoded) -> String {
    String::from_utf8(encode(&decoded.object).to_vec()).unwrap()
}

#[test]
fn json_bodies() {
    let (table, ty) = test_table();
    // (body, canonical form, warnings)
    let cases = [
        (r#"{"kind":"Thing","spec":{"replicas":3}}"#, r#"{"kind":"Thing","spec":{"replicas":3}}"#, vec![]),
        (
            r#"{"spec":{"foo":1,"items":[{"name":"a","bar":{"x":[1]}}]}}"#,
            r#"{"spec":{"items":[{"name":"a"}]}}"#,
            vec![r#"unknown field "spec.foo""#, r#"unknown field "spec.items[0].bar""#],
        ),
        (
            r#"{"spec":{"replicas":1,"replicas":2}}"#,
            r#"{"spec":{"replicas":2}}"#,
            vec![r#"duplicate field "spec.replicas""#],
        ),
        (r#"{"spec":{"replicas":null,"labels":{"a":null}}}"#, r#"{"spec":{"labels":{"a":""}}}"#, vec![]),
        (r#"{"spec":{"any":{"x":null,"y":[1,"2"]}}}"#, r#"{"spec":{"any":{"x":null,"y":[1,"2"]}}}"#, vec![]),
        (
            r#"{"spec":{"limit":"1024Mi","at":"2026-01-01T01:00:00+01:00"}}"#,
            r#"{"spec":{"at":"2026-01-01T00:00:00Z","limit":"1Gi"}}"#,
            vec![],
        ),
        (r#"{"spec":{"limit":0.5,"port":"http"}}"#, r#"{"spec":{"limit":"500m","port":"http"}}"#, vec![]),
    ];
    for (body, wanted, warnings) in cases {
        let decoded =
            decode_json(&table, ty, body.as_bytes(), Mode::Warn).unwrap_or_else(|e| panic!("{body}: {e}"));
        assert_eq!(text_of(&decoded), wanted, "{body}");
        assert_eq!(decoded.warnings, warnings, "{body}");
        let strict = decode_json(&table, ty, body.as_bytes(), Mode::Strict);
        assert_eq!(strict.is_err(), !warnings.is_empty(), "{body}");
        if let Err(error) = strict {
            assert_eq!(error.to_string(), format!("strict decoding error: {}", warnings.join(", ")));
        }
    }
}

#[test]
fn type_errors_name_the_field() {
    let (table, ty) = test_table();
    let cases = [
        (
            r#"{"spec":{"replicas":"x"}}"#,
            "json: cannot unmarshal string into Go struct field ThingSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"replicas":3000000000}}"#,
            "json: cannot unmarshal number 3000000000 into Go struct field ThingSpec.spec.replicas of type int32",
        ),
        (r#"{"spec":{"replicas":1.0}}"#, "json: cannot unmarshal number 1 into"),
        (r#"{"spec":[]}"#, "json: cannot unmarshal array into Go struct field Thing.spec of type struct"),
        (r#"{"spec":{"items":[{"name":5}]}}"#, "Go struct field Item.spec.items[0].name of type string"),
        (r#"{"spec":{"limit":"1GiB"}}"#, "quantities must match the regular expression"),
        (r#"{"spec":{"at":"now"}}"#, "parsing time \"now\""),
        (r#"{"spec":{"data":"?"}}"#, "illegal base64 data"),
        ("[1]", "cannot unmarshal array"),
        ("{", "EOF while parsing"),
        ("{} x", "trailing characters"),
    ];
    for (body, part) in cases {
        let error = decode_json(&table, ty, body.as_bytes(), Mode::Ignore).unwrap_err();
        assert!(error.to_string().contains(part), "{body}: {error}");
    }
}

#[test]
fn yaml_bodies_go_through_the_same_checks() {
    let (table, ty) = test_table();
    let body =
        b"kind: Thing\nspec:\n  replicas: 3\n  replicas: 4\n  foo: x\n  labels: {1: a}\n  limit: 1.5\n";
    let decoded = decode_yaml(&table, ty, body, Mode::Warn).unwrap();
    assert_eq!(
        text_of(&decoded),
        r#"{"kind":"Thing","spec":{"labels":{"1":"a"},"limit":"1500m","replicas":4}}"#
    );
    assert_eq!(decoded.warnings, [r#"duplicate field "spec.replicas""#, r#"unknown field "spec.foo""#]);
    assert!(decode_yaml(&table, ty, b"- a", Mode::Warn).is_err());
    assert!(decode_yaml(&table, ty, b"spec: {replicas: x}", Mode::Warn).is_err());
}

#[test]
fn pruning_names_what_it_drops() {
    let (table, ty) = test_table();
    let mut object =
        Object::from_value(json!({"a": 1, "spec": {"items": [{"name": "x", "y": 1}], "z": {}}})).unwrap();
    assert_eq!(prune(&table, ty, &mut object), ["a", "spec.items[0].y", "spec.z"]);
    assert_eq!(object.into_value(), json!({"spec": {"items": [{"name": "x"}]}}));
}

#[test]
fn scanning_and_splicing() {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "n\"s", "uid": "u", "labels": {"x": "é\n", "y": ""},
            "annotations": {"name": "}{]["}, "finalizers": ["f"], "deletionTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"uid": "o", "kind": "K", "name": "k", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}], "hostNetwork": true, "node": null},
        "status": {"phase": "Running"},
    });
    let bytes = serde_json::to_vec(&object).unwrap();
    let paths =
        ["spec.nodeName", "status.phase", "spec.hostNetwork", "metadata.name", "spec.none", "spec.node"];
    let (meta, values) = meta::scan_fields(&bytes, &paths).unwrap();
    assert_eq!(values, ["n1", "Running", "true", "a", "", ""]);
    assert_eq!((meta.name.as_str(), meta.namespace.as_str(), meta.uid.as_str()), ("a", "n\"s", "u"));
    assert_eq!(meta.labels["x"], "é\n");
    assert_eq!(meta.owners.len(), 1);
    assert!(meta.owners[0].controller && meta.has_finalizers);
    assert_eq!(meta.deletion_timestamp.as_deref(), Some("2026-01-01T00:00:00Z"));

    let spliced = splice(&bytes, meta.splice_offset, 1203);
    let again = meta::scan(&spliced).unwrap();
    assert_eq!(again.resource_version, "1203");
    let mut wanted = object;
    wanted["metadata"]["resourceVersion"] = "1203".into();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&spliced).unwrap(), wanted);

    let empty = br#"{"metadata":{}}"#;
    let offset = meta::scan(empty).unwrap().splice_offset;
    assert_eq!(&splice(empty, offset, 0)[..], br#"{"metadata":{"resourceVersion":"0"}}"#);
    for bad in ["", "[", "{\"a\"", "{\"metadata\":{\"name\":\"x}", "{\"a\":{]"] {
        assert!(meta::scan(bad.as_bytes()).is_err(), "{bad}");
    }
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i32>().prop_map(|i| json!(i)),
        "[a-z\"\\\\{}é]{0,4}".prop_map(|s| json!(s)),
    ];
    let key = "metadata|spec|name|labels|items|replicas|uid|ports|any|[a-z]";
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| json!(v)),
            prop::collection::btree_map(key, inner, 0..5).prop_map(|m| json!(m)),
        ]
    })
}

proptest! {
    /// What was decoded decodes again to itself, without findings, whatever came in.
    #[test]
    fn decoding_settles(body in value()) {
        let (table, ty) = test_table();
        if let Ok(first) = decode_json(&table, ty, body.to_string().as_bytes(), Mode::Ignore) {
            let again = decode_json(&table, ty, &encode(&first.object), Mode::Strict).unwrap();
            prop_assert_eq!(&again.object, &first.object);
            let yaml = serde_yaml_ng::to_string(&first.object.0).unwrap();
            prop_assert_eq!(decode_yaml(&table, ty, yaml.as_bytes(), Mode::Strict).unwrap().object, first.object.clone());
            let mut pruned = first.object.clone();
            prop_assert_eq!(prune(&table, ty, &mut pruned), Vec::<String>::new());
        }
    }

    /// The scanner reads what a parser reads.
    #[test]
    fn scanning_agrees_with_parsing(name in "\\PC{0,6}", label in "\\PC{0,6}", node in "\\PC{0,6}", extra in value(), pretty in any::<bool>()) {
        let object = json!({"a": extra, "metadata": {"annotations": extra, "labels": {"l": label}, "name": name}, "spec": {"nodeName": node, "x": extra}});
        let bytes = if pretty { serde_json::to_vec_pretty(&object) } else { serde_json::to_vec(&object) }.unwrap();
        let (meta, values) = meta::scan_fields(&bytes, &["spec.nodeName"]).unwrap();
        prop_assert_eq!((&meta.name, &meta.labels["l"], &values[0]), (&name, &label, &node));
        let spliced: serde_json::Value = serde_json::from_slice(&splice(&bytes, meta.splice_offset, 7)).unwrap();
        prop_assert_eq!(&spliced["metadata"]["resourceVersion"], "7");
        prop_assert_eq!(&spliced["spec"], &object["spec"]);
    }

    #[test]
    fn nothing_panics_on_noise(text in "[\\[\\]{}:,\"a-c\\\\ 0-9.eKi+!=<>()-]{0,24}", bytes in prop::collection::vec(any::<u8>(), 0..32)) {
        let (table, ty) = test_table();
        let results = [
            meta::scan(text.as_bytes()).is_ok(),
            meta::scan(&bytes).is_ok(),
            decode_json(&table, ty, &bytes, Mode::Warn).is_ok(),
            decode_yaml(&table, ty, text.as_bytes(), Mode::Warn).is_ok(),
            crate::Quantity::parse(&text).is_ok(),
            crate::LabelSelector::parse(&text).is_ok(),
            crate::FieldSelector::parse(&text).is_ok(),
        ];
        prop_assert_eq!(results.len(), 7);
    }
}
