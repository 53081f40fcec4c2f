//! What a cluster and its machines need before they start: certificates, keys, the admin's kubeconfig, joining.

pub(crate) mod join;
pub(crate) mod kubeconfig;
pub(crate) mod pki;
pub(crate) mod renewal;
pub(crate) mod signer;

/// Common name of the API server towards nodes. No signer gives it away.
pub(crate) const API_SERVER_TO_NODES: &str = "podium:apiserver-to-nodes";
