//! Who writes a ClusterTrustBundle of a signer needs the verb `attest` on that signer (Kubernetes, "Certificates and
//! Certificate Signing Requests", cluster trust bundles).

use api::{Object, Status};
use futures_util::future::BoxFuture;

use super::{AdmissionContext, Plugin, is};
use crate::authz::{self, Attributes};

pub(crate) struct TrustBundleAttest;

impl Plugin for TrustBundleAttest {
    fn validate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: Option<&'a Object>,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let Some(bundle) = object else { return Ok(()) };
            let signer = bundle.str(&["spec", "signerName"]);
            if signer.is_empty() || !is(cx.call.resource, "certificates.k8s.io", "clustertrustbundles") {
                return Ok(());
            }
            let domain = signer.split('/').next().unwrap_or_default();
            for name in [signer, &format!("{domain}/*")] {
                let attest = Attributes {
                    verb: "attest",
                    group: "certificates.k8s.io",
                    resource: "signers",
                    name,
                    ..Attributes::default()
                };
                if authz::allows(cx.registry, cx.call.user, &attest).await? {
                    return Ok(());
                }
            }
            let why = format!("user not permitted to attest for signerName {signer:?}");
            Err(cx.forbidden(bundle.name(), &why))
        })
    }
}
