//! In-place resize (KEP-1287): a pod asks for other amounts, the node takes that up when it can, and gives them to what runs.
//!
//! ```text
//!   spec (wanted) ──admission──▶ allocated ──pod_actions──▶ control groups (applied)
//!         └── PodResizePending         └── PodResizeInProgress
//! ```
//!
//! Everything else on the node sees a pod with the allocated amounts: [`allocate`] puts them in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use crate::observed::{Observed, find_container, spec};
use crate::pod_actions::PodAction;
use crate::ports::{ContainerState, ContainerStatus, Resources};
use crate::resources::{container_resources, pod_resources};

/// Amounts by container name.
pub type Amounts = BTreeMap<String, core::ResourceRequirements>;

fn containers(pod: &core::Pod) -> impl Iterator<Item = &core::Container> {
    spec(pod).containers.iter().chain(spec(pod).init_containers.iter().flatten())
}

/// What the pod's spec asks for.
pub fn wanted(pod: &core::Pod) -> Amounts {
    containers(pod).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// What an earlier agent has promised, by the pod's status; else what the spec asks for.
pub fn promised(pod: &core::Pod) -> Amounts {
    let status = pod.status.as_ref();
    let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let known: Vec<&core::ContainerStatus> =
        lists.into_iter().flatten().flat_map(|list| list.iter().flatten()).collect();
    let mut amounts = wanted(pod);
    for (name, amount) in &mut amounts {
        let told = known.iter().find(|s| s.name == *name && s.allocated_resources.is_some());
        if let Some(told) = told {
            amount.requests.clone_from(&told.allocated_resources);
            amount.limits = told.resources.as_ref().and_then(|r| r.limits.clone()).or(amount.limits.take());
        }
    }
    amounts
}

/// The pod with these amounts in the place of its own.
pub fn allocate(pod: &mut core::Pod, amounts: &Amounts) {
    let Some(spec) = pod.spec.as_mut() else { return };
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        if let Some(amount) = amounts.get(&container.name) {
            container.resources = Some(amount.clone());
        }
    }
}

/// Whether a running container's control group differs from what it is allocated.
pub fn differs(pod: &core::Pod, container: &core::Container, status: &ContainerStatus) -> bool {
    let target = container_resources(container, spec(pod), 1);
    // Nothing is known of containers made by versions that could not resize.
    status.state == ContainerState::Running
        && status.resources != Resources::default()
        && limits(&status.resources) != limits(&target)
}

/// What can be changed while something runs.
fn limits(r: &Resources) -> (Option<u64>, i64, i64) {
    (r.cpu_shares, r.cpu_quota_us.unwrap_or(-1), r.memory_limit_bytes.unwrap_or(-1))
}

/// Whether the container asked to be restarted for this change.
pub fn restarts(container: &core::Container, applied: &Resources, target: &Resources) -> bool {
    let changed = |resource: &str| match resource {
        "cpu" => (applied.cpu_shares, applied.cpu_quota_us) != (target.cpu_shares, target.cpu_quota_us),
        "memory" => applied.memory_limit_bytes != target.memory_limit_bytes,
        _ => false,
    };
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|p| p.restart_policy == "RestartContainer").any(|p| changed(&p.resource_name))
}

/// Live changes of control groups. A group is never smaller than those in it: the pod grows first and shrinks last.
pub fn actions(pod: &core::Pod, observed: &Observed) -> Vec<PodAction> {
    let Some(sandbox) = observed.ready_sandbox() else { return Vec::new() };
    if sandbox.cgroup == Resources::default() {
        return Vec::new();
    }
    let mut target = pod_resources(spec(pod), sandbox.cgroup.pids_limit);
    target.oom_score_adj = sandbox.cgroup.oom_score_adj;
    let mut actions = Vec::new();
    let grown = larger(&sandbox.cgroup, &target);
    if grown != sandbox.cgroup {
        actions.push(PodAction::ResizeSandbox { id: sandbox.id.clone(), resources: grown });
    }
    let mut changing = false;
    for status in observed.running() {
        let Some((_, container)) = find_container(pod, &status.name) else { continue };
        if !differs(pod, &container, status) {
            continue;
        }
        changing = true;
        let mut resources = container_resources(&container, spec(pod), 1);
        resources.oom_score_adj = status.resources.oom_score_adj;
        if !restarts(&container, &status.resources, &resources) {
            let (id, name) = (status.id.clone(), status.name.clone());
            actions.push(PodAction::ResizeContainer { id, name, resources });
        }
    }
    if !changing && actions.is_empty() && limits(&sandbox.cgroup) != limits(&target) {
        actions.push(PodAction::ResizeSandbox { id: sandbox.id.clone(), resources: target });
    }
    actions
}

/// The larger of each limit; none is the largest.
fn larger(a: &Resources, b: &Resources) -> Resources {
    let most = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
    let quota = most(a.cpu_quota_us, b.cpu_quota_us);
    Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        // A limit that goes is written as "none".
        cpu_quota_us: quota.or(a.cpu_quota_us.map(|_| -1)),
        cpu_period_us: a.cpu_period_us.or(b.cpu_period_us.filter(|_| quota.is_some())),
        memory_limit_bytes: most(a.memory_limit_bytes, b.memory_limit_bytes)
            .or(a.memory_limit_bytes.map(|_| -1)),
        ..a.clone()
    }
}

/// Whether anything that runs does not have its allocated amounts yet.
pub fn in_progress(pod: &core::Pod, observed: &Observed) -> bool {
    observed.running().any(|status| {
        find_container(pod, &status.name).is_some_and(|(_, container)| differs(pod, &container, status))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::situation::{Situation, container};

    fn situation(resources: Value) -> Situation {
        let main = json!({"name": "main", "image": "web:1", "resources": resources});
        Situation::new().spec(json!({"containers": [main]})).sandbox()
    }

    fn applied(resources: Value) -> (Resources, Resources) {
        let pod = situation(resources).pod();
        (
            container_resources(&pod.spec.as_ref().unwrap().containers[0], spec(&pod), 1),
            pod_resources(spec(&pod), None),
        )
    }

    fn plan(before: Value, now: Value, policy: Value) -> Vec<String> {
        let (of_container, of_pod) = applied(before);
        let mut status = container("main").running(5);
        status.resources = of_container;
        let mut situation = situation(now).with(status);
        situation.observed.sandboxes[0].cgroup = of_pod;
        let mut pod = situation.pod();
        pod.spec.as_mut().unwrap().containers[0].resize_policy = serde_json::from_value(policy).unwrap();
        let text = |action: PodAction| match action {
            PodAction::ResizeSandbox { resources, .. } => format!("pod {:?}", limits(&resources)),
            PodAction::ResizeContainer { resources, .. } => format!("container {:?}", limits(&resources)),
            other => format!("{other:?}"),
        };
        actions(&pod, &situation.observed).into_iter().map(text).collect()
    }

    #[test]
    fn pods_grow_first_and_shrink_last() {
        let small = json!({"limits": {"cpu": "100m", "memory": "1Mi"}});
        let large = json!({"limits": {"cpu": "200m", "memory": "2Mi"}});
        let grown = ["pod (Some(204), 20000, 2097152)", "container (Some(204), 20000, 2097152)"];
        assert_eq!(plan(small.clone(), large.clone(), json!([])), grown);
        assert_eq!(plan(large.clone(), small.clone(), json!([])), ["container (Some(102), 10000, 1048576)"]);
        assert!(plan(small.clone(), small.clone(), json!([])).is_empty());
        let restart = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        assert_eq!(plan(small.clone(), large.clone(), restart.clone()), grown[..1], "killed instead");
        let only_cpu = json!({"limits": {"cpu": "200m", "memory": "1Mi"}});
        assert_eq!(plan(small.clone(), only_cpu, restart).len(), 2);
        // Everything inside has shrunk.
        let (of_container, _) = applied(small.clone());
        let (_, of_pod) = applied(large);
        let mut status = container("main").running(5);
        status.resources = of_container;
        let mut situation = situation(small).with(status);
        situation.observed.sandboxes[0].cgroup = of_pod;
        let last = actions(&situation.pod(), &situation.observed);
        assert!(
            matches!(&last[..], [PodAction::ResizeSandbox { resources, .. }] if resources.memory_limit_bytes == Some(1 << 20))
        );
    }

    #[test]
    fn a_limit_that_comes_or_goes() {
        let none = json!({"requests": {"cpu": "100m"}});
        let some = json!({"requests": {"cpu": "100m"}, "limits": {"memory": "1Mi"}});
        assert_eq!(plan(none, some, json!([])), ["container (Some(102), -1, 1048576)"]);
    }

    #[test]
    fn what_an_earlier_agent_promised_is_in_the_status() {
        let pod = situation(json!({"requests": {"cpu": "2"}}));
        let old = json!({"name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}});
        let pod = pod.status(json!({"containerStatuses": [old]})).pod();
        let want = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}});
        assert_eq!(serde_json::to_value(&promised(&pod)["main"]).unwrap(), want);
        let mut allocated = pod.clone();
        allocate(&mut allocated, &promised(&pod));
        assert_eq!(wanted(&allocated), promised(&pod));
    }
}
