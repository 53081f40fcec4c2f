//! The signer of node certificates: follows CertificateSigningRequests, approves those that the rules allow and signs
//! them with the cluster's authority.
//!
//! Rules (Kubernetes, "Certificate Signing Requests", signers and their requirements):
//! - `kubernetes.io/kube-apiserver-client-kubelet`: subject `system:node:NAME` in `system:nodes`, no other names, usages
//!   of a client. Approved for whoever may create `certificatesigningrequests/nodeclient`, or `selfnodeclient` for itself.
//!   Whoever is not that node itself gets no certificate of a Node that exists.
//! - `kubernetes.io/kubelet-serving`: asked for by that node itself, usages of a server. Approved when its only name is
//!   the node's own; other names wait for an administrator.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use api::{ApiRequest, GroupVersionResource, ObjectKey, Status, Verb};
use client::{Client, Informer, Scope};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::Node;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::pki::Authority;

pub(crate) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(crate) const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";
/// What somebody must be allowed to create who asks for another node's certificate than its own.
const NEW_NODE: &str = "nodeclient";
/// Longest life of a node's certificate.
const LONGEST_SECONDS: i64 = 365 * 86_400;
/// After a failure of the API, all open requests are looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// What is to be done with a request that conforms to its signer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Approval {
    /// If the asker may create this subresource of CertificateSigningRequests.
    IfAllowed(&'static str),
    Automatic,
    /// An administrator decides.
    Manual,
}

/// Signs until `stop` turns true.
pub(crate) async fn run(client: Client, authority: Authority, mut stop: watch::Receiver<bool>) {
    let requests = Informer::<CertificateSigningRequest>::start(&client, Scope::default());
    let mut changes = requests.subscribe();
    let mut failed = false;
    loop {
        let retry = async {
            if !failed {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        let look = tokio::select! {
            change = changes.recv() => match change {
                Some(change) => change.new.into_iter().collect(),
                None => return,
            },
            () = retry => requests.list(),
            _ = stop.wait_for(|stop| *stop) => return,
        };
        failed = false;
        for cached in look {
            if let Err(error) = handle(&client, &authority, &cached.object).await {
                tracing::warn!(name = cached.key.name, %error, "certificate request not handled");
                failed = true;
            }
        }
    }
}

async fn handle(client: &Client, authority: &Authority, request: &CertificateSigningRequest) -> Result<()> {
    let signer = request.spec.signer_name.as_str();
    let has = |condition: &str| conditions(request).iter().any(|c| c.type_ == condition);
    let issued = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
    if issued || has("Denied") || has("Failed") || !matches!(signer, CLIENT_SIGNER | SERVING_SIGNER) {
        return Ok(());
    }
    let pem = std::str::from_utf8(&request.spec.request.0).unwrap_or_default();
    let parsed = CertificateSigningRequestParams::from_pem(pem).map_err(|error| error.to_string());
    let judged = parsed.and_then(|parsed| Ok((judge(request, &parsed)?, parsed)));
    match judged {
        Err(why) => {
            let condition = ("Failed", "SignerValidationFailure", why.as_str());
            // Without the approval nobody was promised anything: the request is simply left.
            if has("Approved") {
                write(client, request, "status", Some(condition), None).await
            } else {
                Ok(())
            }
        }
        Ok((_, parsed)) if has("Approved") => {
            let seconds = request.spec.expiration_seconds.map_or(LONGEST_SECONDS, i64::from);
            let certificate = {
                let usage = usage_of(signer);
                authority.sign_request(parsed, usage, seconds.clamp(600, LONGEST_SECONDS))?
            };
            write(client, request, "status", None, Some(certificate)).await
        }
        Ok((Approval::IfAllowed(NEW_NODE), parsed)) if taken(client, &parsed).await? => {
            let why = "a Node of that name exists: a token does not make its owner that node. \
                       Join under another name, or delete the Node first";
            write(client, request, "approval", Some(("Denied", "NodeExists", why)), None).await
        }
        Ok((approval, _)) if approved(client, request, approval).await? => {
            let condition = ("Approved", "AutoApproved", "the request follows the signer's rules");
            // The approval comes back as a change, which is then signed.
            write(client, request, "approval", Some(condition), None).await
        }
        Ok(_) => Ok(()),
    }
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn usage_of(signer: &str) -> ExtendedKeyUsagePurpose {
    if signer == SERVING_SIGNER {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }
}

/// Whether the request conforms to its signer, and who approves it.
///
/// # Errors
/// The rule that it breaks.
fn judge(
    request: &CertificateSigningRequest,
    parsed: &CertificateSigningRequestParams,
) -> Result<Approval, String> {
    let user = request.spec.username.as_deref().unwrap_or_default();
    let serving = request.spec.signer_name == SERVING_SIGNER;
    let name = subject(parsed)?;
    let node = name.strip_prefix(NODE_PREFIX).filter(|node| !node.is_empty());
    let node = node.ok_or("the common name must be system:node:NAME")?;
    let wanted = if serving { "server auth" } else { "client auth" };
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let allowed = ["digital signature", "key encipherment", wanted];
    if !usages.iter().any(|u| u == wanted) || usages.iter().any(|u| !allowed.contains(&u.as_str())) {
        return Err(format!("the usages must be digital signature and {wanted}"));
    }
    let names = &parsed.params.subject_alt_names;
    if !serving {
        if !names.is_empty() {
            return Err("a client certificate has no alternative names".into());
        }
        let own = user == name;
        return Ok(Approval::IfAllowed(if own { "selfnodeclient" } else { NEW_NODE }));
    }
    let member = request.spec.groups.as_deref().unwrap_or_default().iter().any(|g| g == NODES);
    if user != name || !member {
        return Err("only the node itself may ask for its serving certificate".into());
    }
    if names.is_empty() || !names.iter().all(|n| matches!(n, SanType::DnsName(_) | SanType::IpAddress(_))) {
        return Err("a serving certificate needs DNS names or IP addresses, and has nothing else".into());
    }
    let own = |n: &SanType| matches!(n, SanType::DnsName(dns) if dns.as_str() == node);
    Ok(if names.iter().all(own) { Approval::Automatic } else { Approval::Manual })
}

/// The common name of a subject in `system:nodes`.
fn subject(parsed: &CertificateSigningRequestParams) -> Result<String, String> {
    let text = |value: &DnValue| match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        _ => String::new(),
    };
    let mut name = String::new();
    for (kind, value) in parsed.params.distinguished_name.iter() {
        match kind {
            DnType::CommonName => name = text(value),
            DnType::OrganizationName if text(value) == NODES => {}
            _ => return Err(format!("the subject must be O={NODES}, CN={NODE_PREFIX}NAME and nothing else")),
        }
    }
    let organised = parsed.params.distinguished_name.get(&DnType::OrganizationName).is_some();
    if organised { Ok(name) } else { Err(format!("the subject needs O={NODES}")) }
}

/// Whether the node whose certificate somebody else asks for exists: its pods' secrets would be theirs.
async fn taken(client: &Client, parsed: &CertificateSigningRequestParams) -> Result<bool> {
    let name = subject(parsed).unwrap_or_default();
    let node = name.strip_prefix(NODE_PREFIX).unwrap_or_default();
    match client.get::<Node>(&ObjectKey::new("", node)).await {
        Ok(_) => Ok(true),
        Err(status) if status.is_not_found() => Ok(false),
        Err(status) => Err(refused(status)),
    }
}

/// Asks the API server's authorizer where the approval depends on it.
async fn approved(client: &Client, request: &CertificateSigningRequest, approval: Approval) -> Result<bool> {
    let subresource = match approval {
        Approval::Automatic => return Ok(true),
        Approval::Manual => return Ok(false),
        Approval::IfAllowed(subresource) => subresource,
    };
    let spec = &request.spec;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": {
                "verb": "create", "group": "certificates.k8s.io", "version": "*",
                "resource": "certificatesigningrequests", "subresource": subresource,
            },
        },
    });
    let reviews = GroupVersionResource::new("authorization.k8s.io", "v1", "subjectaccessreviews");
    let request = ApiRequest::resource(Verb::Create, reviews, None, None, None);
    let answer = client.call(request.with_json(serde_json::to_vec(&review)?)).await;
    let bytes = answer.and_then(api::ApiResponse::into_bytes).map_err(refused)?;
    let answer: Value = serde_json::from_slice(&bytes)?;
    Ok(answer["status"]["allowed"] == true)
}

async fn write(
    client: &Client,
    request: &CertificateSigningRequest,
    part: &str,
    condition: Option<(&str, &str, &str)>,
    certificate: Option<String>,
) -> Result<()> {
    let mut new = request.clone();
    let status = new.status.get_or_insert_with(CertificateSigningRequestStatus::default);
    if let Some((kind, reason, message)) = condition {
        status.conditions.get_or_insert_with(Vec::new).push(CertificateSigningRequestCondition {
            type_: kind.into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            ..CertificateSigningRequestCondition::default()
        });
    }
    status.certificate = certificate
        .map(|pem| k8s_openapi::ByteString(pem.into_bytes()))
        .or_else(|| status.certificate.take());
    let Some(name) = request.metadata.name.as_deref() else { bail!("a request without a name") };
    let put = ApiRequest::resource(Verb::Update, requests(), None, Some(name), Some(part));
    match client.call(put.with_json(serde_json::to_vec(&new)?)).await {
        Ok(_) => Ok(()),
        // A newer version is on its way here as a change, or there is nothing left to answer.
        Err(status) if status.is_conflict() || status.is_not_found() => Ok(()),
        Err(status) => Err(refused(status)),
    }
}

fn refused(status: Status) -> anyhow::Error {
    anyhow!("{status}")
}

pub(crate) fn requests() -> GroupVersionResource {
    GroupVersionResource::new("certificates.k8s.io", "v1", "certificatesigningrequests")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::super::pki::{Pki, node_request};
    use super::*;

    fn ask(signer: &str, user: &str, pem: &str) -> Result<Approval, String> {
        let usage = if signer == SERVING_SIGNER { "server auth" } else { "client auth" };
        let request: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "x"},
            "spec": {"signerName": signer, "request": "", "username": user,
                "groups": [NODES], "usages": ["digital signature", usage]},
        }))
        .unwrap();
        let parsed = CertificateSigningRequestParams::from_pem(pem).map_err(|e| e.to_string())?;
        judge(&request, &parsed)
    }

    #[test]
    fn only_a_node_s_own_names_are_approved() {
        let key = KeyPair::generate().unwrap();
        let client = node_request("a", &key, &[]).unwrap();
        let serving = node_request("a", &key, &["a"]).unwrap();
        let other = node_request("a", &key, &["a", "kubernetes"]).unwrap();
        let node = "system:node:a";
        assert_eq!(ask(CLIENT_SIGNER, "system:bootstrap:x", &client), Ok(Approval::IfAllowed("nodeclient")));
        assert_eq!(ask(CLIENT_SIGNER, node, &client), Ok(Approval::IfAllowed("selfnodeclient")));
        assert_eq!(ask(CLIENT_SIGNER, "system:node:b", &client), Ok(Approval::IfAllowed("nodeclient")));
        assert_eq!(ask(SERVING_SIGNER, node, &serving), Ok(Approval::Automatic));
        assert_eq!(ask(SERVING_SIGNER, node, &other), Ok(Approval::Manual));
        assert!(ask(SERVING_SIGNER, "system:node:b", &serving).is_err(), "another node");
        assert!(ask(SERVING_SIGNER, "system:bootstrap:x", &serving).is_err(), "a token");
        assert!(ask(SERVING_SIGNER, node, &client).is_err(), "no names");
        assert!(ask(CLIENT_SIGNER, node, &serving).is_err(), "names in a client certificate");
    }

    #[test]
    fn other_subjects_are_refused() {
        let key = KeyPair::generate().unwrap();
        for (name, organisations) in [
            ("system:node:a", &["system:masters"][..]),
            ("system:node:a", &["system:nodes", "system:masters"]),
            ("system:node:a", &[]),
            ("admin", &["system:nodes"]),
            ("system:node:", &["system:nodes"]),
        ] {
            let mut params = CertificateParams::default();
            params.distinguished_name = super::super::pki::subject(name, organisations);
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            assert!(ask(CLIENT_SIGNER, "system:bootstrap:x", &pem).is_err(), "{name} {organisations:?}");
        }
    }

    #[test]
    fn what_is_signed_holds_the_key_and_the_name_that_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Pki::open(dir.path()).unwrap().authority();
        let key = KeyPair::generate().unwrap();
        let pem = node_request("a", &key, &["a"]).unwrap();
        let parsed = CertificateSigningRequestParams::from_pem(&pem).unwrap();
        let signed = authority.sign_request(parsed, usage_of(SERVING_SIGNER), 3600).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        assert!(!certificate.is_ca());
        let end = certificate.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
        assert!((3590..=3610).contains(&end), "{end}");
        assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:a");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
    }
}
