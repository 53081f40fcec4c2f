//! The certificates that pods trust, as a ConfigMap `kube-root-ca.crt` in every namespace.

use api::{GroupVersionResource, ObjectKey, PatchType};
use client::{Action, Controller, Kind, Plan, Scope, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use serde::Deserialize;
use serde_json::json;

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";

pub struct RootCaController {
    pub pem: String,
}

/// The one entry of the ConfigMap that matters.
#[derive(Deserialize)]
pub(crate) struct TrustBundle {
    #[serde(default)]
    data: std::collections::BTreeMap<String, String>,
}

impl Kind for TrustBundle {
    fn gvr() -> GroupVersionResource {
        GroupVersionResource::new("", "v1", "configmaps")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "ConfigMap")
    }
}

impl Controller for RootCaController {
    fn name(&self) -> &'static str {
        "root-ca-publisher"
    }

    fn watches(&self) -> Vec<Watch> {
        let scope = Scope { field_selector: Some(format!("metadata.name={NAME}")), ..Scope::default() };
        vec![
            Watch::own::<Namespace>(),
            Watch::scoped::<TrustBundle>(scope, |_, map| vec![ObjectKey::new("", &map.key.namespace)]),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let active = view.get::<Namespace>(key).is_some_and(|namespace| !namespace.deleting);
        if !active {
            return Plan::nothing();
        }
        let map_key = ObjectKey::new(&key.name, NAME);
        let gvr = TrustBundle::gvr();
        let data = json!({FILE: self.pem});
        match view.get::<TrustBundle>(&map_key) {
            Some(map) if map.object.data.len() == 1 && map.object.data.get(FILE) == Some(&self.pem) => {
                Plan::nothing()
            }
            Some(map) => {
                let mut patch = data;
                for other in map.object.data.keys().filter(|name| *name != FILE) {
                    patch[other] = serde_json::Value::Null;
                }
                let patch = json!({"data": patch});
                Plan::actions(vec![Action::Patch {
                    gvr,
                    key: map_key,
                    subresource: None,
                    kind: PatchType::Merge,
                    patch,
                }])
            }
            None => Plan::actions(vec![Action::Create {
                gvr,
                namespace: key.name.clone(),
                object: json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                    "metadata": {"name": NAME, "namespace": key.name, "annotations": {
                        "kubernetes.io/description": "Certificates by which pods verify the API server at its internal addresses.",
                    }},
                }),
            }]),
        }
    }
}
