//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or unreachable.

use api::{Object, Status};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::{AdmissionContext, Plugin, is};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

pub(crate) struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn mutate<'a>(
        &'a self,
        cx: &'a AdmissionContext<'a>,
        object: &'a mut Object,
        _: Option<&'a Object>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            // Those of an update that drops them come back; other parts don't touch them.
            let pods = is(cx.call.resource, "", "pods") && cx.call.subresource.is_none();
            if pods {
                tolerate(object);
            }
            Ok(())
        })
    }
}

fn tolerate(pod: &mut Object) {
    let tolerations = pod.get(&["spec", "tolerations"]).and_then(Value::as_array);
    let mut tolerations: Vec<Value> = tolerations.cloned().unwrap_or_default();
    let text = |toleration: &Value, name: &str| toleration[name].as_str().unwrap_or_default().to_owned();
    let missing: Vec<&str> = TAINTS
        .into_iter()
        .filter(|taint| {
            !tolerations.iter().any(|toleration| {
                let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
                (key.is_empty() || key == *taint) && (effect.is_empty() || effect == "NoExecute")
            })
        })
        .collect();
    if missing.is_empty() {
        return;
    }
    tolerations.extend(missing.iter().map(|taint| {
        json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS})
    }));
    pod.set(&["spec", "tolerations"], tolerations);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_tolerations_are_added() {
        let count = |spec: Value| {
            let mut pod = Object::from_value(json!({"spec": spec})).unwrap();
            tolerate(&mut pod);
            pod.get(&["spec", "tolerations"]).and_then(Value::as_array).map_or(0, Vec::len)
        };
        assert_eq!(count(json!({})), 2);
        assert_eq!(count(json!({"tolerations": [{"operator": "Exists"}]})), 1);
        assert_eq!(
            count(json!({"tolerations": [{"key": TAINTS[0], "effect": "NoExecute", "operator": "Exists"}]})),
            2
        );
        assert_eq!(count(json!({"tolerations": [{"key": TAINTS[0], "effect": "NoSchedule"}]})), 3);
    }
}
