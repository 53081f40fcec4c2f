//! Address families of Services: what a Service that leaves something open gets, and what it may ask for.
//!
//! | policy | families |
//! |---|---|
//! | `SingleStack` | the one that is named, or the cluster's primary one |
//! | `PreferDualStack` | both, where the cluster has both |
//! | `RequireDualStack` | both, or the Service is refused |
//!
//! The rules are those of Kubernetes' "IPv4/IPv6 dual-stack" and KEP-563. A Service never gains or loses a family because
//! the cluster has: only because its policy, families or addresses were changed.

use api::{FieldError, Object};
use serde_json::{Value, json};

use super::{HEADLESS, type_of};
use crate::resources::check::{At, Errors};
use crate::resources::names;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn list(o: &Object, name: &str) -> Vec<String> {
    let list = At::top(o, "spec").field(name);
    list.items().map(|item| item.str().to_owned()).collect()
}

pub(super) fn families(o: &Object) -> Vec<String> {
    list(o, "ipFamilies")
}

fn cluster_ips(o: &Object) -> Vec<String> {
    list(o, "clusterIPs")
}

fn policy(o: &Object) -> &str {
    o.str(&["spec", "ipFamilyPolicy"])
}

fn family_of(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

fn is_headless(o: &Object) -> bool {
    o.str(&["spec", "clusterIP"]) == HEADLESS
}

fn invalid_policy(o: &Object, detail: &str) -> FieldError {
    FieldError::invalid("spec.ipFamilyPolicy", policy(o), detail)
}

/// Fills in policy and families. `service_cidrs` are the cluster's, the primary one first.
pub(super) fn settle(new: &mut Object, old: Option<&Object>, service_cidrs: &[String]) -> Errors {
    if type_of(new) == "ExternalName" || old.is_some_and(|old| stays_preferred(new, old)) {
        return Errors::new();
    }
    let without_selector = At::top(new, "spec").field("selector").is_empty();
    let stands_alone = is_headless(new) && without_selector;
    if policy(new).is_empty() {
        let before = old.map(policy).filter(|policy| !policy.is_empty());
        let policy = before.unwrap_or(if stands_alone { REQUIRE } else { SINGLE }).to_owned();
        new.set(&["spec", "ipFamilyPolicy"], policy);
    }
    let mut errors = Errors::new();
    if let Some(old) = old {
        release_secondary(new, old, &mut errors);
    }
    let configured: Vec<&str> = service_cidrs.iter().map(|cidr| family_of(cidr)).collect();
    let families = named(new, &configured, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    let primary = configured.first().copied().unwrap_or("IPv4");
    // Endpoints that somebody else writes may have addresses that the cluster's network has not.
    let available = if stands_alone { &["IPv4", "IPv6"][..] } else { &configured[..] };
    if policy(new) == REQUIRE && available.len() < 2 {
        errors.push(invalid_policy(new, "this cluster is not configured for dual-stack services"));
    }
    for (i, family) in families.iter().enumerate().filter(|(_, family)| !available.contains(&family.as_str()))
    {
        let path = format!("spec.ipFamilies[{i}]");
        errors.push(FieldError::invalid(&path, family.as_str(), "not configured on this cluster"));
    }
    let mut families = families;
    if families.is_empty() {
        families.push(primary.to_owned());
    }
    if policy(new) != SINGLE && families.len() == 1 && available.len() == 2 {
        families.push(other(&families[0]).to_owned());
    }
    new.set(&["spec", "ipFamilies"], json!(families));
    errors
}

/// A Service that prefers two families and says nothing new about them keeps what it has.
fn stays_preferred(new: &Object, old: &Object) -> bool {
    type_of(new) == type_of(old)
        && policy(new) == PREFER
        && policy(old) == PREFER
        && cluster_ips(new) == cluster_ips(old)
        && families(new) == families(old)
}

/// The policy `SingleStack` alone is enough to let the second address and family go; nothing else is.
fn release_secondary(new: &mut Object, old: &Object, errors: &mut Errors) {
    for (name, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (before, after) = (list(old, name), list(new, name));
        if policy(new) == SINGLE {
            if before == after && after.len() > 1 {
                new.set(&["spec", name], json!([after[0]]));
            }
        } else if before.len() == 2 && after.len() == 1 && before[0] == after[0] {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(invalid_policy(new, &detail));
        }
    }
}

/// The families that the Service names, itself or by its addresses.
fn named(new: &Object, configured: &[&str], errors: &mut Errors) -> Vec<String> {
    let (mut families, ips) = (families(new), cluster_ips(new));
    if policy(new) == SINGLE {
        for (list, what) in [(&ips, "cluster IPs"), (&families, "IP families")] {
            if list.len() == 2 {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(invalid_policy(new, &detail));
            }
        }
    }
    for (i, ip) in ips.iter().enumerate().filter(|(_, ip)| *ip != HEADLESS) {
        if i < families.len() {
            continue;
        }
        let family = family_of(ip);
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), json!(ips), &detail));
        }
    }
    families
}

/// What can be told without knowing the cluster.
pub(super) fn validate(spec: &At<'_>, e: &mut Errors) {
    let mut seen = std::collections::HashSet::new();
    for family in spec.field("ipFamilies").items() {
        family.one_of(e, &["IPv4", "IPv6"]);
        if !seen.insert(family.str()) {
            e.push(FieldError::duplicate(&family.path, family.value.clone()));
        }
    }
    spec.field("ipFamilyPolicy").one_of(e, &[PREFER, REQUIRE, SINGLE]);
    let ips = spec.field("clusterIPs");
    let first_is_none = ips.items().next().is_some_and(|ip| ip.str() == HEADLESS);
    if first_is_none && ips.len() > 1 {
        ips.invalid(e, "'None' must be the first and only value");
        return;
    }
    let mut malformed = false;
    for ip in ips.items().filter(|_| !first_is_none) {
        let before = e.len();
        ip.text(e, names::ip);
        malformed |= e.len() > before;
    }
    if ips.len() > 2 {
        ips.invalid(e, "may only hold up to 2 values");
    }
    if malformed || first_is_none {
        return;
    }
    if ips.len() > 1 && names::same_family_twice(&ips) {
        ips.invalid(e, "may specify no more than one IP for each IP family");
    }
    for (i, (ip, family)) in ips.items().zip(spec.field("ipFamilies").items()).enumerate() {
        if ["IPv4", "IPv6"].contains(&family.str()) && family_of(ip.str()) != family.str() {
            ip.invalid(e, &format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.str()));
        }
    }
}

/// The primary address and family stay; the secondary ones come and go.
pub(super) fn validate_update(new: &Object, old: &Object, e: &mut Errors) {
    if type_of(old) == "ExternalName" || type_of(new) == "ExternalName" {
        return;
    }
    if !(is_headless(new) && is_headless(old)) {
        kept(new, old, "clusterIPs", "clusterIP", e);
    }
    // A headless Service may change its families.
    if !is_headless(new) && !is_headless(old) {
        kept(new, old, "ipFamilies", "ipFamily", e);
    }
}

fn kept(new: &Object, old: &Object, name: &str, one: &str, e: &mut Errors) {
    let (before, after) = (list(old, name), list(new, name));
    let value = || new.get(&["spec", name]).cloned().unwrap_or(Value::Null);
    if after.is_empty() && !before.is_empty() {
        if cluster_ips(new).is_empty() {
            let detail = format!("primary {one} can not be unset");
            e.push(FieldError::invalid(format!("spec.{name}[0]"), value(), &detail));
        }
        return;
    }
    // As many as before: each stays. Otherwise the first does.
    let compared = if before.len() == after.len() { before.len() } else { before.len().min(1) };
    for i in (0..compared).filter(|i| before[*i] != after[*i]) {
        e.push(FieldError::invalid(format!("spec.{name}[{i}]"), value(), "may not change once set"));
    }
    if after.len() == 1 && before.len() == 2 && policy(new) != SINGLE {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        e.push(invalid_policy(new, &detail));
    }
}
