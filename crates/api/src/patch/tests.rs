use super::*;
use crate::schema::test_table;
use serde_json::json;

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

#[test]
fn json_patches() {
    let start = object(json!({"a": 1, "b": [1, 2]}));
    let body = json!([{"op": "test", "path": "/a", "value": 1}, {"op": "add", "path": "/b/-", "value": 3},
        {"op": "remove", "path": "/a"}]);
    assert_eq!(json(&start, &body).unwrap().into_value(), json!({"b": [1, 2, 3]}));
    let failing = json!([{"op": "test", "path": "/a", "value": 2}]);
    assert_eq!(json(&start, &failing).unwrap_err().code, 422);
    assert_eq!(json(&start, &json!([{"op": "jump"}])).unwrap_err().code, 400);
    let many = Value::Array(vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_JSON_OPERATIONS + 1]);
    assert_eq!(json(&start, &many).unwrap_err().code, 413);
    assert_eq!(json(&start, &json!([{"op": "replace", "path": "", "value": 1}])).unwrap_err().code, 422);
    // Copies that double the object each time stop at the limit.
    let doubling: Vec<Value> =
        (0..64).map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")})).collect();
    assert_eq!(json(&start, &Value::Array(doubling)).unwrap_err().code, 413);
}

#[test]
fn merge_patches() {
    let start = object(json!({"a": {"b": 1, "c": 2}, "l": [1, 2]}));
    let merged = merge(&start, &json!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]})).unwrap();
    assert_eq!(merged.into_value(), json!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]}));
    assert_eq!(merge(&start, &json!([])).unwrap_err().code, 400);
}

#[test]
fn strategic_patches() {
    let (table, ty) = test_table();
    let items = json!({"items": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]});
    let start = json!({"metadata": {"finalizers": ["f", "g"], "labels": {"l": "1"}}, "spec": items});
    // (patch, what of the result is looked at, wanted)
    let cases = [
        (
            json!({"spec": {"items": [{"name": "b", "image": "3"}]}}),
            "/spec/items",
            json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "3"}]),
        ),
        (json!({"spec": {"items": [{"name": "c"}]}}), "/spec/items/0", json!({"name": "c"})),
        (json!({"spec": {"items": [{"name": "a", "args": ["y"]}]}}), "/spec/items/0/args", json!(["y"])),
        (
            json!({"spec": {"items": [{"name": "a", "$patch": "delete"}]}}),
            "/spec/items",
            json!([{"name": "b", "image": "2"}]),
        ),
        (
            json!({"spec": {"items": [{"$patch": "replace"}, {"name": "z"}]}}),
            "/spec/items",
            json!([{"name": "z"}]),
        ),
        // An item with the directive is no content: the whole list is replaced by the other items.
        (
            json!({"spec": {"items": [{"name": "a", "$patch": "replace", "image": "9"}]}}),
            "/spec/items",
            json!([]),
        ),
        (
            json!({"spec": {"items": [{"name": "a", "image": null}]}}),
            "/spec/items/0",
            json!({"name": "a", "args": ["x"]}),
        ),
        (json!({"spec": {"$patch": "replace", "replicas": 1}}), "/spec", json!({"replicas": 1})),
        (json!({"spec": {"$patch": "delete"}}), "/spec", json!({})),
        (json!({"metadata": {"finalizers": ["h", "f"]}}), "/metadata/finalizers", json!(["h", "f", "g"])),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f"]}}),
            "/metadata/finalizers",
            json!(["g"]),
        ),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f"], "finalizers": ["h"],
            "$setElementOrder/finalizers": ["h", "g"]}}),
            "/metadata/finalizers",
            json!(["h", "g"]),
        ),
        (json!({"metadata": {"labels": {"l": null, "m": "2"}}}), "/metadata/labels", json!({"m": "2"})),
        (
            json!({"spec": {"$setElementOrder/items": [{"name": "c"}, {"name": "a"}], "items": [{"name": "c"}]}}),
            "/spec/items",
            json!([{"name": "c"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]),
        ),
        (
            json!({"spec": {"$setElementOrder/items": [{"name": "b"}, {"name": "a"}]}}),
            "/spec/items/0/name",
            json!("b"),
        ),
    ];
    for (patch, pointer, wanted) in cases {
        let merged = strategic::merge(&table, ty, &object(start.clone()), &patch)
            .unwrap_or_else(|e| panic!("{patch}: {e}"));
        assert_eq!(merged.into_value().pointer(pointer), Some(&wanted), "{patch}");
    }
}

#[test]
fn retain_keys_clears_the_other_members_of_a_union() {
    let (table, ty) = test_table();
    let start = object(json!({"spec": {"strategy": {"type": "Rolling", "rolling": {"max": "1"}}}}));
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let merged = strategic::merge(&table, ty, &start, &patch).unwrap();
    assert_eq!(merged.into_value(), json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let stray = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rolling": {}}}});
    assert_eq!(strategic::merge(&table, ty, &start, &stray).unwrap_err().code, 400);
}

#[test]
fn wrong_strategic_patches_are_refused() {
    let (table, ty) = test_table();
    for patch in [
        json!([]),
        json!({"spec": {"$patch": "jump"}}),
        json!({"spec": {"items": [{"image": "x"}]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "f"}}),
    ] {
        let result = strategic::merge(&table, ty, &object(json!({})), &patch);
        assert_eq!(result.unwrap_err().code, 400, "{patch}");
    }
}
