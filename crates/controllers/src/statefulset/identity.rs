//! Names, labels and volumes that make a pod a certain member of its set.

use std::collections::BTreeMap;

use client::Cached;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};

use super::PodRef;
use crate::claim::Claimant;
use crate::history::REVISION_LABEL;
use crate::workload::pod_of_template;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a member's name.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// Members by ordinal.
pub(super) fn by_ordinal(set: &Cached<StatefulSet>, owned: &[PodRef]) -> BTreeMap<i32, PodRef> {
    let numbered = owned.iter().filter_map(|pod| Some((ordinal(&set.key.name, &pod.key.name)?, pod.clone())));
    numbered.collect()
}

pub(super) fn pod_name(set: &Cached<StatefulSet>, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.key.name)
}

/// (name of the volume, name of the claim) of every claim template.
fn claim_names(set: &Cached<StatefulSet>, ordinal: i32) -> Vec<(String, String)> {
    let templates = set.object.spec.volume_claim_templates.iter().flatten();
    let names = templates.filter_map(|claim| claim.metadata.name.clone());
    names.map(|name| (name.clone(), format!("{name}-{}", pod_name(set, ordinal)))).collect()
}

/// The pod of an ordinal.
pub(super) fn pod(
    set: &Cached<StatefulSet>,
    claimant: &Claimant<'_>,
    ordinal: i32,
    revision: &str,
    template: &PodTemplateSpec,
) -> Value {
    let mut pod = pod_of_template(template, &set.key.namespace, &claimant.reference());
    let name = pod_name(set, ordinal);
    pod["metadata"]["name"] = name.as_str().into();
    pod["metadata"]["generateName"] = format!("{}-", set.key.name).into();
    let labels = &mut pod["metadata"]["labels"];
    labels[POD_NAME] = name.as_str().into();
    labels[POD_INDEX] = ordinal.to_string().into();
    labels[REVISION_LABEL] = revision.into();
    pod["spec"]["hostname"] = name.into();
    if let Some(service) = set.object.spec.service_name.as_ref().filter(|service| !service.is_empty()) {
        pod["spec"]["subdomain"] = service.as_str().into();
    }
    let claims = claim_names(set, ordinal);
    if !claims.is_empty() {
        let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        volumes.retain(|volume| claims.iter().all(|(name, _)| volume["name"] != name.as_str()));
        let claimed = claims
            .iter()
            .map(|(name, claim)| json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}));
        volumes.extend(claimed);
        pod["spec"]["volumes"] = volumes.into();
    }
    pod
}

/// The claims of an ordinal.
pub(super) fn claims(set: &Cached<StatefulSet>, claimant: &Claimant<'_>, ordinal: i32) -> Vec<Value> {
    let policy = set.object.spec.persistent_volume_claim_retention_policy.as_ref();
    let dies_with_set = policy.and_then(|policy| policy.when_deleted.as_deref()) == Some("Delete");
    let templates = set.object.spec.volume_claim_templates.iter().flatten();
    let claim = |(template, (_, name)): (_, (String, String))| {
        let template: &k8s_openapi::api::core::v1::PersistentVolumeClaim = template;
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(set.object.spec.selector.match_labels.clone().unwrap_or_default());
        let mut metadata = json!({"name": name, "namespace": set.key.namespace, "labels": labels});
        if let Some(annotations) = &template.metadata.annotations {
            metadata["annotations"] = json!(annotations);
        }
        if dies_with_set {
            metadata["ownerReferences"] = json!([claimant.reference()]);
        }
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template.spec})
    };
    templates.zip(claim_names(set, ordinal)).map(claim).collect()
}
