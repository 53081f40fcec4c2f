//! podCertificate projections (KEP-4317): a key made here, and a certificate for it that a signer issues through a
//! PodCertificateRequest; renewed when the signer says so.
//!
//! ```text
//!   missing or due ─▶ key + request ─▶ signer ─▶ Issued: taken, the worker looks again
//!                                          └──▶ Denied, Failed: a first certificate is never asked for again
//! ```
//!
//! Requests are answered whenever the signer likes: each has a task that waits, so that the worker never does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::ObjectKey;
use client::{Client, Informer, Scope};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1 as certificates;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::observed::{after, spec};

/// Pause before a request that could not be made, or a renewal that was refused, is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// A key and its certificate chain, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub key: String,
    pub chain: String,
    renew_at: Option<Timestamp>,
}

/// How far the newest request of a projection is.
#[derive(Clone, Debug)]
enum Outcome {
    Waiting,
    Issued(Credential),
    /// The signer's answer, for good.
    Refused(String),
    /// The request could not be made.
    Broken(String),
}

struct Request {
    outcome: Arc<Mutex<Outcome>>,
    task: AbortHandle,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
struct Slot {
    current: Option<Credential>,
    request: Option<Request>,
    /// A renewal is not tried before.
    not_before: Option<Timestamp>,
    /// Why there is none.
    trouble: Option<String>,
    /// No further request will be made.
    over: bool,
}

/// A pod's certificates, by volume and place in its sources.
#[derive(Default)]
pub struct Certificates {
    slots: BTreeMap<(String, usize), Slot>,
}

/// Who asks for certificates.
pub struct Asker<'a> {
    pub client: &'a Client,
    pub node_name: &'a str,
    pub pod: &'a core::Pod,
    /// Told when a request has been answered.
    pub wake: &'a mpsc::UnboundedSender<()>,
    pub now: Timestamp,
}

impl Certificates {
    /// The credential of one projection.
    ///
    /// # Errors
    /// Why it is not there (yet).
    pub fn get(&self, volume: &str, index: usize) -> Result<&Credential, String> {
        let slot = self.slots.get(&(volume.to_owned(), index));
        let slot = slot.ok_or("the certificate has not been asked for yet")?;
        let trouble =
            || slot.trouble.clone().unwrap_or_else(|| "waiting for the certificate to be issued".into());
        slot.current.as_ref().ok_or_else(trouble)
    }

    /// When the next certificate wants renewing.
    pub fn renew_at(&self) -> Option<Timestamp> {
        self.slots.values().filter(|s| s.request.is_none() && !s.over).filter_map(Slot::due_at).min()
    }

    /// Takes answers and asks for whatever is missing or due.
    pub fn refresh(&mut self, asker: &Asker<'_>) {
        for volume in spec(asker.pod).volumes.iter().flatten() {
            let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            for (index, source) in sources.enumerate() {
                let Some(wanted) = &source.pod_certificate else { continue };
                let slot = self.slots.entry((volume.name.clone(), index)).or_default();
                slot.take_answer(asker.now);
                if slot.request.is_none() && !slot.over && slot.due_at().is_none_or(|at| at <= asker.now) {
                    slot.request = Some(ask(asker, wanted.clone()));
                }
            }
        }
    }
}

impl Slot {
    /// `None`: at once.
    fn due_at(&self) -> Option<Timestamp> {
        let renew = self.current.as_ref().map(|c| c.renew_at.unwrap_or(Timestamp::MAX));
        renew.max(self.not_before)
    }

    fn take_answer(&mut self, now: Timestamp) {
        let Some(request) = &self.request else { return };
        let outcome = request.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match outcome {
            Outcome::Waiting => return,
            Outcome::Issued(credential) => {
                self.current = Some(credential);
                (self.trouble, self.not_before) = (None, None);
            }
            Outcome::Refused(why) => {
                // The pod goes on with what it has; a pod that never had one fails for good.
                self.over = self.current.is_none();
                self.trouble = Some(why);
                self.not_before = Some(after(now, AGAIN));
            }
            Outcome::Broken(why) => {
                self.trouble = Some(why);
                self.not_before = Some(after(now, AGAIN));
            }
        }
        self.request = None;
    }
}

/// Asks in the background.
fn ask(asker: &Asker<'_>, wanted: core::PodCertificateProjection) -> Request {
    let outcome = Arc::new(Mutex::new(Outcome::Waiting));
    let (client, pod, node) = (asker.client.clone(), asker.pod.clone(), asker.node_name.to_owned());
    let (answer, wake) = (outcome.clone(), asker.wake.clone());
    let task = client::spawn(async move {
        let found = request(&client, &pod, &node, &wanted).await.unwrap_or_else(Outcome::Broken);
        *answer.lock().unwrap_or_else(PoisonError::into_inner) = found;
        // The worker may have ended meanwhile.
        wake.send(()).ok();
    });
    Request { outcome, task: task.abort_handle() }
}

/// Makes a key and a request for it, and waits for the signer.
async fn request(
    client: &Client,
    pod: &core::Pod,
    node: &str,
    wanted: &core::PodCertificateProjection,
) -> Result<Outcome, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("cannot ask for a certificate: {what}: {e}");
    // Making a key takes a while of computing.
    let kind = wanted.key_type.clone();
    let made = tokio::task::spawn_blocking(move || key_and_proof(&kind)).await;
    let (key, proof) = made.map_err(|e| failed("key", &e))??;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let account = spec(pod).service_account_name.clone().unwrap_or_else(|| "default".into());
    let owner: core::ServiceAccount = client
        .get(&ObjectKey::new(namespace.clone(), account.clone()))
        .await
        .map_err(|e| failed("service account", &e))?;
    let machine: core::Node =
        client.get(&ObjectKey::new("", node.to_owned())).await.map_err(|e| failed("node", &e))?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let body = certificates::PodCertificateRequest {
        metadata: ObjectMeta {
            generate_name: Some("req-".into()),
            namespace: Some(namespace.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: name.clone(),
                uid: uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: certificates::PodCertificateRequestSpec {
            max_expiration_seconds: wanted.max_expiration_seconds,
            node_name: node.to_owned(),
            node_uid: machine.metadata.uid.unwrap_or_default(),
            pod_name: name,
            pod_uid: uid,
            service_account_name: account,
            service_account_uid: owner.metadata.uid.unwrap_or_default(),
            signer_name: wanted.signer_name.clone(),
            stub_pkc_s10_request: k8s_openapi::ByteString(proof),
            unverified_user_annotations: wanted.user_annotations.clone(),
        },
        status: None,
    };
    let made = client.create(Some(&namespace), &body).await.map_err(|e| failed("request", &e))?;
    answered(client, &namespace, &made.metadata.name.unwrap_or_default(), &key).await
}

async fn answered(client: &Client, namespace: &str, name: &str, key: &str) -> Result<Outcome, String> {
    let scope = Scope {
        namespace: Some(namespace.to_owned()),
        field_selector: Some(format!("metadata.name={name}")),
        ..Scope::default()
    };
    let requests: Informer<certificates::PodCertificateRequest> = Informer::start(client, scope);
    let mut changes = requests.subscribe();
    while let Some(change) = changes.recv().await {
        let Some(new) = change.new else {
            return Err(format!("PodCertificateRequest {name} was deleted before it was answered"));
        };
        if let Some(outcome) = outcome(&new.object, key) {
            return Ok(outcome);
        }
    }
    Err("the watch has ended".into())
}

/// What a request's status says, if it has been answered.
fn outcome(request: &certificates::PodCertificateRequest, key: &str) -> Option<Outcome> {
    let status = request.status.as_ref()?;
    let condition = status.conditions.iter().flatten().find(|c| c.status == "True")?;
    if condition.type_ != "Issued" {
        let (kind, reason, why) = (&condition.type_, &condition.reason, &condition.message);
        return Some(Outcome::Refused(format!("certificate request {kind}: {reason}: {why}")));
    }
    let chain = status.certificate_chain.clone().filter(|chain| !chain.is_empty())?;
    let renew_at = status.begin_refresh_at.as_ref().map(|t| t.0);
    Some(Outcome::Issued(Credential { key: key.to_owned(), chain, renew_at }))
}

/// A private key in PEM (PKCS #8), and an empty certificate signing request (PKCS #10, DER) that proves its possession.
fn key_and_proof(kind: &str) -> Result<(String, Vec<u8>), String> {
    let algorithm = match kind {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => return Err(format!("keys of type {other} are not supported by the node")),
    };
    let key = KeyPair::generate_for(algorithm).map_err(|e| format!("cannot make a key: {e}"))?;
    let mut empty = CertificateParams::default();
    empty.distinguished_name = DistinguishedName::new();
    let proof = empty.serialize_request(&key).map_err(|e| format!("cannot make a signing request: {e}"))?;
    Ok((key.serialize_pem(), proof.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use x509_parser::prelude::FromDer as _;

    use super::*;

    fn request(status: Value) -> certificates::PodCertificateRequest {
        serde_json::from_value(json!({"metadata": {}, "spec": {}, "status": status})).unwrap()
    }

    fn condition(kind: &str) -> Value {
        let time = "2026-01-01T00:00:00Z";
        json!([{"type": kind, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": time}])
    }

    #[test]
    fn requests_prove_their_key_and_say_nothing_else() {
        for kind in ["ECDSAP256", "ECDSAP384", "ED25519"] {
            let (key, proof) = key_and_proof(kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
            let (_, parsed) =
                x509_parser::certification_request::X509CertificationRequest::from_der(&proof).unwrap();
            assert_eq!(parsed.certification_request_info.subject.iter().count(), 0, "{kind}");
        }
        assert!(key_and_proof("RSA3072").is_err());
    }

    #[test]
    fn answers() {
        assert!(outcome(&request(json!({})), "k").is_none());
        let refused = outcome(&request(json!({"conditions": condition("Denied")})), "k");
        assert!(matches!(refused, Some(Outcome::Refused(why)) if why == "certificate request Denied: R: m"));
        let issued = json!({"conditions": condition("Issued"), "certificateChain": "c",
            "beginRefreshAt": "2026-01-01T01:00:00Z"});
        let Some(Outcome::Issued(credential)) = outcome(&request(issued), "k") else { panic!("not issued") };
        assert_eq!((credential.key.as_str(), credential.chain.as_str()), ("k", "c"));
        assert_eq!(credential.renew_at.unwrap().to_string(), "2026-01-01T01:00:00Z");
    }

    fn slot(current: Option<Timestamp>, outcome: Outcome) -> Slot {
        let current =
            current.map(|at| Credential { key: "old".into(), chain: "old".into(), renew_at: Some(at) });
        let task = tokio::spawn(std::future::ready(())).abort_handle();
        let request = Some(Request { outcome: Arc::new(Mutex::new(outcome)), task });
        Slot { current, request, ..Slot::default() }
    }

    #[tokio::test]
    async fn a_refused_renewal_keeps_the_old_certificate_and_a_refused_first_one_is_final() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut first = slot(None, Outcome::Refused("no".into()));
        first.take_answer(now);
        assert!(first.over && first.current.is_none() && first.request.is_none());
        let mut renewal = slot(Some(now), Outcome::Refused("no".into()));
        renewal.take_answer(now);
        assert!(!renewal.over && renewal.current.is_some());
        assert_eq!(renewal.due_at(), Some(after(now, AGAIN)));
        let later = after(now, Duration::from_secs(3600));
        let fresh = Credential { key: "k".into(), chain: "c".into(), renew_at: Some(later) };
        let mut issued = slot(Some(now), Outcome::Issued(fresh));
        issued.take_answer(now);
        assert_eq!((issued.due_at(), issued.current.unwrap().chain.as_str()), (Some(later), "c"));
        let mut waiting = slot(None, Outcome::Waiting);
        waiting.take_answer(now);
        assert!(waiting.request.is_some() && waiting.trouble.is_none());
    }
}
