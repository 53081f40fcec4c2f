//! Admission webhooks.

mod tls;

pub(crate) use self::tls::trust_roots;
