//! Pod.

use api::{FieldError, Object, RequestOptions, Status};
use serde_json::json;

use crate::admission::mirror_pod::MIRROR;
use crate::resource::{DeleteDecision, Strategy, WriteContext};
use crate::resources::check::{At, Errors, immutable};
use crate::resources::pod_spec::{defaults, resize, update, validate};
use crate::resources::quantity;

pub(super) struct PodStrategy;

/// Quality of service: Guaranteed where every container's limits for cpu and memory are set and equal its requests,
/// BestEffort where nothing is set, Burstable else.
fn qos_class(o: &Object) -> &'static str {
    let spec = At::top(o, "spec");
    let (mut any, mut guaranteed) = (false, true);
    for list in ["initContainers", "containers"] {
        for container in spec.field(list).items() {
            let resources = container.field("resources");
            for name in ["cpu", "memory"] {
                let amount =
                    |kind: &str| quantity::parse(&resources.field(kind).field(name)).filter(|q| !q.is_zero());
                let (request, limit) = (amount("requests"), amount("limits"));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `status.podIP` and the first of `status.podIPs` are one value.
fn join_addresses(o: &mut Object) {
    let single = o.str(&["status", "podIP"]).to_owned();
    let first = o.get(&["status", "podIPs"]).and_then(|list| list.get(0)).map(|ip| ip["ip"].clone());
    match first {
        None if !single.is_empty() => o.set(&["status", "podIPs"], json!([{"ip": single}])),
        Some(first) if single.is_empty() => o.set(&["status", "podIP"], first),
        _ => {}
    }
}

impl Strategy for PodStrategy {
    fn default(&self, object: &mut Object) {
        if let Some(spec) = object.0.get_mut("spec") {
            defaults::pod_spec(spec);
            defaults::pod_only(spec);
        }
        join_addresses(object);
    }

    fn prepare_for_create(&self, _: &WriteContext<'_>, object: &mut Object) {
        let qos = qos_class(object);
        object.set(&["status"], json!({"phase": "Pending", "qosClass": qos}));
        let gated = !At::top(object, "spec").field("schedulingGates").is_empty();
        if gated {
            let condition = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
            object.set(&["status", "conditions"], condition);
        }
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, new: &mut Object, old: &Object) {
        match cx.subresource {
            Some("ephemeralcontainers") => {
                let added = new.get(&["spec", "ephemeralContainers"]).cloned();
                let mut kept = old.clone();
                if let Some(list) = added {
                    kept.set(&["spec", "ephemeralContainers"], list);
                }
                *new = kept;
            }
            Some("resize") => resize::take_over(new, old),
            // Ephemeral containers come through their own path only.
            _ => match old.get(&["spec", "ephemeralContainers"]).cloned() {
                Some(list) => new.set(&["spec", "ephemeralContainers"], list),
                None => drop(new.remove(&["spec", "ephemeralContainers"])),
            },
        }
        if let Some(qos) = old.get(&["status", "qosClass"]).cloned() {
            new.set_default(&["status", "qosClass"], qos);
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut e = Errors::new();
        let spec = At::top(object, "spec");
        validate::pod_spec(&spec, &mut e);
        if !spec.field("schedulingGates").is_empty() && !spec.field("nodeName").is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            spec.field("nodeName").forbidden(&mut e, detail);
        }
        e
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut e = Errors::new();
        if new.get(&["spec"]) != old.get(&["spec"]) {
            // The old pod may have been written before some default existed.
            let mut old = old.clone();
            self.default(&mut old);
            spec_update(new, &old, &mut e);
        }
        immutable(&mut e, new, old, &["status", "qosClass"]);
        mirror_stays(new, old, &mut e);
        e
    }

    fn validate_part(&self, part: Option<&str>, new: &Object, old: &Object) -> Vec<FieldError> {
        if part != Some("resize") {
            return self.validate_update(new, old);
        }
        let mut e = Errors::new();
        resize::validate(new, old, (qos_class(new), qos_class(old)), &mut e);
        e
    }

    fn before_delete(
        &self,
        _: &WriteContext<'_>,
        object: &Object,
        options: &RequestOptions,
    ) -> Result<DeleteDecision, Status> {
        let unscheduled = object.str(&["spec", "nodeName"]).is_empty();
        let terminated = matches!(object.str(&["status", "phase"]), "Succeeded" | "Failed");
        if unscheduled || terminated {
            return Ok(DeleteDecision::Now);
        }
        let period = object.i64(&["spec", "terminationGracePeriodSeconds"]).unwrap_or(30);
        let seconds = match options.grace_period_seconds.unwrap_or(period) {
            n if n < 0 => 1,
            n => n,
        };
        Ok(if seconds == 0 { DeleteDecision::Now } else { DeleteDecision::Graceful { seconds } })
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        let mut out = Vec::new();
        let spec = At::top(object, "spec");
        let grace = spec.field("terminationGracePeriodSeconds");
        if grace.i64().is_some_and(|n| n < 0) {
            out.push(format!(
                "{}: must be >= 0; negative values are invalid and will be treated as 1",
                grace.path
            ));
        }
        for container in spec.field("containers").items() {
            let mut seen = std::collections::HashSet::new();
            for variable in container.field("env").items() {
                let name = variable.field("name").str();
                if !seen.insert(name) {
                    out.push(format!(
                        "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                        variable.path
                    ));
                }
            }
        }
        out
    }
}

/// Ephemeral containers change through their own path only, which has put everything else back.
fn spec_update(new: &Object, old: &Object, e: &mut Errors) {
    let ephemeral = |o: &Object| o.get(&["spec", "ephemeralContainers"]).cloned();
    if ephemeral(new) == ephemeral(old) {
        update::validate(new, old, e);
    } else {
        ephemeral_update(new, old, e);
    }
}

fn ephemeral_update(new: &Object, old: &Object, e: &mut Errors) {
    let (after, before) = (At::top(new, "spec"), At::top(old, "spec"));
    let (after, before) = (after.field("ephemeralContainers"), before.field("ephemeralContainers"));
    for old in before.items() {
        let name = old.field("name").str();
        match after.items().find(|c| c.field("name").str() == name) {
            None => after.forbidden(e, &format!("existing ephemeral containers {name:?} may not be removed")),
            Some(new) if new.value != old.value => {
                after.forbidden(e, &format!("existing ephemeral containers {name:?} may not be changed"));
            }
            Some(_) => {}
        }
    }
}

/// Whether a pod mirrors a static pod is decided when it is made.
fn mirror_stays(new: &Object, old: &Object, e: &mut Errors) {
    let of = |pod: &Object| pod.get(&["metadata", "annotations", MIRROR]).cloned();
    let detail = match (of(old), of(new)) {
        (before, now) if before == now => return,
        (None, _) => "may not add mirror pod annotation",
        (Some(_), _) => "may not remove or update mirror pod annotation",
    };
    e.push(FieldError::forbidden(format!("metadata.annotations[{MIRROR}]"), detail));
}
