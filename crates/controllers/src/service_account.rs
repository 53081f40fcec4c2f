//! A ServiceAccount `default` in every namespace.

use api::ObjectKey;
use client::{Action, Controller, Kind, Plan, Scope, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use serde_json::json;

pub struct ServiceAccountController;

impl Controller for ServiceAccountController {
    fn name(&self) -> &'static str {
        "service-account"
    }

    fn watches(&self) -> Vec<Watch> {
        let scope = Scope { field_selector: Some("metadata.name=default".into()), ..Scope::default() };
        vec![
            Watch::own::<Namespace>(),
            Watch::scoped::<ServiceAccount>(scope, |_, account| {
                vec![ObjectKey::new("", &account.key.namespace)]
            }),
        ]
    }

    fn plan(&self, key: &ObjectKey, view: &View, _now: Timestamp) -> Plan {
        let active = view.get::<Namespace>(key).is_some_and(|namespace| !namespace.deleting);
        if !active || view.get::<ServiceAccount>(&ObjectKey::new(&key.name, "default")).is_some() {
            return Plan::nothing();
        }
        Plan::actions(vec![Action::Create {
            gvr: ServiceAccount::gvr(),
            namespace: key.name.clone(),
            object: json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": key.name},
            }),
        }])
    }
}
