//! AdmissionReview: the request to a webhook, and what its answer says.

use api::{GroupVersionKind, GroupVersionResource, Object, Status};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::admission::dynamic::Subject;
use crate::registry::meta;
use crate::resource::Resource;

const GROUP: &str = "admission.k8s.io";
/// A rejection is at least a client's error.
const LEAST_CODE: u64 = 400;

/// What a webhook answers.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) allowed: bool,
    pub(super) patch: Option<Value>,
    /// A `Status`, or null.
    pub(super) result: Value,
    pub(super) warnings: Vec<String>,
    pub(super) audit: Vec<(String, String)>,
}

fn kind(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn resource(gvr: &GroupVersionResource) -> Value {
    json!({"group": gvr.group, "version": gvr.version, "resource": gvr.resource})
}

/// The request without the objects, also as policies see it.
pub(crate) fn request_of(subject: &Subject<'_>, row: &Resource) -> Map<String, Value> {
    let user = subject.user;
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    let request = json!({
        "kind": kind(&subject.kind_in(row)),
        "resource": resource(&row.gvr),
        "requestKind": kind(&subject.kind),
        "requestResource": resource(&subject.row.gvr),
        "operation": subject.operation.as_str(),
        "userInfo": info,
        "dryRun": subject.dry_run,
        "options": subject.options,
    });
    let Value::Object(mut request) = request else { return Map::new() };
    let texts = [
        ("subResource", subject.subresource),
        ("requestSubResource", subject.subresource),
        ("name", subject.name.as_str()),
        ("namespace", subject.namespace.as_str()),
    ];
    for (name, value) in texts {
        if !value.is_empty() {
            request.insert(name.to_owned(), value.into());
        }
    }
    request
}

/// The identity of a review and the review.
pub(super) fn request(
    subject: &Subject<'_>,
    row: &Resource,
    object: Option<Object>,
    old: Option<Object>,
    version: &str,
) -> (String, Value) {
    let uid = meta::uuid();
    let mut request = request_of(subject, row);
    request.insert("uid".to_owned(), uid.as_str().into());
    let tree = |object: Option<Object>| object.map_or(Value::Null, Object::into_value);
    request.insert("object".to_owned(), tree(object));
    request.insert("oldObject".to_owned(), tree(old));
    let review =
        json!({"kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}"), "request": request});
    (uid, review)
}

/// Reads an answer.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(review: &Value, uid: &str, version: &str, mutating: bool) -> Result<Answer, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let strict = version == "v1";
    if strict {
        if text(&response["uid"]) != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
        }
        let want = format!("{GROUP}/{version}");
        if review["kind"] != "AdmissionReview" || review["apiVersion"] != want.as_str() {
            let (is, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
            return Err(format!(
                "expected webhook response of {want}, Kind=AdmissionReview, got {is}, Kind={kind}"
            ));
        }
    }
    let (patch, patch_type) = (text(&response["patch"]), &response["patchType"]);
    match (mutating, patch.is_empty(), patch_type.is_null()) {
        (true, false, true) if strict => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        (true, true, false) if strict => {
            return Err("webhook returned response.patchType but not response.patch".to_owned());
        }
        (false, false, _) if strict => {
            return Err("validating webhook may not return response.patch".to_owned());
        }
        (false, _, false) if strict => {
            return Err("validating webhook may not return response.patchType".to_owned());
        }
        _ => {}
    }
    if mutating && strict && !patch.is_empty() && patch_type != "JSONPatch" {
        return Err(format!("unsupported patch type {:?}", text(patch_type)));
    }
    let patch = if mutating && !patch.is_empty() { Some(decode(&patch)?) } else { None };
    let list = response["warnings"].as_array().into_iter().flatten();
    let audit = response["auditAnnotations"].as_object().into_iter().flatten();
    Ok(Answer {
        allowed: response["allowed"] == true,
        patch,
        result: response["status"].clone(),
        warnings: list.map(text).collect(),
        audit: audit.map(|(key, value)| (key.clone(), text(value))).collect(),
    })
}

fn decode(patch: &str) -> Result<Value, String> {
    let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
    let bytes = BASE64_STANDARD.decode(patch).map_err(|error| undecodable(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| undecodable(error.to_string()))
}

/// The refusal of a request as the webhook explains it.
pub(super) fn denial(name: &str, result: &Value) -> Status {
    let by = format!("admission webhook {name:?} denied the request");
    let text = |field: &str| result[field].as_str().unwrap_or_default();
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = result["code"].as_u64().unwrap_or(0).max(LEAST_CODE);
    let mut full = if result.is_object() { result.clone() } else { json!({}) };
    full["code"] = code.into();
    full["message"] = message.into();
    Status::from_value(&full, 400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_say_who_and_why() {
        let table = [
            (json!(null), (400, "admission webhook \"w\" denied the request without explanation")),
            (json!({"message": "no"}), (400, "admission webhook \"w\" denied the request: no")),
            (
                json!({"reason": "Forbidden", "code": 403}),
                (403, "admission webhook \"w\" denied the request: Forbidden"),
            ),
            (json!({"message": "no", "code": 200}), (400, "admission webhook \"w\" denied the request: no")),
        ];
        for (result, (code, message)) in table {
            let status = denial("w", &result);
            assert_eq!((status.code, status.message.as_str()), (code, message), "{result}");
        }
    }

    #[test]
    fn answers_are_checked() {
        let review = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let patch = BASE64_STANDARD.encode("[{\"op\":\"remove\",\"path\":\"/a\"}]");
        let table = [
            (review(json!({"uid": "u", "allowed": true})), true, ""),
            (json!({"kind": "AdmissionReview"}), true, "webhook response was absent"),
            (review(json!({"uid": "x"})), true, "expected response.uid=\"u\", got \"x\""),
            (
                review(json!({"uid": "u", "patch": patch})),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                review(json!({"uid": "u", "patchType": "JSONPatch"})),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                review(json!({"uid": "u", "patch": patch, "patchType": "JSONPatch"})),
                false,
                "validating webhook may not return response.patch",
            ),
            (
                review(json!({"uid": "u", "patch": patch, "patchType": "Merge"})),
                true,
                "unsupported patch type \"Merge\"",
            ),
        ];
        for (answer, mutating, want) in table {
            let got = read(&answer, "u", "v1", mutating).err().unwrap_or_default();
            assert_eq!(got, want, "{answer}");
        }
        let both = json!({"response": {"allowed": true, "patch": patch, "warnings": ["careful"]}});
        let got = read(&both, "u", "v1beta1", true).unwrap();
        assert_eq!(got.patch, Some(json!([{"op": "remove", "path": "/a"}])));
        assert_eq!(got.warnings, ["careful"]);
    }
}
