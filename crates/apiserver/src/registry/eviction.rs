//! Whether an eviction is within the pod's disruption budget. A granted one is noted in the budget's status in the same
//! step, so that two evictions never share one allowance.

use api::status::Cause;
use api::{GroupVersionResource, LabelSelector, Object, ObjectKey, Reason, Status};
use serde_json::{Value, json};

use super::update::Mode;
use super::{Call, Registry, meta};
use crate::resource::Reader;

/// What is left of a budget after one more eviction; the refusal, if nothing is.
fn take(budget: &Object, pod: &Object, now: jiff::Timestamp) -> Result<Object, Status> {
    let number = |name: &str| budget.i64(&["status", name]).unwrap_or(0);
    let mut refusal = Status::new(
        Reason::TooManyRequests,
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    if number("observedGeneration") < budget.i64(&["metadata", "generation"]).unwrap_or(0) {
        let message =
            format!("The disruption budget {} is still being processed by the server.", budget.name());
        refusal.causes.push(Cause { reason: "DisruptionBudget".into(), message, field: String::new() });
        return Err(refusal);
    }
    if number("disruptionsAllowed") <= 0 {
        let message = format!(
            "The disruption budget {} needs {} healthy pods and has {} currently",
            budget.name(),
            number("desiredHealthy"),
            number("currentHealthy")
        );
        refusal.causes.push(Cause { reason: "DisruptionBudget".into(), message, field: String::new() });
        return Err(refusal);
    }
    let mut new = budget.clone();
    new.set(&["status", "disruptionsAllowed"], number("disruptionsAllowed") - 1);
    new.set(&["status", "disruptedPods", pod.name()], meta::timestamp(now));
    Ok(new)
}

/// Pods that do not run disturb nobody when they go.
fn is_exempt(pod: &Object) -> bool {
    pod.is_deleting() || matches!(pod.str(&["status", "phase"]), "Pending" | "Succeeded" | "Failed")
}

/// A pod that is not ready may go if its budget says so, or is met without it.
fn unhealthy_may_go(budget: &Object, pod: &Object) -> bool {
    let conditions = pod.get(&["status", "conditions"]).and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
    let number = |name: &str| budget.i64(&["status", name]).unwrap_or(0);
    let met = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
    !ready && (met || budget.str(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow")
}

impl Registry {
    /// Takes an eviction of the call's pod out of its budget.
    ///
    /// # Errors
    /// 429 when the budget allows none now, 500 when several budgets cover the pod.
    pub(super) async fn spend_budget(&self, call: &Call<'_>) -> Result<(), Status> {
        let pod = Reader::get(self, &call.resource.gvr, &call.key()).await?;
        let pod = pod.ok_or_else(|| call.not_found())?;
        if is_exempt(&pod) {
            return Ok(());
        }
        let gvr = GroupVersionResource::new("policy", "v1", "poddisruptionbudgets");
        let mut budgets = Reader::list(self, &gvr, Some(call.namespace)).await?;
        let label = |key: &str| pod.get(&["metadata", "labels", key]).and_then(Value::as_str);
        budgets.retain(|budget| {
            let selector = budget.get(&["spec", "selector"]).cloned().unwrap_or(json!(null));
            LabelSelector::from_value(&selector).is_ok_and(|selector| selector.matches_with(label))
        });
        let [budget] = budgets.as_slice() else {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return if budgets.is_empty() { Ok(()) } else { Err(Status::internal(message)) };
        };
        if unhealthy_may_go(budget, &pod) {
            return Ok(());
        }
        let resource = self.resources.get(&gvr).ok_or_else(|| call.not_found())?;
        let key = ObjectKey::new(call.namespace, budget.name());
        let inner = Call { resource: &resource, name: budget.name(), subresource: Some("status"), ..*call };
        let mut mutate = |budget: &Object, _: &mut Vec<String>| take(budget, &pod, call.now);
        self.update_object(&inner, &key, Mode::Server, &mut mutate, &mut Vec::new()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        Object(value.as_object().cloned().unwrap())
    }

    fn budget(allowed: i64, observed: i64) -> Object {
        object(json!({
            "metadata": {"name": "b", "generation": 1},
            "status": {"disruptionsAllowed": allowed, "observedGeneration": observed, "desiredHealthy": 2, "currentHealthy": 2 + allowed},
        }))
    }

    #[test]
    fn an_eviction_is_taken_out_of_the_budget_or_refused() {
        let pod = object(json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}}));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let left = take(&budget(1, 1), &pod, now).unwrap();
        assert_eq!(left.i64(&["status", "disruptionsAllowed"]), Some(0));
        assert!(left.get(&["status", "disruptedPods", "p"]).is_some());
        for (allowed, observed) in [(0, 1), (1, 0)] {
            let refusal = take(&budget(allowed, observed), &pod, now).unwrap_err();
            assert!(refusal.code == 429 && refusal.has_cause("DisruptionBudget"), "{refusal:?}");
        }
        assert!(unhealthy_may_go(&budget(0, 1), &pod));
        assert!(is_exempt(&object(json!({"status": {"phase": "Pending"}}))));
    }
}
