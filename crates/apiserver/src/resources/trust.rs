//! `certificates.k8s.io/v1`: ClusterTrustBundle, PodCertificateRequest.

use api::{FieldError, Object};
use serde_json::Value;

use super::check::{At, Errors, immutable};
use super::names;
use super::row::{Hooks, Row, age_col, col, name_col};
use crate::printing::cells;

const BUNDLE: Hooks = Hooks {
    validate: validate_bundle,
    validate_update: |new, old, e| immutable(e, new, old, &["spec", "signerName"]),
    ..Hooks::NONE
};
const REQUEST: Hooks = Hooks {
    default: |o| o.set_default(&["spec", "maxExpirationSeconds"], DAY),
    validate: validate_request,
    validate_update: |new, old, e| {
        immutable(e, new, old, &["spec"]);
        if !decision(old).is_empty() {
            immutable(e, new, old, &["status"]);
        }
    },
    ..Hooks::NONE
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const LONGEST: i64 = 91 * DAY;
/// What a signer decides once.
const DECISIONS: [&str; 3] = ["Denied", "Failed", "Issued"];

fn validate_bundle(o: &Object, e: &mut Errors) {
    let signer = At::top(o, "spec").field("signerName");
    if signer.is_empty() {
        for detail in names::dns_subdomain(o.name()) {
            e.push(FieldError::invalid("metadata.name", o.name(), &detail));
        }
    } else {
        validate_signer(&signer, e);
        let prefix = format!("{}:", signer.str().replace('/', ":"));
        if !o.name().starts_with(&prefix) {
            let detail = format!(
                "ClusterTrustBundle for signerName {} must be named with prefix {prefix}",
                signer.str()
            );
            e.push(FieldError::invalid("metadata.name", o.name(), &detail));
        }
    }
    let bundle = At::top(o, "spec").field("trustBundle");
    if bundle.required(e)
        && let Err(why) = check_certificates(bundle.str())
    {
        bundle.invalid(e, why);
    }
}

fn validate_signer(signer: &At<'_>, e: &mut Errors) {
    if !signer.str().contains('/') {
        signer.invalid(e, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    }
    signer.text(e, names::qualified_name);
}

/// A non-empty sequence of distinct certificates in PEM.
fn check_certificates(text: &str) -> Result<(), &'static str> {
    let mut seen = std::collections::HashSet::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|_| "must be PEM")?;
        if block.label != "CERTIFICATE" {
            return Err("must contain only blocks of type CERTIFICATE");
        }
        block.parse_x509().map_err(|_| "holds a block that is no certificate")?;
        if !seen.insert(block.contents) {
            return Err("must not contain the same certificate twice");
        }
    }
    if seen.is_empty() { Err("must contain at least one certificate") } else { Ok(()) }
}

fn decision(o: &Object) -> &str {
    let types = cells::list(o, &["status", "conditions"]).iter().map(|c| cells::sub(c, "type"));
    types.into_iter().find(|type_| DECISIONS.contains(type_)).unwrap_or_default()
}

fn validate_request(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    if spec.field("signerName").required(e) {
        validate_signer(&spec.field("signerName"), e);
    }
    spec.field("podName").required_text(e, names::dns_subdomain);
    spec.field("serviceAccountName").required_text(e, names::dns_subdomain);
    spec.field("nodeName").required_text(e, names::dns_subdomain);
    spec.field("maxExpirationSeconds").between(e, HOUR, LONGEST);
    spec.field("stubPKCS10Request").required(e);
    let conditions = At::top(o, "status").field("conditions");
    let mut decisions = 0;
    for condition in conditions.items() {
        condition.field("type").required_one_of(e, &DECISIONS);
        condition.field("status").required_one_of(e, &["True"]);
        decisions += 1;
    }
    if decisions > 1 {
        conditions.invalid(e, "there may be at most one condition with type Issued, Denied, or Failed");
    }
    let chain = At::top(o, "status").field("certificateChain");
    if decision(o) == "Issued" {
        if chain.required(e)
            && let Err(why) = check_certificates(chain.str())
        {
            chain.invalid(e, why);
        }
    } else if !chain.is_empty() {
        chain.forbidden(e, "may only be set together with the condition Issued");
    }
}

fn spec_text(o: &Object, field: &str) -> Value {
    o.str(&["spec", field]).into()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("clustertrustbundles", "ClusterTrustBundle")
            .cluster()
            .named(names::path_segment)
            .fields(&["spec.signerName"])
            .strategy(BUNDLE)
            .exact_columns(vec![
                name_col(),
                col("SignerName", "string", "The signer that the bundle belongs to.", |o, _| {
                    cells::or_none(o.str(&["spec", "signerName"])).into()
                }),
                age_col(),
            ]),
        Row::new("podcertificaterequests", "PodCertificateRequest")
            .fields(&["spec.nodeName", "spec.podName", "spec.signerName"])
            .status()
            .strategy(REQUEST)
            .exact_columns(vec![
                name_col(),
                col("PodName", "string", "The pod.", |o, _| spec_text(o, "podName")),
                col("ServiceAccountName", "string", "The pod's service account.", |o, _| {
                    spec_text(o, "serviceAccountName")
                }),
                col("NodeName", "string", "The pod's node.", |o, _| spec_text(o, "nodeName")),
                col("SignerName", "string", "Who is to sign.", |o, _| spec_text(o, "signerName")),
                col("State", "string", "What has become of the request.", |o, _| match decision(o) {
                    "" => "Pending".into(),
                    decision => decision.into(),
                }),
                age_col(),
            ]),
    ]
}
