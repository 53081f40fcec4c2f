//! Value functions of printer columns that several kinds share.

use api::Object;
use jiff::Timestamp;
use serde_json::Value;

use super::duration;

const NONE: &str = "<none>";

pub(crate) fn name(o: &Object, _: Timestamp) -> Value {
    o.name().into()
}

pub(crate) fn age(o: &Object, now: Timestamp) -> Value {
    since(o.str(&["metadata", "creationTimestamp"]), now).into()
}

/// Time since an RFC 3339 timestamp, `<unknown>` when there is none.
pub(crate) fn since(then: &str, now: Timestamp) -> String {
    then.parse().map_or_else(|_| "<unknown>".to_owned(), |then| duration::since(then, now))
}

pub(crate) fn created_at(o: &Object, _: Timestamp) -> Value {
    o.str(&["metadata", "creationTimestamp"]).into()
}

/// The text, or `<none>`.
pub(crate) fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
}

/// A string, number or boolean as text; "" for everything else.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        _ => String::new(),
    }
}

/// The value at a path as text.
pub(crate) fn text(o: &Object, path: &[&str]) -> String {
    o.get(path).map(plain).unwrap_or_default()
}

/// The integer at a path, 0 when absent.
pub(crate) fn count(o: &Object, path: &[&str]) -> i64 {
    o.i64(path).unwrap_or(0)
}

/// The list at a path, empty when absent.
pub(crate) fn list<'a>(o: &'a Object, path: &[&str]) -> &'a [Value] {
    o.get(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Number of entries of the list or map at a path.
pub(crate) fn size(o: &Object, path: &[&str]) -> usize {
    match o.get(path) {
        Some(Value::Array(a)) => a.len(),
        Some(Value::Object(m)) => m.len(),
        _ => 0,
    }
}

/// The string field of a value, "" when absent.
pub(crate) fn sub<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The string items of a list, joined by commas.
pub(crate) fn joined(list: &[Value]) -> String {
    list.iter().map(plain).collect::<Vec<_>>().join(",")
}

/// A label map: `a=b,c=d`, `<none>` when empty.
pub(crate) fn labels(value: Option<&Value>) -> String {
    let map = value.and_then(Value::as_object);
    let parts: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", plain(v))).collect();
    or_none(&parts.join(","))
}

/// A LabelSelector in the form of a query: `app=web,tier in (a,b),!x`.
pub(crate) fn selector(value: Option<&Value>) -> String {
    let Some(value) = value.filter(|v| v.is_object()) else { return NONE.to_owned() };
    let labels = value.get("matchLabels").and_then(Value::as_object);
    let mut parts: Vec<(String, String)> =
        labels.into_iter().flatten().map(|(k, v)| (k.clone(), format!("{k}={}", plain(v)))).collect();
    for item in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = sub(item, "key");
        let mut values: Vec<String> =
            item.get("values").and_then(Value::as_array).into_iter().flatten().map(plain).collect();
        values.sort();
        let values = values.join(",");
        let part = match sub(item, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), part));
    }
    parts.sort();
    or_none(&parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join(","))
}

/// One field of every container of a pod spec, joined by commas.
fn container_fields(o: &Object, spec: &[&str], field: &str) -> Value {
    let mut path = spec.to_vec();
    path.push("containers");
    list(o, &path).iter().map(|c| sub(c, field)).collect::<Vec<_>>().join(",").into()
}

const TEMPLATE: &[&str] = &["spec", "template", "spec"];
const JOB_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template", "spec"];

pub(crate) fn template_containers(o: &Object, _: Timestamp) -> Value {
    container_fields(o, TEMPLATE, "name")
}

pub(crate) fn template_images(o: &Object, _: Timestamp) -> Value {
    container_fields(o, TEMPLATE, "image")
}

pub(crate) fn job_template_containers(o: &Object, _: Timestamp) -> Value {
    container_fields(o, JOB_TEMPLATE, "name")
}

pub(crate) fn job_template_images(o: &Object, _: Timestamp) -> Value {
    container_fields(o, JOB_TEMPLATE, "image")
}

pub(crate) fn pod_template_containers(o: &Object, _: Timestamp) -> Value {
    container_fields(o, &["template", "spec"], "name")
}

pub(crate) fn pod_template_images(o: &Object, _: Timestamp) -> Value {
    container_fields(o, &["template", "spec"], "image")
}

pub(crate) fn spec_selector(o: &Object, _: Timestamp) -> Value {
    selector(o.get(&["spec", "selector"])).into()
}

pub(crate) fn spec_selector_labels(o: &Object, _: Timestamp) -> Value {
    labels(o.get(&["spec", "selector"])).into()
}

/// Access modes in their short forms: `RWO,ROX`.
pub(crate) fn access_modes(list: &[Value]) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let present = short.iter().filter(|(long, _)| list.iter().any(|m| m.as_str() == Some(long)));
    present.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// The status of the condition of a type, "" when there is none.
pub(crate) fn condition<'a>(o: &'a Object, type_: &str) -> &'a str {
    let found = list(o, &["status", "conditions"]).iter().find(|c| sub(c, "type") == type_);
    found.map(|c| sub(c, "status")).unwrap_or_default()
}

/// Addresses of a load balancer, sorted, joined by commas.
pub(crate) fn load_balancer(o: &Object) -> String {
    let ingress = list(o, &["status", "loadBalancer", "ingress"]).iter();
    let mut addresses: Vec<&str> = ingress
        .map(|i| if sub(i, "ip").is_empty() { sub(i, "hostname") } else { sub(i, "ip") })
        .filter(|a| !a.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.join(",")
}

/// At most three of the texts, then how many more there are.
pub(crate) fn at_most_three(texts: &[String]) -> String {
    let shown = texts.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if texts.len() > 3 { format!("{shown} + {} more...", texts.len() - 3) } else { shown }
}
