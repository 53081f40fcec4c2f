//! What a new cluster needs before its first start: certificates, keys, the admin's kubeconfig.

pub(crate) mod kubeconfig;
pub(crate) mod pki;
