//! Mirror pods: what nodes show of their static pods. They run without the API, so they may need nothing of it.

use api::Object;
use serde_json::Value;

/// The annotation that makes a pod a mirror: the uid of the static pod.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn is_mirror(pod: &Object) -> bool {
    pod.get(&["metadata", "annotations", MIRROR]).is_some()
}

/// The kind of API object that a pod's spec refers to, if to any.
pub(super) fn reference(pod: &Object) -> Option<&'static str> {
    let spec = pod.get(&["spec"])?;
    let listed = |field: &str| spec[field].as_array().is_some_and(|list| !list.is_empty());
    if !pod.str(&["spec", "serviceAccountName"]).is_empty() {
        return Some("service accounts");
    }
    if listed("imagePullSecrets") {
        return Some("secrets");
    }
    if listed("resourceClaims") {
        return Some("resource claims");
    }
    ["volumes", "initContainers", "containers"].iter().find_map(|part| named_in(&spec[*part]))
}

/// Fields that refer to an object are called after its kind.
fn named_in(value: &Value) -> Option<&'static str> {
    let kind = |field: &str| match field {
        "secret" | "secretRef" | "secretKeyRef" => Some("secrets"),
        field if field.ends_with("SecretRef") => Some("secrets"),
        "configMap" | "configMapRef" | "configMapKeyRef" => Some("config maps"),
        "persistentVolumeClaim" | "ephemeral" => Some("persistent volume claims"),
        "serviceAccountToken" => Some("service account tokens"),
        "clusterTrustBundle" => Some("cluster trust bundles"),
        "podCertificate" => Some("pod certificates"),
        _ => None,
    };
    match value {
        Value::Array(items) => items.iter().find_map(named_in),
        Value::Object(fields) => fields
            .iter()
            .find_map(|(field, inner)| kind(field).filter(|_| inner.is_object()).or_else(|| named_in(inner))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_found_wherever_they_are() {
        let env = |source: Value| json!({"containers": [{"env": [{"name": "a", "valueFrom": source}]}]});
        let table = [
            (json!({"volumes": [{"name": "secret", "emptyDir": {}}], "nodeSelector": {"secret": "a"}}), None),
            (json!({"serviceAccountName": "a"}), Some("service accounts")),
            (json!({"imagePullSecrets": [{"name": "a"}]}), Some("secrets")),
            (json!({"volumes": [{"secret": {"secretName": "a"}}]}), Some("secrets")),
            (json!({"volumes": [{"csi": {"nodePublishSecretRef": {"name": "a"}}}]}), Some("secrets")),
            (
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
                Some("service account tokens"),
            ),
            (
                json!({"volumes": [{"persistentVolumeClaim": {"claimName": "a"}}]}),
                Some("persistent volume claims"),
            ),
            (env(json!({"secretKeyRef": {"name": "a"}})), Some("secrets")),
            (env(json!({"configMapKeyRef": {"name": "a"}})), Some("config maps")),
            (env(json!({"fieldRef": {"fieldPath": "metadata.name"}})), None),
        ];
        for (spec, want) in table {
            let pod = Object::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(reference(&pod), want, "{spec}");
        }
    }
}
