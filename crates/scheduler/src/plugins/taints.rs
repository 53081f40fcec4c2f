//! TaintToleration: hard taints keep pods away that do not tolerate them, soft ones are avoided.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Filter, MAX_SCORE, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

/// Whether any toleration fits the taint (Kubernetes documentation, "Taints and Tolerations").
pub(crate) fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let same_value =
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
        let compare = |holds: fn(i64, i64) -> bool| {
            let values = number(taint.value.as_deref()).zip(number(toleration.value.as_deref()));
            values.is_some_and(|(node, bound)| holds(node, bound))
        };
        let fits = match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "Equal" | "" => same_value(),
            "Lt" => compare(|node, bound| node < bound),
            "Gt" => compare(|node, bound| node > bound),
            _ => false,
        };
        (key.is_empty() || key == taint.key) && (effect.is_empty() || effect == taint.effect) && fits
    })
}

/// The first taint that keeps the pod away.
pub(crate) fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    let hard =
        node.spec.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.into_iter().find(|taint| !tolerated(&pod.spec.tolerations, taint))
}

struct Taints<'a>(&'a PodInfo);

pub(super) fn filter<'a>(_: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Filter + 'a>> {
    Some(Box::new(Taints(pod)))
}

impl Filter for Taints<'_> {
    fn passes(&self, _: usize, node: &NodeInfo) -> bool {
        untolerated(self.0, node).is_none()
    }

    fn reasons(&self, _: usize, node: &NodeInfo) -> Vec<String> {
        let taint = untolerated(self.0, node).into_iter();
        taint
            .map(|taint| {
                let value = taint.value.as_deref().unwrap_or_default();
                format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)
            })
            .collect()
    }
}

pub(super) fn score<'a>(
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    candidates: &[usize],
) -> Option<Box<dyn Score + 'a>> {
    let soft =
        |slot: &usize| snapshot.nodes()[*slot].spec.taints.iter().any(|t| t.effect == "PreferNoSchedule");
    candidates.iter().any(soft).then(|| Box::new(Taints(pod)) as Box<dyn Score>)
}

impl Score for Taints<'_> {
    fn score(&self, _: usize, node: &NodeInfo) -> i64 {
        let soft = node.spec.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let count = soft.filter(|taint| !tolerated(&self.0.spec.tolerations, taint)).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        super::normalize_to_highest(scores);
        for score in scores {
            *score = MAX_SCORE - *score;
        }
    }
}
