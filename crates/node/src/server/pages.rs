//! What a node says about itself, at the paths of a kubelet: health, metrics, statistics, pods, settings, logs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Status;
use api::metrics::{CONTENT_TYPE, Registry};
use api::stream::{LogOptions, NodeAnswer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use crate::NodeAgent;
use crate::ports::{ContainerState, ContainerStatus, ContainerUsage as Usage};
use crate::usage::Rates;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// The machine's own logs.
const MACHINE_LOGS: &str = "/var/log";

/// A pod of this node with the containers that the runtime has of it.
pub(crate) struct PodView {
    pub(crate) pod: core::Pod,
    pub(crate) containers: Vec<ContainerStatus>,
}

impl NodeAgent {
    /// Answers a request for one of the node's own pages: a path and perhaps a query.
    ///
    /// # Errors
    /// NotFound for a page that there isn't, and what goes wrong on the way to one.
    pub async fn page(&self, target: &str) -> Result<NodeAnswer, Status> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts[..] {
            ["healthz"] | ["healthz", "ping" | "syncloop"] => Ok(NodeAnswer::new(200, TEXT, "ok")),
            ["configz"] => Ok(page_json(&self.settings())),
            ["pods"] => {
                let items: Vec<core::Pod> =
                    self.pod_views().await?.into_iter().map(|view| view.pod).collect();
                Ok(page_json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})))
            }
            ["metrics"] => {
                Ok(NodeAnswer::new(200, CONTENT_TYPE, self.meter().page(&self.pod_views().await?)))
            }
            ["metrics", "probes"] => Ok(NodeAnswer::new(200, CONTENT_TYPE, self.meter().probes.page())),
            ["metrics", "resource"] => {
                let (views, rates) = (self.pod_views().await?, self.rates().await?);
                Ok(NodeAnswer::new(200, CONTENT_TYPE, resource_metrics(&views, &rates)))
            }
            ["stats", "summary"] => {
                let (views, rates) = (self.pod_views().await?, self.rates().await?);
                Ok(page_json(&summary(&self.name(), &views, &rates)))
            }
            ["containerLogs", namespace, pod, container] => {
                let options = log_options(container, query)?;
                let body = self.logs(namespace, pod, options).await?;
                Ok(NodeAnswer { code: 200, content_type: TEXT.into(), body })
            }
            ["logs", ref below @ ..] => machine_logs(Path::new(MACHINE_LOGS), &below.join("/")),
            _ => Err(Status::not_found("", "node pages", path)),
        }
    }
}

fn page_json(value: &Value) -> NodeAnswer {
    NodeAnswer::new(200, JSON, value.to_string())
}

fn log_options(container: &str, query: &str) -> Result<LogOptions, Status> {
    let mut options = LogOptions { container: container.to_owned(), ..LogOptions::default() };
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let number = || {
            value.parse::<u64>().map(Some).map_err(|_| Status::bad_request(format!("{name} is no number")))
        };
        let flag = matches!(value, "true" | "1");
        match name {
            "follow" => options.follow = flag,
            "previous" => options.previous = flag,
            "timestamps" => options.timestamps = flag,
            "tailLines" if value != "all" => options.tail_lines = number()?,
            "sinceSeconds" => options.since_seconds = number()?,
            "limitBytes" => options.limit_bytes = number()?,
            _ => {}
        }
    }
    Ok(options)
}

/// A file below the log folder, or a list of a folder's entries. Links that lead out of it lead nowhere.
fn machine_logs(root: &Path, below: &str) -> Result<NodeAnswer, Status> {
    let absent = |_| Status::not_found("", "logs", below);
    let root = root.canonicalize().map_err(absent)?;
    let path: PathBuf = root.join(below).canonicalize().map_err(absent)?;
    if !path.starts_with(&root) {
        return Err(Status::not_found("", "logs", below));
    }
    if !path.is_dir() {
        let file = tokio::fs::File::from_std(std::fs::File::open(&path).map_err(absent)?);
        return Ok(NodeAnswer { code: 200, content_type: TEXT.into(), body: file_stream(file) });
    }
    let entries = std::fs::read_dir(&path).map_err(absent)?.flatten();
    let mut names: Vec<String> = entries
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let links = names.iter().map(|name| {
        let name = name.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
        format!("<a href=\"{name}\">{name}</a>\n")
    });
    let page = format!("<pre>\n{}</pre>\n", links.collect::<String>());
    Ok(NodeAnswer::new(200, "text/html; charset=utf-8", page))
}

fn file_stream(file: tokio::fs::File) -> api::stream::ByteStream {
    use tokio::io::AsyncReadExt as _;
    Box::pin(futures_util::stream::unfold(Some(file), |file| async {
        let mut file = file?;
        let mut buffer = bytes::BytesMut::with_capacity(64 << 10);
        match file.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), Some(file))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// Running containers with their pods.
fn running(views: &[PodView]) -> impl Iterator<Item = (&PodView, &ContainerStatus)> {
    let all = views.iter().flat_map(|view| view.containers.iter().map(move |c| (view, c)));
    all.filter(|(_, container)| container.state == ContainerState::Running)
}

/// The page `/metrics/resource`: what the node and its containers use at one moment.
fn resource_metrics(views: &[PodView], rates: &Rates) -> String {
    const CONTAINER: &[&str] = &["container", "namespace", "pod"];
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let page = Registry::default();
    let of_node = &rates.sample.node;
    page.counted("node_cpu_usage_seconds_total", "Processor time of the node.", &[])
        .with(&[])
        .set(seconds(of_node.cpu_nanos));
    page.gauge("node_memory_working_set_bytes", "Memory of the node that is in use.", &[])
        .with(&[])
        .set(of_node.working_set_bytes as f64);
    let cpu =
        page.counted("container_cpu_usage_seconds_total", "Processor time of the container.", CONTAINER);
    let memory = page.gauge(
        "container_memory_working_set_bytes",
        "Memory of the container that is in use.",
        CONTAINER,
    );
    let start = page.gauge(
        "container_start_time_seconds",
        "When the container started, in seconds since 1970.",
        CONTAINER,
    );
    for (view, container) in running(views) {
        let Some(usage) = rates.sample.containers.get(&container.id) else { continue };
        let meta = &view.pod.metadata;
        let text = |value: &'_ Option<String>| value.clone().unwrap_or_default();
        let labels = [container.name.as_str(), &text(&meta.namespace), &text(&meta.name)];
        cpu.with(&labels).set(seconds(usage.cpu_nanos));
        memory.with(&labels).set(usage.working_set_bytes as f64);
        start.with(&labels).set(seconds(u64::try_from(container.started_at_nanos).unwrap_or(0)));
    }
    page.gauge("resource_scrape_error", "1 if something could not be measured.", &[]).with(&[]).set(0.0);
    page.text_of(rates.sample.time.as_millisecond())
}

fn summary(node: &str, views: &[PodView], rates: &Rates) -> Value {
    let pods: Vec<Value> = views
        .iter()
        .map(|view| {
            let used: Vec<(&ContainerStatus, Usage, u64)> = view
                .containers
                .iter()
                .filter_map(|c| {
                    let usage = rates.sample.containers.get(&c.id)?;
                    Some((c, *usage, rates.container_cpu.get(&c.id).copied().unwrap_or(0)))
                })
                .collect();
            let containers: Vec<Value> = used
                .iter()
                .map(|(container, usage, cpu)| {
                    let mut value = stats(rates, usage, *cpu);
                    value["name"] = container.name.clone().into();
                    value["startTime"] = time(container.started_at_nanos);
                    value
                })
                .collect();
            let sum = used.iter().fold((Usage::default(), 0), |(sum, cpu), (_, usage, rate)| {
                let sum = Usage {
                    cpu_nanos: sum.cpu_nanos + usage.cpu_nanos,
                    memory_bytes: sum.memory_bytes + usage.memory_bytes,
                    working_set_bytes: sum.working_set_bytes + usage.working_set_bytes,
                    rss_bytes: sum.rss_bytes + usage.rss_bytes,
                };
                (sum, cpu + rate)
            });
            let mut pod = stats(rates, &sum.0, sum.1);
            let meta = &view.pod.metadata;
            pod["podRef"] = json!({"name": meta.name, "namespace": meta.namespace, "uid": meta.uid});
            pod["startTime"] = json!(view.pod.status.as_ref().and_then(|s| s.start_time.clone()));
            pod["containers"] = containers.into();
            pod
        })
        .collect();
    let mut of_node = stats(rates, &rates.sample.node, rates.node_cpu);
    of_node["nodeName"] = node.into();
    json!({"node": of_node, "pods": pods})
}

fn stats(rates: &Rates, usage: &Usage, cpu: u64) -> Value {
    let time = rates.sample.time.to_string();
    json!({
        "cpu": {"time": time, "usageNanoCores": cpu, "usageCoreNanoSeconds": usage.cpu_nanos},
        "memory": {"time": time, "usageBytes": usage.memory_bytes,
            "workingSetBytes": usage.working_set_bytes, "rssBytes": usage.rss_bytes},
    })
}

fn time(nanos: i64) -> Value {
    let at = Timestamp::from_nanosecond(i128::from(nanos)).ok();
    at.and_then(|at| Timestamp::from_second(at.as_second()).ok()).map(|at| at.to_string()).into()
}

/// A duration as Kubernetes' settings write it.
pub(crate) fn duration(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::fake::situation::container;
    use crate::usage::Sample;

    use super::*;

    fn scene() -> (Vec<PodView>, Rates) {
        let pod =
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": []}});
        let running = container("a").running(7);
        let usage =
            Usage { cpu_nanos: 1_500_000_000, memory_bytes: 30, working_set_bytes: 20, rss_bytes: 10 };
        let sample = Sample {
            time: Timestamp::from_second(100).unwrap(),
            node: Usage { cpu_nanos: 9_000_000_000, ..usage },
            containers: BTreeMap::from([(running.id.clone(), usage)]),
        };
        let container_cpu = BTreeMap::from([(running.id.clone(), 250_000_000)]);
        let rates = Rates { sample, window: Duration::from_secs(1), node_cpu: 1_000_000_000, container_cpu };
        let gone = container("b").exited(0, 9, 8);
        let views =
            vec![PodView { pod: serde_json::from_value(pod).unwrap(), containers: vec![running, gone] }];
        (views, rates)
    }

    #[test]
    fn statistics_say_who_uses_what() {
        let (views, rates) = scene();
        let summary = summary("n1", &views, &rates);
        assert_eq!(summary["node"]["cpu"]["usageNanoCores"], 1_000_000_000);
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "ns", "uid": "u"}));
        assert_eq!(
            (&pod["cpu"]["usageNanoCores"], &pod["memory"]["workingSetBytes"]),
            (&json!(250_000_000), &json!(20))
        );
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1, "only what runs");
        let text = resource_metrics(&views, &rates);
        let line =
            "container_cpu_usage_seconds_total{container=\"a\",namespace=\"ns\",pod=\"p\"} 1.5 100000\n";
        assert!(text.contains(line), "{text}");
        api::metrics::format::parse(&text).unwrap();
        let meter = crate::meter::NodeMeter::new(&api::metrics::Metrics::default(), "n1");
        let text = meter.page(&views);
        assert!(text.contains("kubelet_running_containers{container_state=\"exited\"} 1\n"), "{text}");
        api::metrics::format::parse(&text).unwrap();
    }

    #[test]
    fn links_do_not_lead_out_of_the_log_folder() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("log");
        std::fs::create_dir(&logs).unwrap();
        std::fs::write(dir.path().join("secret"), "").unwrap();
        std::fs::write(logs.join("a<b"), "").unwrap();
        std::os::unix::fs::symlink("../secret", logs.join("link")).unwrap();
        for (below, code) in [("", 200), ("link", 404), ("../secret", 404), ("absent", 404)] {
            let answer = machine_logs(&logs, below);
            assert_eq!(answer.map_or_else(|status| status.code, |answer| answer.code), code, "{below}");
        }
    }
}
