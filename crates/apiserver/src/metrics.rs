//! What the server counts about itself, in Prometheus' text form and under Kubernetes' names.

use std::sync::Arc;

use api::metrics::{Counter, Family, Gauge, Histogram, Metrics, Registry};
use api::{ApiRequest, ResponseBody, Status, Target, Verb};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::documents::{GIT_VERSION, MAJOR, MINOR};
use crate::pipeline::{self, Incoming, Outcome};
use crate::resource::{ResourceSet, UserInfo};
use crate::server::ApiServer;

/// Upper bounds of `apiserver_request_duration_seconds`.
const BOUNDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// Labels of everything that is told apart by the request.
const REQUEST: &[&str] =
    &["component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"];
/// The same with the code of the answer.
const ANSWER: &[&str] =
    &["code", "component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"];

/// What requests are told apart by: the labels of their series.
#[derive(Clone, Debug)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: &'static str,
}

/// The counters of one server.
pub(crate) struct Counters {
    page: Metrics,
    requests: Family<Counter>,
    duration: Family<Histogram>,
    watching: Family<Gauge>,
    reading: Arc<Gauge>,
    mutating: Arc<Gauge>,
    objects: Family<Gauge>,
    /// Looked at while the server lives.
    _process: Arc<Process>,
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

    /// The values of [`REQUEST`].
    fn values(&self) -> [&str; 8] {
        let Self { verb, group, version, resource, subresource, scope, dry_run } = self;
        ["apiserver", dry_run, group, resource, scope, subresource, verb, version]
    }
}

fn is_apply(request: &ApiRequest) -> bool {
    let apply = api::ContentType::Patch(api::PatchType::Apply);
    request.body.as_ref().is_some_and(|body| body.content_type == apply)
}

/// One more while it lives.
struct Counted(Arc<Gauge>);

impl Counted {
    fn new(gauge: Arc<Gauge>) -> Self {
        gauge.add(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

/// The pipeline, counted.
pub(crate) async fn measured(
    server: &ApiServer,
    caller: &UserInfo,
    incoming: Incoming,
) -> Result<Outcome, Status> {
    let counters = &server.counters;
    let labels = Labels::of(&incoming.request, &server.resources());
    let long = incoming.upgrade.is_some() || labels.verb == "WATCH";
    let reads = matches!(labels.verb, "GET" | "LIST" | "WATCH");
    let flight =
        (!long).then(|| Counted::new(Arc::clone(if reads { &counters.reading } else { &counters.mutating })));
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
        let counted = Counted::new(counters.watching.with(&labels.values()));
        let inner = std::mem::replace(events, Box::pin(futures_util::stream::empty()));
        *events = Box::pin(inner.map(move |event| {
            // moved in, so that it lives as long as the stream
            let _watching = &counted;
            event
        }));
    }
    counters.note(&labels, code, (!long).then(|| begun.elapsed()));
    outcome
}

impl Counters {
    pub(crate) fn new(page: Metrics) -> Self {
        let flight = page.gauge(
            "apiserver_current_inflight_requests",
            "Requests under way, without watches and sessions.",
            &["request_kind"],
        );
        let build = page.gauge(
            "kubernetes_build_info",
            "The version, in labels.",
            &["git_version", "major", "minor"],
        );
        build.with(&[GIT_VERSION, MAJOR, MINOR]).set(1.0);
        let process = Arc::new(Process::new(&page));
        page.on_scrape(&process, Process::look);
        Self {
            requests: page.counter(
                "apiserver_request_total",
                "Requests by verb, resource and code of the answer.",
                ANSWER,
            ),
            duration: page.histogram(
                "apiserver_request_duration_seconds",
                "Seconds from a request to its answer, without watches and sessions.",
                REQUEST,
                BOUNDS,
            ),
            watching: page.gauge("apiserver_longrunning_requests", "Watches under way.", REQUEST),
            reading: flight.with(&["readOnly"]),
            mutating: flight.with(&["mutating"]),
            objects: page.gauge("apiserver_storage_objects", "Stored objects by kind.", &["resource"]),
            _process: process,
            page,
        }
    }

    pub(crate) fn page(&self) -> &Metrics {
        &self.page
    }

    fn note(&self, labels: &Labels, code: u16, seconds: Option<std::time::Duration>) {
        let values = labels.values();
        let code = code.to_string();
        let [component, dry_run, group, resource, scope, subresource, verb, version] = values;
        let answer = [&*code, component, dry_run, group, resource, scope, subresource, verb, version];
        self.requests.with(&answer).inc();
        if let Some(seconds) = seconds {
            self.duration.with(&values).observe(seconds);
        }
    }
}

/// All series.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn text(server: &ApiServer) -> Result<String, Status> {
    let mut counts = Vec::new();
    let rows = server.resources();
    for row in rows.iter().filter(|row| row.stored_as.is_none() && row.allows(Verb::List)) {
        let page = server.registry.store.range(&row.store_prefix(), None, Some(1), None).await;
        let page = page.map_err(Status::internal)?;
        let group = Some(row.gvr.group.as_str()).filter(|group| !group.is_empty());
        let name = group.map_or_else(|| row.gvr.resource.clone(), |g| format!("{}.{g}", row.gvr.resource));
        counts.push((name, page.entries.len() as u64 + page.remaining));
    }
    let objects = &server.counters.objects;
    // kinds come and go
    objects.clear();
    for (name, count) in counts {
        objects.with(&[&name]).set(count as f64);
    }
    Ok(server.counters.page.text())
}

/// Ticks of a second in `/proc` (Linux, USER_HZ).
const TICKS: f64 = 100.0;

/// The process as Linux tells it; what cannot be read is left out.
struct Process([(&'static str, Family<Gauge>); 6]);

impl Process {
    fn new(page: &Registry) -> Self {
        let gauge = |name, help| page.gauge(name, help, &[]);
        Self([
            ("cpu", page.counted("process_cpu_seconds_total", "Seconds of processor time.", &[])),
            ("resident", gauge("process_resident_memory_bytes", "Memory in use.")),
            ("virtual", gauge("process_virtual_memory_bytes", "Address space.")),
            ("start", gauge("process_start_time_seconds", "When the process began, since 1970.")),
            ("open", gauge("process_open_fds", "Open descriptors.")),
            ("most", gauge("process_max_fds", "Most descriptors that may be open.")),
        ])
    }

    fn look(&self) {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
        /// The first number behind a word at the beginning of a line.
        fn after(text: &str, word: &str) -> Option<f64> {
            text.lines().find_map(|line| line.strip_prefix(word)?.split_whitespace().next()?.parse().ok())
        }
        let (stat, status) = (read("self/stat"), read("self/status"));
        // the name in parentheses may contain anything; the first field behind it is number 3
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
        let bytes = |word: &str| after(&status, word).map(|kibibytes| kibibytes * 1024.0);
        for (what, family) in &self.0 {
            let value = match *what {
                "cpu" => field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS),
                "resident" => bytes("VmRSS:"),
                "virtual" => bytes("VmSize:"),
                "start" => after(&read("stat"), "btime ").zip(field(22)).map(|(boot, at)| boot + at / TICKS),
                "open" => std::fs::read_dir("/proc/self/fd").ok().map(|list| list.map(|_| 1.0).sum()),
                _ => after(&read("self/limits"), "Max open files"),
            };
            match value {
                Some(value) => family.with(&[]).set(value),
                None => family.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_are_counted_and_measured() {
        let counters = Counters::new(Metrics::default());
        let mut request = ApiRequest::path("/version");
        request.verb = Verb::Get;
        let rows = ResourceSet::new(Vec::new());
        for millis in [1, 5, 300, 100_000] {
            counters.note(&Labels::of(&request, &rows), 200, Some(Duration::from_millis(millis)));
        }
        let made_up = api::GroupVersionResource::new("made.up", "v1", "names");
        request.target = Target::Resource { gvr: made_up, namespace: None, name: None, subresource: None };
        counters.note(&Labels::of(&request, &rows), 404, None);
        let text = counters.page.text();
        let labels = "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",\
            verb=\"GET\",version=\"\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",{labels}}} 4"),
            format!("apiserver_request_total{{code=\"404\",{labels}}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"60\"}} 3"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 4"),
            format!("apiserver_request_duration_seconds_count{{{labels}}} 4"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        api::metrics::format::parse(&text).unwrap();
    }
}
