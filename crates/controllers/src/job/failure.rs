//! What a pod's failure means by the pod failure policy.

use client::Cached;
use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement};

use crate::pod::Pod;

/// Consequence of a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Consequence {
    Count,
    Ignore,
    FailIndex,
    /// The whole job fails, for this reason.
    FailJob(String),
}

/// The first matching rule decides; without one the failure counts.
pub(crate) fn consequence(policy: Option<&PodFailurePolicy>, pod: &Cached<Pod>) -> Consequence {
    for (position, rule) in policy.iter().flat_map(|policy| &policy.rules).enumerate() {
        let by_code = rule.on_exit_codes.as_ref().and_then(|codes| matching_code(codes, &pod.object));
        let what = match by_code {
            Some((container, code)) => {
                Some(format!("Container {container} for pod {} failed with exit code {code}", pod.key))
            }
            None => {
                let patterns = rule.on_pod_conditions.iter().flatten();
                let mut found = patterns.filter(|pattern| {
                    let wanted = pattern.status.as_deref().unwrap_or("True");
                    let mut conditions = pod.object.status.conditions.iter();
                    conditions.any(|condition| condition.type_ == pattern.type_ && condition.status == wanted)
                });
                found.next().map(|pattern| format!("Pod {} has condition {}", pod.key, pattern.type_))
            }
        };
        let Some(what) = what else { continue };
        return match rule.action.as_str() {
            "Ignore" => Consequence::Ignore,
            "FailIndex" => Consequence::FailIndex,
            "FailJob" => Consequence::FailJob(format!("{what} matching FailJob rule at index {position}")),
            _ => Consequence::Count,
        };
    }
    Consequence::Count
}

/// The first container that failed with a code the rule names.
fn matching_code<'p>(codes: &PodFailurePolicyOnExitCodesRequirement, pod: &'p Pod) -> Option<(&'p str, i32)> {
    let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let ended =
        all.filter_map(|status| Some((status.name.as_str(), status.state.terminated.as_ref()?.exit_code)));
    let mut failed = ended.filter(|(name, code)| {
        *code != 0 && codes.container_name.as_ref().is_none_or(|wanted| wanted == name)
    });
    failed.find(|(_, code)| match codes.operator.as_str() {
        "In" => codes.values.contains(code),
        "NotIn" => !codes.values.contains(code),
        _ => false,
    })
}
