use super::*;
use crate::patch::track_update;
use crate::schema::test_table;
use proptest::prelude::*;
use serde_json::json;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn object(mut value: Value) -> Object {
    value["apiVersion"] = "v1".into();
    value["kind"] = "Thing".into();
    value["metadata"]["name"] = "x".into();
    Object::from_value(value).unwrap()
}

fn run(live: Option<&Object>, config: Value, manager: &str, force: bool) -> Result<Object, ApplyError> {
    let (table, ty) = test_table();
    apply(&table, ty, live, &object(config), manager, "", force, at(1))
}

fn update(live: &Object, change: impl FnOnce(&mut Object), manager: &str) -> Object {
    let (table, ty) = test_table();
    let mut new = live.clone();
    change(&mut new);
    track_update(&table, ty, Some(live), &mut new, manager, "", Operation::Update, at(2));
    new
}

fn fields(object: &Object, manager: &str) -> Value {
    let list = object.get(&["metadata", "managedFields"]).and_then(Value::as_array);
    let entry = list.into_iter().flatten().find(|e| e["manager"] == manager);
    entry.map(|e| e["fieldsV1"].clone()).unwrap_or_default()
}

#[test]
fn the_first_application_owns_what_it_states() {
    let config = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["f"]}, "spec": {"replicas": 2, "selector": {"s": "t"},
        "atomicList": ["z"], "any": {"q": 1}, "items": [{"name": "c", "image": "i", "ports": [{"port": 80}]}]}});
    let result = run(None, config, "m", false).unwrap();
    let entry = &result.0["metadata"]["managedFields"][0];
    assert_eq!(
        *entry,
        json!({
            "manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2027-01-15T08:00:01Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"f\"": {}}},
                "f:spec": {"f:replicas": {}, "f:selector": {}, "f:atomicList": {}, "f:any": {}, "f:items": {
                    "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:ports": {
                        "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}}},
            },
        })
    );
}

#[test]
fn fields_no_longer_stated_are_removed_unless_others_own_them() {
    let first = run(
        None,
        json!({"metadata": {"labels": {"a": "1", "b": "1"}},
        "spec": {"replicas": 1, "paused": true, "items": [{"name": "p", "image": "1"}, {"name": "q"}]}}),
        "m",
        false,
    )
    .unwrap();
    let shared = run(
        Some(&first),
        json!({"spec": {"replicas": 1, "items": [{"name": "q", "args": ["x"]}]}}),
        "n",
        false,
    )
    .unwrap();
    let third = run(Some(&shared), json!({"metadata": {"labels": {"b": "2"}}}), "m", false).unwrap();
    assert_eq!(third.0["spec"], json!({"replicas": 1, "items": [{"name": "q", "args": ["x"]}]}));
    assert_eq!(third.0["metadata"]["labels"], json!({"b": "2"}));
    assert_eq!(fields(&third, "m"), json!({"f:metadata": {"f:labels": {"f:b": {}}}}));
}

#[test]
fn defaults_inside_a_removed_item_go_with_it() {
    let first = run(None, json!({"spec": {"items": [{"name": "p"}, {"name": "q"}]}}), "m", false).unwrap();
    let mut defaulted = first;
    defaulted.0["spec"]["items"][0]["image"] = "default".into();
    let second = run(Some(&defaulted), json!({"spec": {"items": [{"name": "q"}]}}), "m", false).unwrap();
    assert_eq!(second.0["spec"], json!({"items": [{"name": "q"}]}));
}

#[test]
fn conflicts_name_the_manager_and_the_field() {
    let created = update(&object(json!({})), |o| o.set(&["spec", "replicas"], 3), "other");
    let config = json!({"spec": {"replicas": 5}});
    let error = run(Some(&created), config.clone(), "m", false).unwrap_err();
    let text = "Apply failed with 1 conflict: conflict with \"other\" using v1 at 2027-01-15T08:00:02Z: .spec.replicas";
    assert_eq!(error.to_string(), text);
    let status = Status::from(error);
    assert_eq!((status.code, status.causes[0].field.as_str()), (409, ".spec.replicas"));

    let forced = run(Some(&created), config.clone(), "m", true).unwrap();
    assert_eq!(fields(&forced, "other"), Value::Null);
    assert_eq!(forced.i64(&["spec", "replicas"]), Some(5));

    let agreed = run(Some(&created), json!({"spec": {"replicas": 3}}), "m", false).unwrap();
    assert_eq!(fields(&agreed, "other"), fields(&agreed, "m"));

    let applied = run(None, json!({"spec": {"replicas": 1, "paused": true}}), "one", false).unwrap();
    let error =
        run(Some(&applied), json!({"spec": {"replicas": 2, "paused": false}}), "two", false).unwrap_err();
    let text = "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.paused\n- .spec.replicas";
    assert_eq!(error.to_string(), text);
}

#[test]
fn objects_without_owners_conflict_as_before_first_apply() {
    let live = object(json!({"spec": {"replicas": 1}}));
    let error = run(Some(&live), json!({"spec": {"replicas": 2}}), "m", false).unwrap_err();
    assert!(
        error.to_string().contains("conflict with \"before-first-apply\" using v1: .spec.replicas"),
        "{error}"
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let (table, ty) = test_table();
    let config = object(json!({"spec": {"replicas": 1, "items": [{"name": "a", "ports": [{"port": 1}]}]}}));
    let first = apply(&table, ty, None, &config, "m", "", false, at(1)).unwrap();
    let second = apply(&table, ty, Some(&first), &config, "m", "", false, at(9)).unwrap();
    assert_eq!(first, second);
}

#[test]
fn list_order_follows_the_configuration() {
    let names = |o: &Object| -> Vec<String> {
        o.0["spec"]["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let live =
        run(None, json!({"spec": {"items": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}), "m", false)
            .unwrap();
    let merged = run(
        Some(&live),
        json!({"spec": {"items": [{"name": "d"}, {"name": "c"}, {"name": "b"}]}}),
        "n",
        false,
    )
    .unwrap();
    assert_eq!(names(&merged), ["d", "a", "c", "b"]);
}

#[test]
fn wrong_configurations_are_refused() {
    for config in [
        json!({"spec": {"items": [{"image": "x"}]}}),
        json!({"spec": {"items": [{"name": "x"}, {"name": "x"}]}}),
        json!({"metadata": {"finalizers": ["a", "a"]}}),
        json!({"metadata": {"managedFields": [{}]}}),
    ] {
        assert!(matches!(run(None, config.clone(), "m", false), Err(ApplyError::Invalid(_))), "{config}");
    }
}

#[test]
fn updates_take_ownership_of_what_they_change() {
    let (table, ty) = test_table();
    let mut created = object(
        json!({"metadata": {"labels": {"l": "1"}}, "spec": {"replicas": 1, "items": [{"name": "a"}]}}),
    );
    track_update(&table, ty, None, &mut created, "kubectl", "", Operation::Update, at(0));
    assert_eq!(
        fields(&created, "kubectl"),
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
            "f:spec": {"f:replicas": {}, "f:items": {".": {}, "k:{\"name\":\"a\"}": {".": {}, "f:name": {}}}},
        })
    );
    let scaled = update(&created, |o| o.set(&["spec", "replicas"], 2), "scaler");
    assert_eq!(fields(&scaled, "scaler"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(fields(&scaled, "kubectl")["f:spec"].get("f:replicas"), None);
    let cut = update(&scaled, |o| drop(o.remove(&["spec", "replicas"])), "kubectl");
    assert_eq!(fields(&cut, "scaler"), Value::Null);
    let same = update(&cut, |_| {}, "nobody");
    assert_eq!(same, cut);
    let reset = update(&cut, |o| o.set(&["metadata", "managedFields"], json!([{}])), "kubectl");
    assert_eq!(reset.get(&["metadata", "managedFields"]), None);
}

#[test]
fn many_updaters_are_folded() {
    let mut live = object(json!({}));
    for i in 0..15 {
        let (table, ty) = test_table();
        let mut new = live.clone();
        new.set(&["spec", "labels", &format!("k{i}")], "v");
        track_update(&table, ty, Some(&live), &mut new, &format!("m{i}"), "", Operation::Update, at(i));
        live = new;
    }
    let list = live.0["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(list.len(), 10);
    assert!(fields(&live, "ancient-changes")["f:spec"]["f:labels"].get("f:k0").is_some());
}

fn specs() -> impl Strategy<Value = Value> {
    let ports = prop::collection::btree_map(1..4i32, prop::option::of("TCP|UDP"), 0..3);
    let item = (prop::option::of("[a-c]"), prop::option::of(prop::collection::vec("[x-z]", 0..3)), ports);
    let items = prop::collection::btree_map("[p-t]", item, 0..4);
    let labels = prop::option::of(prop::collection::btree_map("[a-d]", "[0-2]", 0..3));
    let plain = (prop::option::of(0..3i32), labels, prop::option::of(prop::collection::vec("[u-w]", 0..3)));
    (items, plain, prop::collection::btree_set("[f-i]", 0..3), any::<bool>()).prop_map(
        |(items, plain, finalizers, reverse)| {
            let mut list: Vec<Value> = items
                .into_iter()
                .map(|(name, (image, args, ports))| {
                    let ports: Vec<Value> = ports
                        .into_iter()
                        .map(|(port, protocol)| json!({"port": port, "protocol": protocol}))
                        .collect();
                    without_nulls(json!({"name": name, "image": image, "args": args, "ports": ports}))
                })
                .collect();
            if reverse {
                list.reverse();
            }
            let spec = json!({"items": list, "replicas": plain.0, "labels": plain.1, "atomicList": plain.2});
            json!({"metadata": {"finalizers": finalizers}, "spec": without_nulls(spec)})
        },
    )
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

proptest! {
    #[test]
    fn applying_is_idempotent_and_keeps_what_is_stated(a in specs(), b in specs()) {
        let (table, ty) = test_table();
        let first = run(None, a.clone(), "one", false).unwrap();
        let second = run(Some(&first), b.clone(), "two", true).unwrap();
        prop_assert_eq!(&run(Some(&second), b.clone(), "two", false).unwrap(), &second);
        // Merging the configuration again changes nothing: all it states is there.
        let mut again = without_managed(&second);
        Typed::new(&table).merge(ty, &mut again, &object(b).0).unwrap();
        prop_assert_eq!(again, without_managed(&second));
        // When the first gives up everything and the second too, only identity is left.
        let third = run(Some(&second), json!({}), "one", false).unwrap();
        let fourth = run(Some(&third), json!({}), "two", false).unwrap();
        prop_assert_eq!(fourth.get(&["metadata", "managedFields"]), None);
        let owned = Typed::new(&table).set_of(ty, &without_managed(&fourth)).unwrap();
        let mut owned = owned;
        strip(&mut owned);
        prop_assert_eq!(owned.paths(), Vec::<String>::new());
    }

    #[test]
    fn an_update_is_seen_whole(a in specs(), b in specs()) {
        let (table, ty) = test_table();
        let mut live = object(a);
        track_update(&table, ty, None, &mut live, "one", "", Operation::Update, at(0));
        let mut new = object(b);
        track_update(&table, ty, Some(&live), &mut new, "two", "", Operation::Update, at(1));
        // No field has two owners after an update, and none of those recorded is absent.
        let list = entries(&new);
        for (i, entry) in list.iter().enumerate() {
            for other in &list[i + 1..] {
                prop_assert!(entry.set.intersection(&other.set).is_empty());
            }
        }
        let all = Typed::new(&table).compare(ty, &Map::new(), &without_managed(&new)).written;
        for entry in &list {
            prop_assert_eq!(&entry.set.intersection(&all), &entry.set);
        }
    }

    /// After any two applications by two managers the fields that either states are there, with the later value.
    #[test]
    fn two_appliers(a in prop::collection::btree_map("[a-d]", "[0-2]", 0..4), b in prop::collection::btree_map("[a-d]", "[0-2]", 0..4)) {
        let config = |labels: &std::collections::BTreeMap<String, String>| json!({"spec": {"labels": labels}});
        let first = run(None, config(&a), "one", false).unwrap();
        let second = run(Some(&first), config(&b), "two", true).unwrap();
        let mut wanted = a.clone();
        wanted.extend(b.clone());
        let labels = second.get(&["spec", "labels"]).cloned().unwrap_or(json!({}));
        prop_assert_eq!(labels, json!(wanted));
        // The second gives up: what only it owned goes, what the first still owns stays.
        let third = run(Some(&second), json!({}), "two", false).unwrap();
        let left: std::collections::BTreeMap<_, _> =
            a.iter().filter(|(k, v)| b.get(*k).is_none_or(|x| x == *v)).collect();
        let labels = third.get(&["spec", "labels"]).cloned().unwrap_or(json!({}));
        prop_assert_eq!(labels, json!(left));
    }

    #[test]
    fn field_sets_survive_encoding(paths in prop::collection::vec(prop::collection::vec("f:[a-c]|v:[0-9]", 1..4), 0..6)) {
        let mut set = FieldSet::default();
        paths.iter().for_each(|p| set.insert(p));
        prop_assert_eq!(FieldSet::from_value(&set.to_value()).unwrap(), set.clone());
        let mut none = set.clone();
        none.subtract(&set);
        prop_assert!(none.is_empty());
        prop_assert_eq!(set.intersection(&set), set);
    }
}
