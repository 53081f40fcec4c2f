//! From a file to a static pod.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize as _;
use serde_json::Value;

use super::{HASH, SEEN, SOURCE};
use crate::observed::init_containers;
use crate::references;

/// Why a file is no static pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("{0}")]
    Syntax(String),
    #[error("a file of static pods holds one Pod, this one has {0} documents")]
    Documents(usize),
    #[error("apiVersion and kind must be v1 and Pod, not {0} and {1}")]
    Kind(String, String),
    #[error("{0}: {1}")]
    Field(String, String),
    /// What only the API server has (KEP-5227 and the documentation page "Create static Pods").
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
}

/// Reads a manifest. The pod is named after the node too, and its uid is the hash of node, file and content.
///
/// # Errors
/// What is wrong with it; fields are named.
pub(crate) fn read(path: &str, text: &str, node: &str, seen: Timestamp) -> Result<core::Pod, ManifestError> {
    let value = document(text)?;
    let of = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    if (of("apiVersion").as_str(), of("kind").as_str()) != ("v1", "Pod") {
        return Err(ManifestError::Kind(of("apiVersion"), of("kind")));
    }
    let uid = hash(&[node, path, &value.to_string()]);
    let mut pod: core::Pod =
        serde_json::from_value(value).map_err(|e| ManifestError::Syntax(e.to_string()))?;
    check(&pod)?;
    let spec = pod.spec.get_or_insert_default();
    default(spec);
    spec.node_name = Some(node.to_owned());
    spec.tolerations.get_or_insert_default().push(core::Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..core::Toleration::default()
    });
    let meta = &mut pod.metadata;
    meta.name = meta.name.take().map(|name| format!("{name}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(uid.clone());
    (meta.resource_version, meta.owner_references, meta.deletion_timestamp) = (None, None, None);
    let notes = meta.annotations.get_or_insert_default();
    notes.extend([(SOURCE.into(), "file".into()), (HASH.into(), uid), (SEEN.into(), seen.to_string())]);
    notes.remove(super::MIRROR);
    pod.status = None;
    Ok(pod)
}

fn document(text: &str) -> Result<Value, ManifestError> {
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        documents.push(Value::deserialize(document).map_err(|e| ManifestError::Syntax(e.to_string()))?);
    }
    documents.retain(|document| !document.is_null());
    match documents.len() {
        1 => Ok(documents.swap_remove(0)),
        count => Err(ManifestError::Documents(count)),
    }
}

/// 32 hex digits, as long as Kubernetes' own.
fn hash(parts: &[&str]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 1123, with dots in between for a subdomain.
fn is_name(text: &str, dots: bool) -> bool {
    let label = |part: &str| {
        let inner = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        inner && !part.is_empty() && part.len() <= 63 && !part.starts_with('-') && !part.ends_with('-')
    };
    if dots { text.len() <= 253 && text.split('.').all(label) } else { label(text) }
}

/// What would harm the node or never work; the API server checks the rest with the mirror pod.
fn check(pod: &core::Pod) -> Result<(), ManifestError> {
    let wrong = |path: String, why: &str| Err(ManifestError::Field(path, why.into()));
    if !is_name(pod.metadata.name.as_deref().unwrap_or_default(), true) {
        return wrong("metadata.name".into(), "must be a lowercase RFC 1123 subdomain");
    }
    if pod.metadata.namespace.as_deref().is_some_and(|namespace| !is_name(namespace, false)) {
        return wrong("metadata.namespace".into(), "must be a lowercase RFC 1123 label");
    }
    let spec = crate::observed::spec(pod);
    if spec.containers.is_empty() {
        return wrong("spec.containers".into(), "Required value");
    }
    let mut names = Vec::new();
    for (list, containers) in [("initContainers", init_containers(pod)), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            if !is_name(&container.name, false) {
                return wrong(format!("{path}.name"), "must be a lowercase RFC 1123 label");
            }
            if names.contains(&&container.name) {
                return wrong(format!("{path}.name"), &format!("Duplicate value: {:?}", container.name));
            }
            if container.image.as_deref().is_none_or(str::is_empty) {
                return wrong(format!("{path}.image"), "Required value");
            }
            names.push(&container.name);
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if !is_name(&volume.name, false) {
            return wrong(format!("spec.volumes[{index}].name"), "must be a lowercase RFC 1123 label");
        }
    }
    reference(pod).map_or(Ok(()), |what| Err(ManifestError::Reference(what)))
}

/// The kind of API object that the pod cannot do without.
fn reference(pod: &core::Pod) -> Option<&'static str> {
    let spec = crate::observed::spec(pod);
    let (maps, secrets) = references::names(pod);
    let volumes = || spec.volumes.iter().flatten();
    let sources = || volumes().filter_map(|v| v.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    let account =
        [&spec.service_account_name, &spec.service_account].into_iter().flatten().any(|n| !n.is_empty());
    let found = [
        (!secrets.is_empty(), "secrets"),
        (!maps.is_empty(), "configmaps"),
        (account || sources().any(|s| s.service_account_token.is_some()), "serviceaccounts"),
        (
            volumes().any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some()),
            "persistentvolumeclaims",
        ),
        (spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()), "resourceclaims"),
        (sources().any(|s| s.cluster_trust_bundle.is_some()), "clustertrustbundles"),
        (sources().any(|s| s.pod_certificate.is_some()), "podcertificaterequests"),
    ];
    found.into_iter().find(|(used, _)| *used).map(|(_, what)| what)
}

/// Defaults that the API server gives other pods and that matter here.
fn default(spec: &mut core::PodSpec) {
    let host_network = spec.host_network == Some(true);
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        if let Some(resources) = &mut container.resources {
            let limits: BTreeMap<_, _> = resources.limits.clone().unwrap_or_default();
            for (name, amount) in limits {
                resources.requests.get_or_insert_default().entry(name).or_insert(amount);
            }
        }
        for port in container.ports.iter_mut().flatten().filter(|_| host_network) {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    for volume in spec.volumes.iter_mut().flatten() {
        if *volume == (core::Volume { name: volume.name.clone(), ..core::Volume::default() }) {
            volume.empty_dir = Some(core::EmptyDirVolumeSource::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_at(path: &str, text: &str) -> Result<core::Pod, ManifestError> {
        read(path, text, "N1", Timestamp::UNIX_EPOCH)
    }

    const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers: [{name: main, image: 'web:1', resources: {limits: {cpu: 1}}}]
  volumes: [{name: scratch}]
---
";

    #[test]
    fn a_file_becomes_a_pod_of_this_node() {
        let pod = read_at("/m/web.yaml", WEB).unwrap();
        let meta = &pod.metadata;
        assert_eq!((meta.name.as_deref(), meta.namespace.as_deref()), (Some("web-n1"), Some("default")));
        let uid = meta.uid.clone().unwrap();
        assert_eq!(uid.len(), 32);
        let notes = meta.annotations.as_ref().unwrap();
        assert_eq!(
            (notes[HASH].as_str(), notes[SOURCE].as_str(), notes.contains_key(SEEN)),
            (&*uid, "file", true)
        );
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("N1"));
        assert_eq!(spec.tolerations.as_ref().unwrap()[0].effect.as_deref(), Some("NoExecute"));
        assert!(spec.volumes.as_ref().unwrap()[0].empty_dir.is_some());
        assert_eq!(spec.containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "1");
        let again = read("/m/web.yaml", WEB, "N1", Timestamp::MAX).unwrap();
        assert_eq!(again.metadata.uid, Some(uid.clone()), "the time does not count");
        assert_ne!(read_at("/m/other.yaml", WEB).unwrap().metadata.uid, Some(uid.clone()));
        assert_ne!(read_at("/m/web.yaml", &WEB.replace("web:1", "web:2")).unwrap().metadata.uid, Some(uid));
        let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "kube-system"},
            "spec": {"containers": [{"name": "a", "image": "a"}]}}"#;
        assert_eq!(read_at("a.json", json).unwrap().metadata.namespace.as_deref(), Some("kube-system"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |spec: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {spec}}}");
        let main = "containers: [{name: a, image: a}]";
        let volume = |source: &str| with(&format!("{{{main}, volumes: [{{name: v, {source}}}]}}"));
        let table = [
            (String::new(), "a file of static pods holds one Pod, this one has 0 documents"),
            (format!("{WEB}{WEB}"), "a file of static pods holds one Pod, this one has 2 documents"),
            (
                "kind: ConfigMap\napiVersion: v1".into(),
                "apiVersion and kind must be v1 and Pod, not v1 and ConfigMap",
            ),
            (WEB.replace("web}", "We b}"), "metadata.name: must be a lowercase RFC 1123 subdomain"),
            (with("{}"), "spec.containers: Required value"),
            (
                with("{containers: [{name: ../a, image: a}]}"),
                "spec.containers[0].name: must be a lowercase RFC 1123 label",
            ),
            (with("{containers: [{name: a}]}"), "spec.containers[0].image: Required value"),
            (
                with("{initContainers: [{name: a, image: a}], containers: [{name: a, image: a}]}"),
                "spec.containers[0].name: Duplicate value: \"a\"",
            ),
            (volume("secret: {secretName: s}"), "static pods may not reference secrets"),
            (volume("configMap: {name: s}"), "static pods may not reference configmaps"),
            (
                volume("persistentVolumeClaim: {claimName: s}"),
                "static pods may not reference persistentvolumeclaims",
            ),
            (
                volume("projected: {sources: [{serviceAccountToken: {path: t}}]}"),
                "static pods may not reference serviceaccounts",
            ),
            (
                with(&format!("{{{main}, serviceAccountName: x}}")),
                "static pods may not reference serviceaccounts",
            ),
        ];
        for (text, want) in table {
            assert_eq!(read_at("f", &text).unwrap_err().to_string(), want, "{text}");
        }
        assert!(matches!(read_at("f", "a: b: c"), Err(ManifestError::Syntax(_))));
        assert!(matches!(read_at("f", &with("{containers: 3}")), Err(ManifestError::Syntax(_))));
    }
}
