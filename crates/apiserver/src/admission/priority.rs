//! Priority: a pod's priorityClassName becomes its number and preemption policy.

use api::{GroupVersionResource, Object, ObjectKey, Status};
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{AdmissionContext, Plugin};
use crate::resource::Reader;

pub(crate) struct Priority;

impl Plugin for Priority {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if cx.creates("", "pods") {
                resolve(cx, object).await?;
            }
            Ok(())
        })
    }
}

async fn resolve(cx: &AdmissionContext<'_>, pod: &mut Object) -> Result<(), Status> {
    let classes = GroupVersionResource::new("scheduling.k8s.io", "v1", "priorityclasses");
    let name = pod.str(&["spec", "priorityClassName"]).to_owned();
    let class = if name.is_empty() {
        let all = Reader::list(cx.registry, &classes, None).await?;
        let default = |class: &&Object| class.get(&["globalDefault"]).and_then(Value::as_bool) == Some(true);
        all.iter().filter(default).min_by_key(|class| class.i64(&["value"]).unwrap_or(0)).cloned()
    } else {
        let found = Reader::get(cx.registry, &classes, &ObjectKey::new("", &*name)).await?;
        let why = format!("no PriorityClass with name {name} was found");
        Some(found.ok_or_else(|| cx.forbidden(pod.name(), &why))?)
    };
    let value = class.as_ref().and_then(|class| class.i64(&["value"])).unwrap_or(0);
    if pod.i64(&["spec", "priority"]).is_some_and(|given| given != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name",
            pod.i64(&["spec", "priority"]).unwrap_or(0)
        );
        return Err(cx.forbidden(pod.name(), &why));
    }
    pod.set(&["spec", "priority"], value);
    if let Some(class) = &class {
        pod.set(&["spec", "priorityClassName"], class.name());
    }
    let policy = class.as_ref().map(|class| class.str(&["preemptionPolicy"]).to_owned()).unwrap_or_default();
    let policy = if policy.is_empty() { "PreemptLowerPriority".to_owned() } else { policy };
    pod.set_default(&["spec", "preemptionPolicy"], policy);
    Ok(())
}
