//! Who is asking: client certificates, service-account tokens, bootstrap tokens, or nobody (`system:anonymous`).
//!
//! A wrong credential is an error (401); only the absence of any makes a request anonymous.

pub(crate) mod bootstrap_token;
pub(crate) mod jose;
pub(crate) mod token;
pub(crate) mod x509;

use api::{Reason, Status};

use crate::resource::UserInfo;

pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The user of a request without credentials.
pub(crate) fn anonymous() -> UserInfo {
    UserInfo::new("system:anonymous", &[UNAUTHENTICATED])
}

/// The answer to a wrong credential.
pub(crate) fn unauthorized() -> Status {
    Status::new(Reason::Unauthorized, "Unauthorized")
}
