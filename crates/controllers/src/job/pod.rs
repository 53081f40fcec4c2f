//! The pods of a job.

use api::PatchType;
use client::{Action, Cached, Kind};
use serde_json::{Value, json};

use super::{Sync, TRACKING};
use crate::pod::Pod;
use crate::workload::{pod_of_template, suffixed_name};

pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(crate) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

/// The index in a pod's annotations.
pub(crate) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.get(INDEX)?.parse().ok()
}

/// Failures of a pod's index before it.
pub(crate) fn failures_before(pod: &Pod) -> i32 {
    pod.metadata.annotations.get(FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Removes the tracking finalizer.
pub(crate) fn untrack(pod: &Cached<Pod>) -> Action {
    let rest: Vec<&String> =
        pod.object.metadata.finalizers.iter().filter(|finalizer| *finalizer != TRACKING).collect();
    let rest = if rest.is_empty() { Value::Null } else { json!(rest) };
    Action::Patch {
        gvr: Pod::gvr(),
        key: pod.key.clone(),
        subresource: None,
        kind: PatchType::Merge,
        patch: json!({"metadata": {
            "uid": pod.uid, "resourceVersion": pod.revision.to_string(), "finalizers": rest,
        }}),
    }
}

impl Sync<'_> {
    /// A new pod: (its name, it). `failures` counts those of its index, where that is asked for.
    pub(crate) fn new_pod(&self, nth: usize, index: Option<i32>, failures: Option<i32>) -> (String, Value) {
        let namespace = &self.job.key.namespace;
        let mut pod = pod_of_template(&self.spec.template, namespace, &self.claimant.reference());
        let base = match index {
            Some(index) => format!("{}-{index}", self.job.key.name),
            None => self.job.key.name.clone(),
        };
        let name = suffixed_name(&base, &self.job.uid, self.now, nth);
        let metadata = &mut pod["metadata"];
        metadata["name"] = name.as_str().into();
        metadata["generateName"] = format!("{base}-").into();
        let mut finalizers = metadata["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.push(TRACKING.into());
        metadata["finalizers"] = finalizers.into();
        if let Some(index) = index {
            metadata["annotations"][INDEX] = index.to_string().into();
            metadata["labels"][INDEX] = index.to_string().into();
            if let Some(failures) = failures {
                metadata["annotations"][FAILURES] = failures.to_string().into();
            }
            pod["spec"]["hostname"] = base.into();
            for list in ["containers", "initContainers"] {
                add_index_variable(&mut pod["spec"][list]);
            }
            if pod["spec"]["initContainers"].is_null() {
                pod["spec"].as_object_mut().map(|spec| spec.remove("initContainers"));
            }
        }
        (name, pod)
    }
}

/// Tells every container its index, unless it has such a variable of its own.
fn add_index_variable(containers: &mut Value) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    for container in containers.as_array_mut().into_iter().flatten() {
        let mut variables = container["env"].as_array().cloned().unwrap_or_default();
        if variables.iter().all(|variable| variable["name"] != NAME) {
            let path = format!("metadata.annotations['{INDEX}']");
            variables.push(json!({"name": NAME, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
            container["env"] = variables.into();
        }
    }
}
