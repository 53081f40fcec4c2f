//! What is done in a signer's name needs a verb on that signer (Kubernetes, "Certificates and Certificate Signing
//! Requests", authorization): `approve` for decisions about requests, `sign` for their results, `attest` for trust bundles.
//! And nobody asks for the certificate of an administrator (CertificateSubjectRestriction).

use api::{Object, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::{AdmissionContext, Operation, Plugin, is};
use crate::authz::{self, Attributes, MASTERS};

const GROUP: &str = "certificates.k8s.io";
/// The signer of client certificates for people.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(crate) struct Signers;

impl Plugin for Signers {
    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let Some(object) = object else { return Ok(()) };
            if is(cx.call.resource, GROUP, "clustertrustbundles") {
                let signer = object.str(&["spec", "signerName"]);
                return if signer.is_empty() {
                    Ok(())
                } else {
                    need(cx, object, "attest", "attest for", signer).await
                };
            }
            if !is(cx.call.resource, GROUP, "certificatesigningrequests") {
                return Ok(());
            }
            let signer = old.unwrap_or(object).str(&["spec", "signerName"]);
            match cx.call.subresource {
                Some("approval") => need(cx, object, "approve", "approve requests with", signer).await,
                Some("status") if old.is_none_or(|old| signs(object, old)) => {
                    need(cx, object, "sign", "sign requests with", signer).await
                }
                None if cx.operation == Operation::Create
                    && signer == CLIENT_SIGNER
                    && asks_for_masters(object.str(&["spec", "request"])) =>
                {
                    let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
                    Err(cx.forbidden(object.name(), &why))
                }
                _ => Ok(()),
            }
        })
    }
}

/// Whether a new status says something in the signer's name.
fn signs(new: &Object, old: &Object) -> bool {
    ["certificate", "conditions"]
        .iter()
        .any(|field| new.get(&["status", field]) != old.get(&["status", field]))
}

/// The verb on the signer, or on all signers of its domain.
async fn need(
    cx: &AdmissionContext<'_>,
    object: &Object,
    verb: &str,
    to: &str,
    signer: &str,
) -> Result<(), Status> {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer, &format!("{domain}/*")] {
        let attributes =
            Attributes { verb, group: GROUP, resource: "signers", name, ..Attributes::default() };
        if authz::allows(cx.registry, cx.call.user, &attributes).await? {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {to} signerName {signer:?}");
    Err(cx.forbidden(object.name(), &why))
}

/// Whether a request names the administrators' group. A malformed one is refused elsewhere.
fn asks_for_masters(request: &str) -> bool {
    let Ok(pem) = STANDARD.decode(request) else { return false };
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    let Ok((_, request)) = X509CertificationRequest::from_der(&block.contents) else { return false };
    let subject = &request.certification_request_info.subject;
    subject.iter_organization().any(|name| name.as_str().is_ok_and(|name| name == MASTERS))
}
