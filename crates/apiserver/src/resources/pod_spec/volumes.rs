//! Rules of pod volumes.

use std::collections::HashMap;

use api::FieldError;

use crate::resources::check::{At, Errors};
use crate::resources::{names, quantity, selectors};

/// Name of each volume, and whether it is a claim (which containers may also use as a device).
pub(crate) type Volumes = HashMap<String, bool>;

const SOURCES: [&str; 7] =
    ["configMap", "secret", "projected", "downwardAPI", "emptyDir", "image", "hostPath"];

/// Checks the volumes and returns their names.
pub(crate) fn validate(list: &At<'_>, e: &mut Errors) -> Volumes {
    let mut volumes = Volumes::new();
    for volume in list.items() {
        let name = volume.field("name");
        name.required_text(e, names::dns_label);
        let claim = volume.field("persistentVolumeClaim").is_set() || volume.field("ephemeral").is_set();
        if !name.is_empty() && volumes.insert(name.str().to_owned(), claim).is_some() {
            e.push(FieldError::duplicate(&name.path, name.str()));
        }
        source(&volume, e);
    }
    volumes
}

fn source(volume: &At<'_>, e: &mut Errors) {
    let kinds: Vec<&str> =
        volume.entries().filter(|(key, at)| *key != "name" && at.is_set()).map(|(key, _)| key).collect();
    if kinds.is_empty() {
        e.push(FieldError::required(&volume.path, "must specify a volume type"));
    }
    for extra in kinds.iter().skip(1) {
        volume.field(extra).forbidden(e, "may not specify more than 1 volume type");
    }
    for name in SOURCES {
        let at = volume.field(name);
        if at.is_set() {
            known_source(name, &at, e);
        }
    }
    let claim = volume.field("persistentVolumeClaim");
    if claim.is_set() {
        claim.field("claimName").required(e);
    }
}

fn known_source(kind: &str, at: &At<'_>, e: &mut Errors) {
    match kind {
        "configMap" => {
            at.field("name").required(e);
            modes_and_items(at, e);
        }
        "secret" => {
            at.field("secretName").required(e);
            modes_and_items(at, e);
        }
        "downwardAPI" => {
            mode(&at.field("defaultMode"), e);
            downward_items(at, e);
        }
        "projected" => projected(at, e),
        "image" => {
            at.field("reference").required(e);
            at.field("pullPolicy").one_of(e, &["Always", "Never", "IfNotPresent"]);
        }
        "emptyDir" => {
            at.field("medium").one_of(e, &["", "HugePages", "Memory"]);
            if at.field("sizeLimit").is_set() {
                quantity::validate(&at.field("sizeLimit"), e);
            }
        }
        _ => {
            at.field("path").required(e);
            no_dots(&at.field("path"), e);
            let types = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            at.field("type").one_of(e, &types);
        }
    }
}

fn mode(at: &At<'_>, e: &mut Errors) {
    if at.i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        at.invalid(e, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn modes_and_items(at: &At<'_>, e: &mut Errors) {
    mode(&at.field("defaultMode"), e);
    key_paths(at, e);
}

fn key_paths(at: &At<'_>, e: &mut Errors) {
    for item in at.field("items").items() {
        item.field("key").required(e);
        relative_path(&item.field("path"), e);
        mode(&item.field("mode"), e);
    }
}

fn relative_path(at: &At<'_>, e: &mut Errors) {
    if !at.required(e) {
        return;
    }
    if at.str().starts_with('/') {
        at.invalid(e, "must be a relative path");
    }
    no_dots(at, e);
    if at.str().starts_with("..") && !at.str().starts_with("../") {
        at.invalid(e, "must not start with '..'");
    }
}

/// No component of the path is `..`.
pub(super) fn no_dots(at: &At<'_>, e: &mut Errors) {
    if at.str().split('/').any(|part| part == "..") {
        at.invalid(e, "must not contain '..'");
    }
}

fn downward_items(at: &At<'_>, e: &mut Errors) {
    for item in at.field("items").items() {
        relative_path(&item.field("path"), e);
        mode(&item.field("mode"), e);
        let (field, resource) = (item.field("fieldRef"), item.field("resourceFieldRef"));
        if field.is_set() && resource.is_set() {
            item.invalid(e, "fieldRef and resourceFieldRef can not be specified simultaneously");
        } else if !field.is_set() && !resource.is_set() {
            e.push(FieldError::required(&item.path, "one of fieldRef and resourceFieldRef is required"));
        }
        if field.is_set() {
            let plain = [
                "metadata.name",
                "metadata.namespace",
                "metadata.labels",
                "metadata.annotations",
                "metadata.uid",
            ];
            super::containers::field_path(&field, &plain, e);
        }
        if resource.is_set() {
            resource.field("resource").required(e);
            resource.field("containerName").required(e);
        }
    }
}

fn trust_bundle(at: &At<'_>, e: &mut Errors) {
    if !at.is_set() {
        return;
    }
    relative_path(&at.field("path"), e);
    let (name, signer, selector) = (at.field("name"), at.field("signerName"), at.field("labelSelector"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => at.invalid(e, "only one of name and signerName may be used"),
        (false, false) => {
            e.push(FieldError::required(&at.path, "either name or signerName must be specified"))
        }
        (true, false) if selector.is_set() => {
            selector.forbidden(e, "labelSelector must be unset if name is specified")
        }
        _ => {}
    }
    selectors::validate(&selector, e);
}

/// Key types that a PodCertificateRequest may have.
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
/// An hour to 91 days.
const CERTIFICATE_SECONDS: [i64; 2] = [3600, 91 * 24 * 3600];

fn pod_certificate(at: &At<'_>, e: &mut Errors) {
    if !at.is_set() {
        return;
    }
    at.field("signerName").required(e);
    at.field("keyType").required_one_of(e, &KEY_TYPES);
    let (seconds, [least, most]) = (at.field("maxExpirationSeconds"), CERTIFICATE_SECONDS);
    if seconds.i64().is_some_and(|n| n < least) {
        seconds.invalid(e, &format!("if provided, maxExpirationSeconds must be >= {least}"));
    }
    if seconds.i64().is_some_and(|n| n > most) {
        seconds.invalid(e, &format!("if provided, maxExpirationSeconds must be <= {most}"));
    }
    let names = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    let paths: Vec<At<'_>> = names.map(|name| at.field(name)).into_iter().filter(|p| !p.is_empty()).collect();
    if paths.is_empty() {
        let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        e.push(FieldError::required(&at.path, detail));
    }
    paths.iter().for_each(|path| relative_path(path, e));
    at.field("userAnnotations").annotations(e);
}

fn projected(at: &At<'_>, e: &mut Errors) {
    mode(&at.field("defaultMode"), e);
    for source in at.field("sources").items() {
        let kinds: Vec<&str> = source.entries().filter(|(_, at)| at.is_set()).map(|(key, _)| key).collect();
        for extra in kinds.iter().skip(1) {
            source.field(extra).forbidden(e, "may not specify more than 1 volume type");
        }
        for name in ["configMap", "secret"] {
            let at = source.field(name);
            if at.is_set() {
                at.field("name").required(e);
                key_paths(&at, e);
            }
        }
        downward_items(&source.field("downwardAPI"), e);
        trust_bundle(&source.field("clusterTrustBundle"), e);
        pod_certificate(&source.field("podCertificate"), e);
        let token = source.field("serviceAccountToken");
        if token.is_set() {
            relative_path(&token.field("path"), e);
            let seconds = token.field("expirationSeconds");
            if seconds.i64().is_some_and(|n| n < 600) {
                seconds.invalid(e, "may not specify a duration less than 10 minutes");
            }
            if seconds.i64().is_some_and(|n| n > 1 << 32) {
                seconds.invalid(e, "may not specify a duration larger than 2^32 seconds");
            }
        }
    }
}
