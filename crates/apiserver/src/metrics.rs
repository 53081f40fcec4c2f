//! What the server counts about itself, in Prometheus' text form and under Kubernetes' names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{ApiRequest, ResponseBody, Status, Target, Verb};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::documents::{GIT_VERSION, MAJOR, MINOR};
use crate::pipeline::{self, Incoming, Outcome};
use crate::resource::{ResourceSet, UserInfo};
use crate::server::ApiServer;

/// Upper bounds of `apiserver_request_duration_seconds`.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// What requests are told apart by: the labels of their series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: &'static str,
}

#[derive(Default)]
struct Series {
    by_code: BTreeMap<u16, u64>,
    /// Not cumulative; the last one is beyond all bounds.
    buckets: [u64; BUCKETS.len() + 1],
    seconds: f64,
}

/// The counters of one server.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
    watching: Arc<Mutex<BTreeMap<Labels, i64>>>,
    reading: AtomicI64,
    mutating: AtomicI64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Labels {
    /// The labels of a request for a served resource. Paths outside of resources, and names that a client made up, are not
    /// told apart: nobody can make ever more series.
    fn of(request: &ApiRequest, rows: &ResourceSet) -> Self {
        let verb = match request.verb {
            Verb::Create => "POST",
            Verb::Update => "PUT",
            Verb::Patch if is_apply(request) => "APPLY",
            Verb::Patch => "PATCH",
            Verb::Delete => "DELETE",
            Verb::DeleteCollection => "DELETECOLLECTION",
            Verb::Get => "GET",
            Verb::List => "LIST",
            Verb::Watch => "WATCH",
        };
        let dry_run = if request.options.dry_run { "All" } else { "" };
        let outside = Self {
            verb,
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            scope: "",
            dry_run,
        };
        let Target::Resource { gvr, namespace, name, subresource } = &request.target else { return outside };
        let Some(row) = rows.get(gvr) else { return outside };
        if subresource.as_deref().is_some_and(|name| row.subresource(name).is_none()) {
            return outside;
        }
        Self {
            group: gvr.group.clone(),
            version: gvr.version.clone(),
            resource: gvr.resource.clone(),
            subresource: subresource.clone().unwrap_or_default(),
            scope: match (name, namespace) {
                (Some(_), _) => "resource",
                (None, Some(_)) => "namespace",
                (None, None) => "cluster",
            },
            ..outside
        }
    }

    fn text(&self) -> String {
        format!(
            "component=\"apiserver\",dry_run={:?},group={:?},resource={:?},scope={:?},subresource={:?},verb={:?},version={:?}",
            self.dry_run, self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

fn is_apply(request: &ApiRequest) -> bool {
    let apply = api::ContentType::Patch(api::PatchType::Apply);
    request.body.as_ref().is_some_and(|body| body.content_type == apply)
}

/// One more while it lives.
struct Counted<'a>(&'a AtomicI64);

impl<'a> Counted<'a> {
    fn new(gauge: &'a AtomicI64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A watch, counted while its stream lives.
struct Watching(Arc<Mutex<BTreeMap<Labels, i64>>>, Labels);

impl Watching {
    fn new(gauges: &Arc<Mutex<BTreeMap<Labels, i64>>>, labels: Labels) -> Self {
        *lock(gauges).entry(labels.clone()).or_default() += 1;
        Self(Arc::clone(gauges), labels)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(gauge) = lock(&self.0).get_mut(&self.1) {
            *gauge -= 1;
        }
    }
}

/// The pipeline, counted.
pub(crate) async fn measured(
    server: &ApiServer,
    caller: &UserInfo,
    incoming: Incoming,
) -> Result<Outcome, Status> {
    let metrics = &server.metrics;
    let labels = Labels::of(&incoming.request, &server.resources());
    let long = incoming.upgrade.is_some() || labels.verb == "WATCH";
    let reads = matches!(labels.verb, "GET" | "LIST" | "WATCH");
    let flight = (!long).then(|| Counted::new(if reads { &metrics.reading } else { &metrics.mutating }));
    let begun = Instant::now();
    let mut outcome = pipeline::handle(server, caller, incoming).await;
    drop(flight);
    let code = match &outcome {
        Ok(Outcome::Response(response)) => response.code,
        Ok(Outcome::Session(_)) => 101,
        Err(status) => status.code,
    };
    if let Ok(Outcome::Response(response)) = &mut outcome
        && let ResponseBody::Watch(events) = &mut response.body
    {
        let counted = Watching::new(&metrics.watching, labels.clone());
        let inner = std::mem::replace(events, Box::pin(futures_util::stream::empty()));
        *events = Box::pin(inner.map(move |event| {
            // moved in, so that it lives as long as the stream
            let _watching = &counted;
            event
        }));
    }
    metrics.note(labels, code, (!long).then(|| begun.elapsed().as_secs_f64()));
    outcome
}

impl Metrics {
    fn note(&self, labels: Labels, code: u16, seconds: Option<f64>) {
        let mut requests = lock(&self.requests);
        let series = requests.entry(labels).or_default();
        *series.by_code.entry(code).or_default() += 1;
        if let Some(seconds) = seconds {
            series.buckets[BUCKETS.partition_point(|bound| *bound < seconds)] += 1;
            series.seconds += seconds;
        }
    }

    fn requests_text(&self, out: &mut String) -> std::fmt::Result {
        let requests = lock(&self.requests);
        let (total, duration) = ("apiserver_request_total", "apiserver_request_duration_seconds");
        head(out, total, "counter", "Requests by verb, resource and code of the answer.")?;
        for (labels, series) in requests.iter() {
            for (code, count) in &series.by_code {
                writeln!(out, "{total}{{code=\"{code}\",{}}} {count}", labels.text())?;
            }
        }
        head(
            out,
            duration,
            "histogram",
            "Seconds from a request to its answer, without watches and sessions.",
        )?;
        for (labels, series) in requests.iter() {
            let (labels, mut count) = (labels.text(), 0);
            for (bound, bucket) in BUCKETS.iter().zip(series.buckets) {
                count += bucket;
                writeln!(out, "{duration}_bucket{{{labels},le=\"{bound}\"}} {count}")?;
            }
            count += series.buckets[BUCKETS.len()];
            writeln!(out, "{duration}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
            writeln!(out, "{duration}_sum{{{labels}}} {}", series.seconds)?;
            writeln!(out, "{duration}_count{{{labels}}} {count}")?;
        }
        Ok(())
    }

    fn gauges_text(&self, out: &mut String) -> std::fmt::Result {
        let (long, flight) = ("apiserver_longrunning_requests", "apiserver_current_inflight_requests");
        head(out, long, "gauge", "Watches under way.")?;
        for (labels, count) in lock(&self.watching).iter() {
            writeln!(out, "{long}{{{}}} {count}", labels.text())?;
        }
        head(out, flight, "gauge", "Requests under way, without watches and sessions.")?;
        for (kind, gauge) in [("mutating", &self.mutating), ("readOnly", &self.reading)] {
            writeln!(out, "{flight}{{request_kind=\"{kind}\"}} {}", gauge.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

fn head(out: &mut String, name: &str, type_: &str, help: &str) -> std::fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {type_}")
}

/// All series.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn text(server: &ApiServer) -> Result<String, Status> {
    let objects = "apiserver_storage_objects";
    let mut counts = Vec::new();
    let rows = server.resources();
    for row in rows.iter().filter(|row| row.stored_as.is_none() && row.allows(Verb::List)) {
        let page = server.registry.store.range(&row.store_prefix(), None, Some(1), None).await;
        let page = page.map_err(Status::internal)?;
        let group = Some(row.gvr.group.as_str()).filter(|group| !group.is_empty());
        let name = group.map_or_else(|| row.gvr.resource.clone(), |g| format!("{}.{g}", row.gvr.resource));
        counts.push((name, page.entries.len() as u64 + page.remaining));
    }
    let mut out = String::with_capacity(64 << 10);
    let written = (|| {
        server.metrics.requests_text(&mut out)?;
        server.metrics.gauges_text(&mut out)?;
        head(&mut out, objects, "gauge", "Stored objects by kind.")?;
        for (name, count) in &counts {
            writeln!(out, "{objects}{{resource={name:?}}} {count}")?;
        }
        head(&mut out, "kubernetes_build_info", "gauge", "The version, in labels.")?;
        let (version, major, minor) = (GIT_VERSION, MAJOR, MINOR);
        writeln!(out, "kubernetes_build_info{{git_version={version:?},major={major:?},minor={minor:?}}} 1")?;
        process_text(&mut out)
    })();
    written.map_err(Status::internal)?;
    Ok(out)
}

/// Ticks of a second in `/proc` (Linux, USER_HZ).
const TICKS: f64 = 100.0;

/// The process as Linux tells it; what cannot be read is left out.
fn process_text(out: &mut String) -> std::fmt::Result {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
    /// The first number behind a word at the beginning of a line.
    fn after(text: &str, word: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(word)?.split_whitespace().next()?.parse().ok())
    }
    let (stat, status) = (read("self/stat"), read("self/status"));
    // the name in parentheses may contain anything; the first field behind it is number 3
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    let start = after(&read("stat"), "btime ").zip(field(22)).map(|(boot, ticks)| boot + ticks / TICKS);
    let bytes = |word: &str| after(&status, word).map(|kibibytes| kibibytes * 1024.0);
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|list| list.map(|_| 1.0).sum());
    let values = [
        ("cpu_seconds_total", "counter", "Seconds of processor time.", cpu),
        ("resident_memory_bytes", "gauge", "Memory in use.", bytes("VmRSS:")),
        ("virtual_memory_bytes", "gauge", "Address space.", bytes("VmSize:")),
        ("start_time_seconds", "gauge", "When the process began, since 1970.", start),
        ("open_fds", "gauge", "Open descriptors.", open),
        (
            "max_fds",
            "gauge",
            "Most descriptors that may be open.",
            after(&read("self/limits"), "Max open files"),
        ),
    ];
    for (name, type_, help, value) in values {
        if let Some(value) = value {
            let name = format!("process_{name}");
            head(out, &name, type_, help)?;
            writeln!(out, "{name} {value}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        let mut request = ApiRequest::path("/version");
        request.verb = Verb::Get;
        let rows = ResourceSet::new(Vec::new());
        for seconds in [0.001, 0.005, 0.3, 100.0] {
            metrics.note(Labels::of(&request, &rows), 200, Some(seconds));
        }
        let made_up = api::GroupVersionResource::new("made.up", "v1", "names");
        request.target = Target::Resource { gvr: made_up, namespace: None, name: None, subresource: None };
        metrics.note(Labels::of(&request, &rows), 404, None);
        let mut text = String::new();
        metrics.requests_text(&mut text).unwrap();
        let labels = "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",\
            verb=\"GET\",version=\"\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",{labels}}} 4"),
            format!("apiserver_request_total{{code=\"404\",{labels}}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.4\"}} 3"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"60\"}} 3"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 4"),
            format!("apiserver_request_duration_seconds_count{{{labels}}} 4"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
