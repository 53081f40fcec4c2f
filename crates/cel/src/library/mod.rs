//! The functions: operators and conversions of the language, the extensions for strings, lists, sets and optionals, and
//! Kubernetes' own for addresses, quantities, versions, formats and authorization.
//!
//! Their types are one table of text ([`SIGNATURES`]), what they do is a function per theme that is given the values.

mod kube;
mod lists;
mod net;
mod numbers;
mod signatures;
mod text;
pub(crate) mod time;

use std::fmt;
use std::net::IpAddr;

use api::Quantity;

use crate::Error;
use crate::eval::Eval;
use crate::value::Val;
pub(crate) use signatures::{is_global, signatures};

/// A value of a library.
#[derive(Clone, Debug, PartialEq)]
pub enum Opaque {
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(net::Url),
    Quantity(Quantity),
    Semver(kube::Semver),
    Format(&'static str),
    /// The authorizer, for the request's own user ("") or for a service account, and what the request is about.
    Authorizer(String, Box<Check>),
    Path {
        user: String,
        path: String,
    },
    Group {
        user: String,
        group: String,
    },
    Resource(Check),
    Question(Check),
    Decision(Decision),
}

/// A question to the authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// "" is who makes the request.
    pub user: String,
    pub verb: String,
    /// A path outside the resources; the rest is empty then.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

/// The authorizer's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    /// Why there is no answer; "" when there is one.
    pub error: String,
}

impl Opaque {
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(..) => "net.CIDR",
            Opaque::Url(_) => "kubernetes.URL",
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Opaque::Path { .. } => "kubernetes.authorization.PathCheck",
            Opaque::Group { .. } => "kubernetes.authorization.GroupCheck",
            Opaque::Resource(_) | Opaque::Question(_) => "kubernetes.authorization.ResourceCheck",
            Opaque::Decision(_) => "kubernetes.authorization.Decision",
        }
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opaque::Ip(ip) => write!(f, "{ip}"),
            Opaque::Cidr(ip, bits) => write!(f, "{ip}/{bits}"),
            Opaque::Url(url) => f.write_str(&url.text),
            Opaque::Quantity(quantity) => write!(f, "{quantity}"),
            Opaque::Semver(version) => write!(f, "{version}"),
            Opaque::Format(name) => f.write_str(name),
            other => f.write_str(other.type_name()),
        }
    }
}

pub(crate) fn failed<'a>(why: impl Into<String>) -> Eval<'a> {
    Err(Error::Failed(why.into()))
}

/// Calls a function; a target is the first value.
pub(crate) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Eval<'a> {
    let themes = [numbers::call, text::call, lists::call, time::call, net::call, kube::call];
    for theme in themes {
        if let Some(result) = theme(name, member, args) {
            return result;
        }
    }
    failed("no such overload")
}
