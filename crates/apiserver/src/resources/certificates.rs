//! `certificates.k8s.io/v1`: CertificateSigningRequest.
//!
//! Who asks is written by the server and never by the asker: the signer trusts `spec.username` and `spec.groups`.

use api::{FieldError, Object, Verb};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::check::{At, Errors};
use super::names;
use super::row::{Hooks, Row, age_col, col, name_col};
use crate::printing::cells;
use crate::resource::{UserInfo, WriteContext};

const REQUEST: Hooks = Hooks {
    create: prepare_for_create,
    update: prepare_for_update,
    validate,
    validate_update,
    ..Hooks::NONE
};
/// Conditions that only the subresource `approval` may change.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Shortest life of a certificate that may be asked for.
const SHORTEST_SECONDS: i64 = 600;

fn prepare_for_create(cx: &WriteContext<'_>, o: &mut Object) {
    let UserInfo { name, uid, groups, extra } = cx.user;
    for (field, value) in [("username", name), ("uid", uid)] {
        if value.is_empty() {
            o.remove(&["spec", field]);
        } else {
            o.set(&["spec", field], value.as_str());
        }
    }
    o.set(&["spec", "groups"], groups.clone());
    if extra.is_empty() {
        o.remove(&["spec", "extra"]);
    } else {
        o.set(&["spec", "extra"], json!(extra));
    }
    o.remove(&["status"]);
}

/// The main path changes metadata only, `approval` the conditions, `status` everything in the status but the decision.
fn prepare_for_update(cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
    let (decided, rest): (Vec<Value>, Vec<Value>) = match cx.subresource {
        Some("approval") => {
            let conditions = cells::list(new, &["status", "conditions"]).to_vec();
            let metadata = new.get(&["metadata"]).cloned();
            *new = old.clone();
            if let Some(metadata) = metadata {
                new.set(&["metadata"], metadata);
            }
            (conditions, Vec::new())
        }
        Some(_) => (conditions_of(old, is_decision), conditions_of(new, |c| !is_decision(c))),
        None => {
            if let Some(spec) = old.get(&["spec"]).cloned() {
                new.set(&["spec"], spec);
            }
            return;
        }
    };
    let mut conditions = [decided, rest].concat();
    for condition in &mut conditions {
        stamp(condition, cx.now);
    }
    if conditions.is_empty() {
        new.remove(&["status", "conditions"]);
    } else {
        new.set(&["status", "conditions"], conditions);
    }
}

fn conditions_of(o: &Object, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    cells::list(o, &["status", "conditions"]).iter().filter(|c| wanted(c)).cloned().collect()
}

fn is_decision(condition: &Value) -> bool {
    condition["type"].as_str().is_some_and(|t| DECISIONS.contains(&t))
}

fn stamp(condition: &mut Value, now: jiff::Timestamp) {
    let now = crate::registry::meta::timestamp(now);
    for field in ["lastUpdateTime", "lastTransitionTime"] {
        if condition[field].is_null()
            && let Some(fields) = condition.as_object_mut()
        {
            fields.insert(field.to_owned(), now.clone().into());
        }
    }
}

fn validate(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    let request = spec.field("request");
    if request.required(e) && !is_request(request.str()) {
        request.invalid(e, "must be a PEM block of type CERTIFICATE REQUEST with a PKCS#10 request");
    }
    spec.field("usages").required(e);
    spec.field("signerName").required_text(e, names::qualified_name);
    let signer = spec.field("signerName");
    if !signer.is_empty() && !signer.str().contains('/') {
        signer.invalid(e, "must be a fully qualified domain and path of the form example.com/signer-name");
    }
    if spec.field("expirationSeconds").i64().is_some_and(|s| s < SHORTEST_SECONDS) {
        spec.field("expirationSeconds")
            .invalid(e, "may not specify a duration less than 600 seconds (10 minutes)");
    }
    let conditions = At::top(o, "status").field("conditions");
    let mut types = Vec::new();
    for condition in conditions.items() {
        let type_ = condition.field("type");
        if type_.required(e) && types.contains(&type_.str()) {
            e.push(FieldError::duplicate(&type_.path, type_.str()));
        }
        types.push(type_.str());
        if matches!(type_.str(), "Approved" | "Denied" | "Failed") {
            condition.field("status").one_of(e, &["True"]);
        }
    }
    if DECISIONS.iter().all(|d| types.contains(d)) {
        conditions.invalid(e, "Approved and Denied conditions are mutually exclusive");
    }
}

/// A decision is never taken back, and a certificate never replaced.
fn validate_update(new: &Object, old: &Object, e: &mut Errors) {
    let types = |o: &Object| -> Vec<String> {
        let list = cells::list(o, &["status", "conditions"]);
        list.iter().map(|c| cells::sub(c, "type").to_owned()).collect()
    };
    let after = types(new);
    for gone in types(old).iter().filter(|t| !after.contains(t)) {
        let detail = format!("updates may not remove a condition of type {gone:?}");
        e.push(FieldError::forbidden("status.conditions", &detail));
    }
    let before = old.str(&["status", "certificate"]);
    if !before.is_empty() && before != new.str(&["status", "certificate"]) {
        e.push(FieldError::forbidden(
            "status.certificate",
            "updates may not set certificate content after the certificate was issued",
        ));
    }
}

/// Whether base64 text holds a PEM block with a PKCS#10 request.
fn is_request(text: &str) -> bool {
    let Ok(pem) = STANDARD.decode(text) else { return false };
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    block.label == "CERTIFICATE REQUEST" && X509CertificationRequest::from_der(&block.contents).is_ok()
}

/// `Approved,Issued` and the like, as kubectl shows it.
fn condition(o: &Object) -> String {
    let types: Vec<&str> =
        cells::list(o, &["status", "conditions"]).iter().map(|c| cells::sub(c, "type")).collect();
    let mut words: Vec<&str> = Vec::new();
    if types.contains(&"Denied") {
        words.push("Denied");
    } else if types.contains(&"Approved") {
        words.push("Approved");
    } else {
        words.push("Pending");
    }
    if types.contains(&"Failed") {
        words.push("Failed");
    }
    if !o.str(&["status", "certificate"]).is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("certificatesigningrequests", "CertificateSigningRequest")
            .short(&["csr"])
            .cluster()
            .fields(&["spec.signerName"])
            .part("approval", &[Verb::Get, Verb::Patch, Verb::Update])
            .status()
            .strategy(REQUEST)
            .exact_columns(vec![
                name_col(),
                age_col(),
                col("SignerName", "string", "Who is to sign.", |o, _| o.str(&["spec", "signerName"]).into()),
                col("Requestor", "string", "Who asks.", |o, _| o.str(&["spec", "username"]).into()),
                col("RequestedDuration", "string", "Life that was asked for.", |o, _| {
                    match o.i64(&["spec", "expirationSeconds"]) {
                        Some(seconds) => format!("{seconds}s").into(),
                        None => "<none>".into(),
                    }
                }),
                col("Condition", "string", "What has become of the request.", |o, _| condition(o).into()),
            ]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Strategy as _;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn request() -> Object {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        object(json!({"metadata": {"name": "a"}, "spec": {
            "request": STANDARD.encode(request.pem().unwrap()),
            "signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth"],
        }}))
    }

    #[test]
    fn only_real_requests_pass() {
        assert_eq!(REQUEST.validate(&request()), Vec::new());
        for (path, value) in [
            (["spec", "request"], json!(STANDARD.encode("nonsense"))),
            (["spec", "usages"], json!([])),
            (["spec", "signerName"], json!("nobody")),
            (["spec", "expirationSeconds"], json!(5)),
        ] {
            let mut bad = request();
            bad.set(&path, value);
            assert!(!REQUEST.validate(&bad).is_empty(), "{path:?}");
        }
        let mut both = request();
        both.set(
            &["status", "conditions"],
            json!([
                {"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"},
            ]),
        );
        assert!(!REQUEST.validate(&both).is_empty());
    }

    #[test]
    fn what_is_issued_stays() {
        let (mut old, mut new) = (request(), request());
        old.set(
            &["status"],
            json!({"certificate": "YQ==", "conditions": [{"type": "Approved", "status": "True"}]}),
        );
        new.set(&["status"], json!({"certificate": "Yg=="}));
        let fields: Vec<String> = REQUEST.validate_update(&new, &old).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["status.conditions", "status.certificate"]);
        assert_eq!(condition(&old), "Approved,Issued");
        assert_eq!(condition(&request()), "Pending");
    }
}
