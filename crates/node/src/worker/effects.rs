//! Effects of a plan on volumes, sandbox, network and the end of a pod.

use std::path::PathBuf;
use std::time::Duration;

use api::{ObjectKey, RequestOptions};
use client::EventType;
use k8s_openapi::api::node::v1::RuntimeClass;

use super::{Flow, PodWorker, Wake, key_of, pods};
use crate::hooks;
use crate::hosts_file::{host_names, hosts_file};
use crate::images::blocked;
use crate::observed::{Blocked, VolumeState, after, find_container, spec};
use crate::ports::{RuntimeError, SandboxConfig};
use crate::prober::ProbeTarget;
use crate::resolv_conf::resolv_conf;
use crate::resources::{pod_resources, qos_class};
use crate::volumes::certificate::Asker;
use crate::volumes::claim;
use crate::volumes::{self, VolumeInputs};

/// Pause before a failed update of mounted volumes is tried again.
const VOLUME_RETRY: Duration = Duration::from_secs(60);
/// Pause before a failed kill is tried again.
const KILL_RETRY: Duration = Duration::from_secs(2);

impl PodWorker {
    pub(super) async fn prepare_volumes(&mut self) -> Flow {
        let before = std::mem::take(&mut self.memory.volumes);
        match self.try_volumes().await {
            Ok(()) => {
                self.memory.volumes = VolumeState::Ready;
                self.memory.renewing = false;
                self.memory.mounted = true;
                self.memory.torn_down = false;
                Flow::Done
            }
            Err(message) => {
                self.shared.events.pod(&self.pod, EventType::Warning, "FailedMount", &message);
                tracing::warn!(pod = %self.uid, %message, "volumes are not ready");
                if self.memory.mounted {
                    // What is mounted stays usable: an update that fails must not stop restarts.
                    self.memory.volumes = VolumeState::Ready;
                    self.volumes_again();
                    return Flow::Done;
                }
                let failures = match before {
                    VolumeState::Failed(blocked) => blocked.failures,
                    VolumeState::Unknown | VolumeState::Ready => 0,
                };
                let now = self.shared.clock.now();
                // 500 ms doubling to 2 min; a source that appears wakes the worker anyway.
                let wait = Duration::from_millis(500).saturating_mul(1 << failures.min(8));
                self.memory.volumes = VolumeState::Failed(Blocked {
                    reason: "FailedMount".into(),
                    message,
                    since: now,
                    retry_at: Some(after(now, wait.min(Duration::from_secs(122)))),
                    failures: failures.saturating_add(1),
                });
                Flow::Failed
            }
        }
    }

    /// Tries a failed update again after a while; a change of its source wakes the worker anyway.
    fn volumes_again(&self) {
        let (clock, again) = (self.shared.clock.clone(), self.sources.0.clone());
        client::spawn(async move {
            clock.sleep(VOLUME_RETRY).await;
            // The worker may have ended meanwhile.
            again.send(()).ok();
        });
    }

    async fn try_volumes(&mut self) -> Result<(), String> {
        let shared = self.shared.clone();
        if self.memory.held.is_none() {
            self.memory.held = Some(shared.references.hold(&self.pod, &self.sources.0));
        }
        let held = self.memory.held.as_ref().ok_or("no sources")?;
        let sources = shared.references.read(held).await?;
        self.memory.tokens.refresh(&shared.client, &self.pod, shared.clock.now()).await?;
        self.memory.certificates.refresh(&Asker {
            client: &shared.client,
            node_name: &shared.facts.node_name,
            pod: &self.pod,
            wake: &self.sources.0,
            now: shared.clock.now(),
        });
        let claims = claim::resolve(&shared.client, &self.pod).await?;
        let dir = self.dir();
        let fields = self.field_context();
        let inputs = VolumeInputs {
            claims: &claims,
            pod: &self.pod,
            dir: &dir,
            sources: &sources,
            fields: &fields,
            tokens: &self.memory.tokens,
            certificates: &self.memory.certificates,
        };
        volumes::prepare(&inputs).map_err(|e| e.to_string())
    }

    pub(super) async fn create_sandbox(&mut self, attempt: u32) -> Flow {
        if spec(&self.pod).host_users == Some(false) {
            // Running it as the host's users would be less than what was asked for.
            let why = "user namespaces (hostUsers: false) are not supported by the node";
            return self.sandbox_failed(&RuntimeError::Invalid(why.into()));
        }
        let config = match self.runtime_handler().await {
            Ok(runtime_handler) => SandboxConfig { runtime_handler, ..self.sandbox_config(attempt) },
            Err(why) => return self.sandbox_failed(&RuntimeError::Other(why)),
        };
        if let Err(error) = std::fs::create_dir_all(&config.log_dir) {
            return self
                .sandbox_failed(&RuntimeError::Other(format!("{}: {error}", config.log_dir.display())));
        }
        match self.shared.runtime.run_pod_sandbox(config).await {
            Ok(sandbox) => {
                self.shared.view.learn(&sandbox.id, &self.uid);
                self.shared.meter.sandbox(true);
                self.memory.torn_down = false;
                self.record.sandboxes.insert(0, sandbox);
                self.attach_network().await
            }
            Err(error) => self.sandbox_failed(&error),
        }
    }

    /// The handler of the pod's RuntimeClass (Kubernetes, "Runtime Class"); "" without one.
    async fn runtime_handler(&self) -> Result<String, String> {
        let name = spec(&self.pod).runtime_class_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Ok(String::new());
        }
        let class = self.shared.client.get::<RuntimeClass>(&ObjectKey::new("", name)).await;
        let class = class.map_err(|error| format!("failed to look up RuntimeClass {name:?}: {error}"))?;
        let known = self.shared.runtime.handlers().iter().any(|handler| handler.name == class.handler);
        let unknown = || {
            let handler = &class.handler;
            format!("failed to get sandbox runtime: no runtime for {handler:?} is configured")
        };
        if known { Ok(class.handler) } else { Err(unknown()) }
    }

    /// Gives the sandbox its addresses and writes the files that name them.
    pub(super) async fn attach_network(&mut self) -> Flow {
        let Some(sandbox) = self.record.sandboxes.first().cloned() else { return Flow::Failed };
        let own_network = !spec(&self.pod).host_network.unwrap_or(false);
        if let Some(netns) = sandbox.netns.as_deref().filter(|_| own_network)
            && let Err(error) = self.shared.network.attach(&self.uid, netns).await
        {
            return self.sandbox_failed(&RuntimeError::Other(format!("network: {error}")));
        }
        if let Err(error) = self.write_pod_files() {
            return self.sandbox_failed(&RuntimeError::Other(format!("pod files: {error}")));
        }
        self.memory.sandbox_blocked = None;
        Flow::Done
    }

    fn sandbox_failed(&mut self, error: &RuntimeError) -> Flow {
        self.shared.meter.sandbox(false);
        let text = format!("Failed to create pod sandbox: {error}");
        self.shared.events.pod(&self.pod, EventType::Warning, "FailedCreatePodSandBox", &text);
        tracing::warn!(pod = %self.uid, %error, "cannot create the sandbox");
        let failures = self.memory.sandbox_blocked.as_ref().map_or(0, |b| b.failures);
        let now = self.shared.clock.now();
        let mut state = blocked("FailedCreatePodSandBox", text, failures, now);
        // 1 s doubling to 1 min: nothing was started yet.
        let wait = Duration::from_secs(1).saturating_mul(1 << failures.min(6)).min(Duration::from_secs(60));
        state.retry_at = Some(after(now, wait));
        self.memory.sandbox_blocked = Some(state);
        Flow::Failed
    }

    fn sandbox_config(&self, attempt: u32) -> SandboxConfig {
        let spec = spec(&self.pod);
        let config = &self.shared.config;
        let (hostname, full) = host_names(&self.pod, &config.node_name, &config.cluster_domain);
        let as_fqdn = spec.set_hostname_as_fqdn.unwrap_or(false);
        let security = spec.security_context.as_ref();
        let sysctls = security.and_then(|s| s.sysctls.as_ref()).into_iter().flatten();
        SandboxConfig {
            pod_uid: self.uid.clone(),
            namespace: self.pod.metadata.namespace.clone().unwrap_or_default(),
            name: self.pod.metadata.name.clone().unwrap_or_default(),
            attempt,
            hostname: full.filter(|_| as_fqdn).unwrap_or(hostname),
            host_network: spec.host_network.unwrap_or(false),
            host_pid: spec.host_pid.unwrap_or(false),
            host_ipc: spec.host_ipc.unwrap_or(false),
            share_process_namespace: spec.share_process_namespace.unwrap_or(false),
            sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
            labels: crate::container_config::pod_labels(&self.pod),
            cgroup: pod_resources(spec, config.pod_pids_limit),
            slice: match qos_class(spec) {
                "Guaranteed" => String::new(),
                class => class.to_lowercase(),
            },
            log_dir: self.log_dir(),
            runtime_handler: String::new(),
        }
    }

    /// Folder of the pod's logs: `<namespace>_<name>_<uid>`.
    pub(super) fn log_dir(&self) -> PathBuf {
        crate::logs::log_dir(&self.shared.config.log_root, &self.pod)
    }

    /// `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of the pod.
    pub(super) fn write_pod_files(&self) -> std::io::Result<()> {
        let config = &self.shared.config;
        let dir = self.dir();
        std::fs::create_dir_all(&dir)?;
        let host = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
        let ips = self.shared.network.addresses(&self.uid);
        let host_hosts = host(std::path::Path::new("/etc/hosts"));
        let hosts = hosts_file(&self.pod, &ips, &config.node_name, &config.cluster_domain, &host_hosts);
        let servers = host(&config.host_resolv_conf);
        let resolv = resolv_conf(&self.pod, &config.cluster_dns, &config.cluster_domain, &servers);
        let (name, _) = host_names(&self.pod, &config.node_name, &config.cluster_domain);
        for (file, text) in [("hosts", hosts), ("resolv.conf", resolv), ("hostname", format!("{name}\n"))] {
            let path = dir.join(file);
            // Written in place: running containers have the file itself mounted.
            if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                std::fs::write(path, text)?;
            }
        }
        Ok(())
    }

    pub(super) fn kill(&mut self, id: String, name: &str, grace: Duration, message: &str) -> Flow {
        let first = self.memory.killing.insert(id.clone(), after(self.shared.clock.now(), grace)).is_none();
        if first {
            tracing::info!(pod = %self.key(), container = name, ?grace, why = message, "stopping container");
            self.shared.events.container(&self.pod, name, EventType::Normal, "Killing", message);
        }
        // A second kill only shortens the grace period: the hook is under way.
        let hooked = find_container(&self.pod, name).filter(|_| first).map(|(_, container)| ProbeTarget {
            container_id: id.clone(),
            container,
            pod_ip: self.pod_ip(),
            age: Duration::ZERO,
        });
        let (shared, pod, wake) = (self.shared.clone(), self.pod.clone(), self.wake.clone());
        client::spawn(async move {
            let (runtime, clock) = (&*shared.runtime, &*shared.clock);
            let mut grace = grace;
            if let Some(target) = hooked {
                let (left, result) = hooks::pre_stop(&target, grace, runtime, clock).await;
                grace = left;
                if let Err(why) = result {
                    let (name, text) = (&target.container.name, format!("PreStopHook failed: {why}"));
                    shared.events.container(&pod, name, EventType::Warning, "FailedPreStopHook", &text);
                }
            }
            match runtime.stop_container(&id, grace).await {
                Ok(()) | Err(RuntimeError::NotFound) => {}
                Err(error) => {
                    tracing::warn!(container = %id, %error, "cannot stop the container");
                    clock.sleep(KILL_RETRY).await;
                }
            }
            // The worker may have ended meanwhile.
            drop(wake.send(Wake::Stopped { id }));
        });
        Flow::Background
    }

    pub(super) async fn remove_container(&mut self, id: &str) -> Flow {
        let result = self.shared.runtime.remove_container(id).await;
        self.memory.termination_messages.remove(id);
        let removed = self.record.containers.iter().find(|container| container.id == id);
        if let Some(error) = removed.and_then(|container| crate::logs::remove(&container.log_path).err()) {
            tracing::warn!(container = %id, %error, "cannot remove the container's log");
        }
        self.gone_or_retry(result, "cannot remove the container")
    }

    pub(super) async fn stop_sandbox(&mut self, id: &str) -> Flow {
        let result = self.shared.runtime.stop_pod_sandbox(id).await;
        self.gone_or_retry(result, "cannot stop the sandbox")
    }

    pub(super) async fn remove_sandbox(&mut self, id: &str) -> Flow {
        let result = self.shared.runtime.remove_pod_sandbox(id).await;
        self.gone_or_retry(result, "cannot remove the sandbox")
    }

    fn gone_or_retry(&mut self, result: Result<(), RuntimeError>, what: &str) -> Flow {
        match result {
            Ok(()) | Err(RuntimeError::NotFound) => Flow::Done,
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "{what}");
                self.retry();
                Flow::Failed
            }
        }
    }

    /// Releases network and volumes in the background.
    pub(super) fn tear_down(&mut self) -> Flow {
        if self.memory.tearing_down {
            return Flow::Background;
        }
        self.memory.tearing_down = true;
        self.memory.held = None;
        self.memory.mounted = false;
        self.memory.volumes = VolumeState::Unknown;
        let (network, wake) = (self.shared.network.clone(), self.wake.clone());
        let (uid, dir) = (self.uid.clone(), self.dir());
        client::spawn(async move {
            let detached = network.detach(&uid).await.map_err(|e| e.to_string());
            let removed = tokio::task::spawn_blocking(move || volumes::tear_down(&dir)).await;
            let removed = removed.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string()));
            // The worker may have ended meanwhile.
            drop(wake.send(Wake::TornDown(detached.and(removed))));
        });
        Flow::Background
    }

    /// Reports the final status and removes the pod from the API.
    pub(super) async fn delete_pod(&mut self) -> Flow {
        if self.memory.deleted {
            return Flow::Background;
        }
        self.report().await;
        self.shared.book.release(&self.uid);
        let key = self.key();
        let options = RequestOptions {
            grace_period_seconds: Some(0),
            precondition_uid: Some(self.uid.clone()),
            ..RequestOptions::default()
        };
        match self.shared.client.delete(&pods(), &key, options).await {
            Ok(()) => {
                tracing::info!(pod = %key, "pod ended");
                self.memory.deleted = true;
            }
            // The pod, or the one with this uid, is gone already.
            Err(status) if status.is_not_found() || status.is_conflict() => self.memory.deleted = true,
            Err(status) => {
                tracing::warn!(pod = %self.uid, error = %status, "cannot delete the pod");
                self.retry();
            }
        }
        Flow::Background
    }

    pub(super) async fn forget(&mut self) -> Flow {
        self.shared.book.release(&self.uid);
        self.shared.meter.probes.forget(&self.pod);
        if !self.drop_mirror().await {
            return Flow::Failed;
        }
        let dir = self.log_dir();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = %self.uid, %error, "cannot remove the pod's logs");
        }
        Flow::End
    }

    pub(super) fn key(&self) -> ObjectKey {
        key_of(&self.pod)
    }
}
