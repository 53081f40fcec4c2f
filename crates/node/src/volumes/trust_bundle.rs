//! clusterTrustBundle projections: the certificates of one bundle, or of all bundles of a signer that labels select.

use api::LabelSelector;
use base64::Engine as _;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1 as core;
use x509_parser::pem::Pem;

/// The file's bytes: every certificate once, in the order of the bundles' names.
///
/// # Errors
/// When nothing fits and the projection is not optional, or a bundle is no PEM.
pub(super) fn file(
    source: &core::ClusterTrustBundleProjection,
    bundles: &[ClusterTrustBundle],
) -> Result<Vec<u8>, String> {
    let found = select(source, bundles)?;
    if found.is_empty() && !source.optional.unwrap_or(false) {
        return Err(match &source.name {
            Some(name) => format!("clustertrustbundle {name:?} not found"),
            None => "combination of signerName and labelSelector matched zero ClusterTrustBundles".into(),
        });
    }
    let mut certificates: Vec<Vec<u8>> = Vec::new();
    for bundle in found {
        for block in Pem::iter_from_buffer(bundle.spec.trust_bundle.as_bytes()) {
            let block = block.map_err(|e| format!("unreadable trust bundle: {e}"))?;
            if !certificates.contains(&block.contents) {
                certificates.push(block.contents);
            }
        }
    }
    Ok(certificates.iter().flat_map(|der| encode("CERTIFICATE", der).into_bytes()).collect())
}

fn select<'a>(
    source: &core::ClusterTrustBundleProjection,
    bundles: &'a [ClusterTrustBundle],
) -> Result<Vec<&'a ClusterTrustBundle>, String> {
    if let Some(name) = &source.name {
        return Ok(bundles.iter().filter(|b| b.metadata.name.as_ref() == Some(name)).collect());
    }
    // No selector selects nothing, an empty one everything.
    let Some(selector) = &source.label_selector else { return Ok(Vec::new()) };
    let selector = serde_json::to_value(selector).map_err(|e| e.to_string())?;
    let selector = LabelSelector::from_value(&selector)?;
    let fits = |b: &&ClusterTrustBundle| {
        let labels = b.metadata.labels.clone().unwrap_or_default();
        Some(&b.spec.signer_name) == Some(&source.signer_name) && selector.matches(&labels)
    };
    Ok(bundles.iter().filter(fits).collect())
}

/// One PEM block, RFC 7468.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut lines = String::new();
    for line in text.as_bytes().chunks(64) {
        lines.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        lines.push('\n');
    }
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn bundle(name: &str, signer: Value, labels: Value, ders: &[&[u8]]) -> ClusterTrustBundle {
        let pem: String = ders.iter().map(|der| encode("CERTIFICATE", der)).collect();
        let spec = json!({"signerName": signer, "trustBundle": pem});
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": spec})).unwrap()
    }

    #[test]
    fn bundles_are_found_by_name_or_by_signer_and_labels() {
        let all = [
            bundle("plain", Value::Null, json!({}), &[b"0"]),
            bundle("s:a", json!("x.y/s"), json!({"alive": "true"}), &[b"1", b"2"]),
            bundle("s:b", json!("x.y/s"), json!({"alive": "false"}), &[b"2", b"3"]),
            bundle("t:c", json!("x.y/t"), json!({"alive": "true"}), &[b"4"]),
        ];
        let by_signer = |selector: Value| json!({"signerName": "x.y/s", "labelSelector": selector});
        let table: [(Value, Option<&[&[u8]]>); 7] = [
            (json!({"name": "plain"}), Some(&[b"0"])),
            (json!({"name": "gone"}), None),
            (json!({"name": "gone", "optional": true}), Some(&[])),
            (by_signer(json!({})), Some(&[b"1", b"2", b"3"])),
            (by_signer(json!({"matchLabels": {"alive": "false"}})), Some(&[b"2", b"3"])),
            (by_signer(json!({"matchLabels": {"alive": "unknown"}})), None),
            (json!({"signerName": "x.y/s", "optional": true}), Some(&[])),
        ];
        for (mut source, want) in table {
            source["path"] = "f".into();
            let projection = serde_json::from_value(source.clone()).unwrap();
            let want = want.map(|ders| ders.iter().map(|der| encode("CERTIFICATE", der)).collect::<String>());
            let got = file(&projection, &all).ok().map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(got, want, "{source}");
        }
    }
}
