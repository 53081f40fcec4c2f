//! ResourceQuota: shows what a namespace uses of what it is allowed. (What is too much is refused by the API server,
//! which keeps accounts of its own; both measure by [`api::quota`].)

use std::sync::Arc;

use api::quota::{Allowance, Measured, Usage, add};
use api::{GroupVersionResource, ObjectKey, Quantity};
use client::{Cached, Controller, Kind, Metadata, Plan, View, Watch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityField;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::discovery::ApiResource;
use crate::pod::Pod;
use crate::workload::{same, update_status};

pub struct ResourceQuotaController {
    pub resources: Arc<Vec<ApiResource>>,
}

/// Measures objects of one kind when they come into the cache.
trait Measure: Send + Sync + 'static {
    fn gvr() -> GroupVersionResource;
}

/// An object of which only its share of a quota is kept.
struct Share<T> {
    measured: Measured,
    kind: std::marker::PhantomData<T>,
}

impl<T: Kind> Measure for T {
    fn gvr() -> GroupVersionResource {
        <T as Kind>::gvr()
    }
}

impl<'de, T: Measure> Deserialize<'de> for Share<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        let gvr = T::gvr();
        let measured = Measured::of(&gvr.group, &gvr.resource, &object);
        Ok(Self { measured, kind: std::marker::PhantomData })
    }
}

/// Whether objects of a resource take more than their number.
fn is_measured(gvr: &GroupVersionResource) -> bool {
    [<Pod as Kind>::gvr(), <Service as Kind>::gvr(), <PersistentVolumeClaim as Kind>::gvr()].contains(gvr)
}

fn watch_measured<T: Kind>() -> Watch {
    Watch::resource::<Share<T>>(<T as Kind>::gvr(), |view, gvr, object| {
        quotas_about(view, gvr, &object.key.namespace)
    })
}

impl ResourceQuotaController {
    /// What is counted, in one version each.
    fn counted(&self) -> impl Iterator<Item = &ApiResource> {
        let namespaced = self.resources.iter().filter(|resource| resource.namespaced);
        namespaced.filter(|resource| crate::namespace::is_followed(resource) && !is_measured(&resource.gvr))
    }
}

impl Controller for ResourceQuotaController {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        let counted = self.counted().map(|resource| {
            Watch::resource::<Metadata>(resource.gvr.clone(), |view, gvr, object| {
                quotas_about(view, gvr, &object.key.namespace)
            })
            .if_it_comes()
        });
        let own = [
            Watch::own::<ResourceQuota>(),
            watch_measured::<Pod>(),
            watch_measured::<Service>(),
            watch_measured::<PersistentVolumeClaim>(),
        ];
        own.into_iter().chain(counted).collect()
    }

    fn plan(&self, key: &ObjectKey, view: &View, _: Timestamp) -> Plan {
        let Some(quota) = view.get::<ResourceQuota>(key) else { return Plan::nothing() };
        let spec = quota.object.spec.clone().unwrap_or_default();
        let allowance = Allowance::of(&json!(spec));
        let mut used = Usage::new();
        for resource in self.counted().filter(|r| allowance.is_about(&r.gvr.group, &r.gvr.resource)) {
            let measured = Measured::of(&resource.gvr.group, &resource.gvr.resource, &Value::Null);
            let number = view.in_namespace_of::<Metadata>(&resource.gvr, &key.namespace).len();
            for name in allowance.share(&measured).into_keys() {
                add(&mut used, name, Quantity::whole(i64::try_from(number).unwrap_or(i64::MAX)));
            }
        }
        add_shares::<Pod>(view, &key.namespace, &allowance, &mut used);
        add_shares::<Service>(view, &key.namespace, &allowance, &mut used);
        add_shares::<PersistentVolumeClaim>(view, &key.namespace, &allowance, &mut used);
        let hard = spec.hard.clone().unwrap_or_default();
        let value = |name: &String| {
            let amount = used.get(name).copied().unwrap_or_default();
            (name.clone(), QuantityField(amount.to_string()))
        };
        let old = quota.object.status.clone().unwrap_or_default();
        let new = ResourceQuotaStatus { used: Some(hard.keys().map(value).collect()), hard: Some(hard) };
        if same(&new, &old) {
            return Plan::nothing();
        }
        let mut object = quota.object.clone();
        object.status = Some(new);
        Plan::actions(vec![update_status(key, &object)])
    }
}

fn add_shares<T: Kind>(view: &View, namespace: &str, allowance: &Allowance, used: &mut Usage) {
    let gvr = <T as Kind>::gvr();
    if !allowance.is_about(&gvr.group, &gvr.resource) {
        return;
    }
    for object in view.in_namespace_of::<Share<T>>(&gvr, namespace) {
        for (name, amount) in allowance.share(&object.object.measured) {
            add(used, name, amount);
        }
    }
}

fn quotas_about(view: &View, gvr: &GroupVersionResource, namespace: &str) -> Vec<ObjectKey> {
    let about = |quota: &Arc<Cached<ResourceQuota>>| {
        let allowance = Allowance::of(&json!(quota.object.spec));
        allowance.is_about(&gvr.group, &gvr.resource)
    };
    let quotas = view.in_namespace::<ResourceQuota>(namespace).into_iter().filter(about);
    quotas.map(|quota| quota.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::brief;
    use expect_test::{Expect, expect};

    fn check(spec: Value, expected: Expect) {
        let quota = json!({"metadata": {"name": "q", "namespace": "default"}, "spec": spec});
        let pod = |name: &str, phase: &str, resources: Value| {
            json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"containers": [{"name": "c", "resources": resources}]},
                "status": {"phase": phase},
            })
        };
        let pods = [
            pod("busy", "Running", json!({"requests": {"cpu": "500m"}, "limits": {"cpu": 1}})),
            pod("done", "Succeeded", json!({"requests": {"cpu": "5"}})),
            pod("idle", "Running", json!({})),
        ];
        let named = json!({"metadata": {"name": "s", "namespace": "default"}});
        let elsewhere = json!({"metadata": {"name": "s", "namespace": "other"}});
        let service = json!({
            "metadata": {"name": "s", "namespace": "default"},
            "spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]},
        });
        let resource = |group: &str, resource: &str| ApiResource {
            gvr: GroupVersionResource::new(group, "v1", resource),
            kind: "Any".into(),
            namespaced: true,
            verbs: ["list", "watch", "delete"].map(str::to_owned).to_vec(),
            versions: vec!["v1".into()],
        };
        let resources = vec![resource("", "pods"), resource("", "secrets"), resource("example.com", "toys")];
        let toys = resources[2].gvr.clone();
        let view = View::default()
            .with_objects::<ResourceQuota>(&[quota])
            .with_resource::<Share<Pod>>(<Pod as Kind>::gvr(), &pods)
            .with_resource::<Share<Service>>(<Service as Kind>::gvr(), &[service])
            .with_resource::<Metadata>(
                GroupVersionResource::new("", "v1", "secrets"),
                &[named.clone(), elsewhere],
            )
            .with_resource::<Metadata>(toys, &[named]);
        let controller = ResourceQuotaController { resources: Arc::new(resources) };
        let plan = controller.plan(&ObjectKey::new("default", "q"), &view, Timestamp::UNIX_EPOCH);
        expected.assert_eq(&brief(&plan));
    }

    #[test]
    fn use_is_counted_by_kind_and_resource() {
        check(
            json!({"hard": {
                "pods": "5", "cpu": "2", "limits.cpu": "4", "secrets": "9", "configmaps": "9", "count/pods": "9",
                "count/toys.example.com": "9", "services": "3", "services.nodeports": "3",
            }}),
            expect![[r#"
                status resourcequotas default/q {"hard":{"configmaps":"9","count/pods":"9","count/toys.example.com":"9","cpu":"2","limits.cpu":"4","pods":"5","secrets":"9","services":"3","services.nodeports":"3"},"used":{"configmaps":"0","count/pods":"3","count/toys.example.com":"1","cpu":"500m","limits.cpu":"1","pods":"2","secrets":"1","services":"1","services.nodeports":"2"}}
            "#]],
        );
    }

    #[test]
    fn scopes_choose_objects() {
        check(
            json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]}),
            expect![[r#"
                status resourcequotas default/q {"hard":{"pods":"5"},"used":{"pods":"1"}}
            "#]],
        );
    }
}
