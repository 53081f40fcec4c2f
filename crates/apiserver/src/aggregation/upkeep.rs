//! The APIServices of what this server serves itself: one for each group and version of the table. They say where a group
//! comes in discovery, and let people see what is served by whom.

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::{ApiRequest, Object, Status, Verb};
use serde_json::{Value, json};

use super::api_services;
use crate::authz::MASTERS;
use crate::resource::{Reader, ResourceSet, UserInfo};
use crate::resources::{CUSTOM_PRIORITY, priority};
use crate::server::ApiServer;
use crate::usage;

/// Marks what is kept here; `onstart` for built-in groups, `true` for those of definitions.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const RETRY: Duration = Duration::from_secs(1);

/// A group and version that the server serves.
#[derive(Debug, PartialEq, Eq)]
struct Served {
    group: String,
    version: String,
    /// Somebody may serve it instead (metrics).
    replaceable: bool,
}

/// What has to be done.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Update(Value),
    Delete(String),
}

/// Keeps them whenever the table or an APIService changes; returns when the server is gone.
pub(super) async fn run(server: Weak<ApiServer>) {
    loop {
        let Some(strong) = server.upgrade() else { return };
        let mut rows = strong.registry.resources.changes();
        let Some(row) = strong.registry.resources.get(&api_services()) else { return };
        let changes = async {
            let services = strong.registry.cache(&row, None).await?.subscribe();
            keep(&strong).await.map(|()| services)
        };
        let kept = changes.await;
        drop(strong);
        match kept {
            Ok(mut services) => {
                // A closed channel means that there is something new to subscribe to, or no server any more.
                tokio::select! {
                    closed = rows.changed() => drop(closed),
                    closed = services.changed() => drop(closed),
                }
            }
            Err(status) => {
                tracing::warn!(%status, "the APIServices of the own groups cannot be kept");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Makes what is missing, mends what has changed, deletes what is served no more.
pub(super) async fn keep(server: &Arc<ApiServer>) -> Result<(), Status> {
    let gvr = api_services();
    server.registry.resources.settle().await;
    let present = Reader::list(&server.registry, &gvr, None).await?;
    for step in plan(&served(&server.resources()), &present) {
        let request = |verb, name: Option<&str>| ApiRequest::resource(verb, gvr.clone(), None, name, None);
        let request = match &step {
            Step::Create(object) => request(Verb::Create, None).with_json(object.to_string()),
            Step::Update(object) => {
                request(Verb::Update, object["metadata"]["name"].as_str()).with_json(object.to_string())
            }
            Step::Delete(name) => request(Verb::Delete, Some(name)),
        };
        let user = UserInfo::new("system:apiserver", &[MASTERS]);
        match server.registry.handle_unreviewed(&user, &request).await {
            // Somebody else was faster; the change is seen and looked at again.
            Err(status) if status.is_conflict() || status.is_already_exists() || status.is_not_found() => {}
            other => drop(other?),
        }
    }
    Ok(())
}

fn served(rows: &ResourceSet) -> Vec<Served> {
    let own = api_services().group;
    let all = usage::with_rows(rows).group_versions();
    let table = rows.group_versions();
    let one = |(group, version): (String, String)| {
        let replaceable = !table.contains(&(group.clone(), version.clone()));
        Served { group, version, replaceable }
    };
    all.into_iter().filter(|(group, _)| *group != own).map(one).collect()
}

fn plan(served: &[Served], present: &[Object]) -> Vec<Step> {
    let mut steps = Vec::new();
    for one in served {
        let want = wanted(one);
        let name = format!("{}.{}", one.version, one.group);
        match present.iter().find(|object| object.name() == name) {
            None => steps.push(Step::Create(want)),
            Some(is) if one.replaceable || is.get(&["metadata", "labels", MANAGED]).is_none() => {}
            Some(is) if differs(is, &want) => {
                let mut mended = is.clone();
                mended.set(&["spec"], want["spec"].clone());
                steps.push(Step::Update(mended.into_value()));
            }
            Some(_) => {}
        }
    }
    for object in present.iter().filter(|object| object.get(&["metadata", "labels", MANAGED]).is_some()) {
        let (group, version) = (object.str(&["spec", "group"]), object.str(&["spec", "version"]));
        if !served.iter().any(|one| one.group == group && one.version == version) {
            steps.push(Step::Delete(object.name().to_owned()));
        }
    }
    steps
}

fn wanted(one: &Served) -> Value {
    let built_in = priority(&one.group, &one.version);
    let managed = if built_in.is_some() || one.replaceable { "onstart" } else { "true" };
    let (group, version) = built_in.unwrap_or(CUSTOM_PRIORITY);
    json!({
        "apiVersion": api_services().api_version(), "kind": "APIService",
        "metadata": {"name": format!("{}.{}", one.version, one.group), "labels": {MANAGED: managed}},
        "spec": {"group": one.group, "version": one.version, "groupPriorityMinimum": group, "versionPriority": version},
    })
}

/// Whether somebody changed what it says; fields at their zero value are as good as absent ones.
fn differs(is: &Object, want: &Value) -> bool {
    let zero = |value: &Value| value.is_null() || *value == false || *value == "";
    let spec = is.get(&["spec"]).and_then(Value::as_object);
    let spec = spec.into_iter().flatten().filter(|(_, value)| !zero(value));
    let wanted = want["spec"].as_object().into_iter().flatten().filter(|(_, value)| !zero(value));
    let sorted = |mut pairs: Vec<(String, Value)>| {
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs
    };
    let owned = |(name, value): (&String, &Value)| (name.clone(), value.clone());
    sorted(spec.map(owned).collect()) != sorted(wanted.map(owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(group: &str, version: &str) -> Served {
        Served { group: group.into(), version: version.into(), replaceable: group == "metrics.k8s.io" }
    }

    fn shown(step: &Step) -> String {
        match step {
            Step::Create(object) => format!(
                "create {} {} {}/{}",
                object["metadata"]["name"],
                object["metadata"]["labels"][MANAGED],
                object["spec"]["groupPriorityMinimum"],
                object["spec"]["versionPriority"]
            ),
            Step::Update(object) => format!("update {} {}", object["metadata"]["name"], object["spec"]),
            Step::Delete(name) => format!("delete {name}"),
        }
    }

    #[test]
    fn what_is_served_has_one_and_nothing_else_is_touched() {
        let kept = |one: &Served| Object::from_value(wanted(one)).unwrap();
        let all = [
            served("", "v1"),
            served("apps", "v1"),
            served("g.example", "v2"),
            served("metrics.k8s.io", "v1beta1"),
        ];
        let steps = |present: &[Object]| plan(&all, present).iter().map(shown).collect::<Vec<_>>();
        assert_eq!(
            steps(&[]),
            [
                "create \"v1.\" \"onstart\" 18000/1",
                "create \"v1.apps\" \"onstart\" 17800/15",
                "create \"v2.g.example\" \"true\" 1000/100",
                "create \"v1beta1.metrics.k8s.io\" \"onstart\" 1000/100",
            ]
        );
        let mut present: Vec<Object> = all.iter().map(kept).collect();
        assert!(steps(&present).is_empty());
        let service = json!({"name": "s", "namespace": "n"});
        for object in &mut present[1..] {
            object.set(&["spec", "service"], service.clone());
        }
        // Somebody serves a definition's group, and said so in an APIService of his own.
        present[2].remove(&["metadata", "labels"]);
        present.push(kept(&served("old.example", "v1")));
        let mut foreign = kept(&served("foreign.example", "v1"));
        foreign.remove(&["metadata", "labels"]);
        present.push(foreign);
        assert_eq!(
            steps(&present),
            [
                "update \"v1.apps\" {\"group\":\"apps\",\"groupPriorityMinimum\":17800,\"version\":\"v1\",\"versionPriority\":15}",
                "delete v1.old.example",
            ]
        );
    }
}
