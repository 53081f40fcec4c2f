//! Starting one container: image, environment, configuration, create, start.

use std::collections::BTreeMap;
use std::time::Duration;

use client::EventType;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::watch;

use super::{Flow, PodWorker, Wake};
use crate::container_config::{ConfigInputs, container_config, write_container_files};
use crate::env::{EnvInputs, environment, services_for};
use crate::fields::FieldContext;
use crate::hooks::{self, PostStart};
use crate::images::{ImageStep, blocked, image_step, never_pull, progress_text};
use crate::observed::{Blocked, find_container};
use crate::ports::{ContainerConfig, Credential, ImageInfo, PullProgress, RuntimeError};
use crate::prober::ProbeTarget;
use crate::pull_secrets::credentials_for;

/// Between events of a pull that takes its time.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
/// How long the first read of the services may take.
const FIRST_READ: Duration = Duration::from_secs(10);

/// The container whose processes an ephemeral container is to see.
fn debugged(pod: &core::Pod, name: &str) -> Option<String> {
    let ephemeral = crate::observed::spec(pod).ephemeral_containers.iter().flatten();
    let found = ephemeral.filter(|e| e.name == name).find_map(|e| e.target_container_name.clone());
    found.filter(|target| !target.is_empty())
}

impl PodWorker {
    pub(super) async fn start_container(&mut self, name: &str, attempt: u32, streak: u32) -> Flow {
        let Some(sandbox) = self.record.sandboxes.first().map(|s| s.id.clone()) else { return Flow::Failed };
        let Some((_, container)) = find_container(&self.pod, name) else { return Flow::Failed };
        let (reference, policy) = (container.image.clone().unwrap_or_default(), &container.image_pull_policy);
        let Some(image) = self.image(name, attempt, &reference, policy.as_deref()).await else {
            return Flow::Background;
        };
        let Some(volumes) = self.volume_images(&container, attempt).await else { return Flow::Background };
        let mut config = match self.configure(&container, attempt, streak, &image, &volumes).await {
            Ok(config) => config,
            Err(text) => return self.block(name, "CreateContainerConfigError", &text),
        };
        if let Some(target) = debugged(&self.pod, name) {
            let running = self
                .record
                .containers
                .iter()
                .find(|c| c.name == target && c.state == crate::ports::ContainerState::Running);
            let Some(running) = running else {
                let text = format!("unable to find target container {target:?}");
                return self.block(name, "CreateContainerConfigError", &text);
            };
            config.process_namespace_of = Some(running.id.clone());
        }
        let runtime = self.shared.runtime.clone();
        let id = match runtime.create_container(&sandbox, config).await {
            Ok(id) => id,
            Err(error) => return self.block(name, "CreateContainerError", &error.to_string()),
        };
        self.tell(name, EventType::Normal, "Created", "Container created");
        if let Err(error) = runtime.start_container(&id).await {
            return self.block(name, "RunContainerError", &error.to_string());
        }
        self.tell(name, EventType::Normal, "Started", "Container started");
        self.shared.meter.started(&self.pod, name);
        tracing::info!(pod = %self.key(), container = name, attempt, "container started");
        self.run_post_start(&id, container);
        self.memory.blocked.remove(name);
        self.memory.images.retain(|(container, _, _), _| container != name);
        self.memory.failures = 0;
        Flow::Done
    }

    /// Runs the postStart hook, if there is one, in the background.
    fn run_post_start(&mut self, id: &str, container: core::Container) {
        let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else { return };
        self.memory.post_start.insert(id.to_owned(), PostStart::Running);
        let target = ProbeTarget {
            container_id: id.to_owned(),
            container,
            pod_ip: self.pod_ip(),
            age: Duration::ZERO,
        };
        let (runtime, clock, wake) =
            (self.shared.runtime.clone(), self.shared.clock.clone(), self.wake.clone());
        client::spawn(async move {
            let result = hooks::post_start(&handler, &target, &*runtime, &*clock).await;
            let (id, container) = (target.container_id, target.container.name);
            // The worker may have ended meanwhile.
            drop(wake.send(Wake::PostStarted { id, container, result }));
        });
    }

    pub(super) fn post_started(&mut self, id: String, container: &str, result: Result<(), String>) {
        match result {
            Ok(()) => drop(self.memory.post_start.remove(&id)),
            Err(why) => {
                let text = format!("PostStartHook failed: {why}");
                self.tell(container, EventType::Warning, "FailedPostStartHook", &text);
                self.memory.post_start.insert(id, PostStart::Failed);
            }
        }
    }

    fn tell(&self, container: &str, kind: EventType, reason: &str, message: &str) {
        self.shared.events.container(&self.pod, container, kind, reason, message);
    }

    /// Other containers of the pod go on.
    fn block(&mut self, name: &str, reason: &str, text: &str) -> Flow {
        let failures = self.memory.blocked.get(name).map_or(0, |b| b.failures);
        tracing::warn!(pod = %self.uid, container = name, reason, error = text, "cannot start the container");
        self.tell(name, EventType::Warning, "Failed", &format!("Error: {text}"));
        self.shared.meter.not_started(&self.pod, name, reason);
        let state = blocked(reason, text.to_owned(), failures, self.shared.clock.now());
        self.memory.blocked.insert(name.to_owned(), state);
        Flow::Background
    }

    /// The image, if it is there; otherwise a pull is under way or the container is blocked.
    async fn image(
        &mut self,
        name: &str,
        attempt: u32,
        reference: &str,
        policy: Option<&str>,
    ) -> Option<ImageInfo> {
        let slot = (name.to_owned(), attempt, reference.to_owned());
        if let Some(info) = self.memory.images.get(&slot) {
            return Some(info.clone());
        }
        let found = match self.shared.runtime.image_status(reference).await {
            Ok(found) => found,
            Err(RuntimeError::Invalid(_)) => {
                let text = format!(
                    "Failed to apply default image tag {reference:?}: couldn't parse image name {reference:?}: \
                     invalid reference format"
                );
                return self.no_image(name, "InspectFailed", "InvalidImageName", text);
            }
            Err(error) => {
                let text = format!("Failed to inspect image {reference:?}: {error}");
                return self.no_image(name, "InspectFailed", "ImageInspectError", text);
            }
        };
        match image_step(reference, policy, found.is_some()) {
            ImageStep::Use => {
                let text = format!("Container image {reference:?} already present on machine");
                self.tell(name, EventType::Normal, "Pulled", &text);
                found
            }
            ImageStep::Refuse => {
                let reason = "ErrImageNeverPull";
                self.no_image(name, reason, reason, never_pull(reference))
            }
            ImageStep::Pull => {
                let credentials = self.pull_credentials(name, reference).await;
                self.pull(name, attempt, reference.to_owned(), credentials);
                None
            }
        }
    }

    /// The container waits for an image that cannot be had.
    fn no_image(&mut self, name: &str, event: &str, reason: &str, text: String) -> Option<ImageInfo> {
        self.tell(name, EventType::Warning, event, &text);
        self.tell(name, EventType::Warning, "Failed", &format!("Error: {reason}"));
        let failures = self.memory.blocked.get(name).map_or(0, |b| b.failures);
        let state = blocked(reason, text, failures, self.shared.clock.now());
        self.memory.blocked.insert(name.to_owned(), state);
        None
    }

    /// Ids of the images that the container mounts, by volume, once all of them are there.
    async fn volume_images(
        &mut self,
        container: &core::Container,
        attempt: u32,
    ) -> Option<BTreeMap<String, String>> {
        let mut ids = BTreeMap::new();
        let volumes = crate::observed::spec(&self.pod).volumes.clone().unwrap_or_default();
        for volume in volumes {
            let used = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
            let Some(source) = volume.image.filter(|_| used) else { continue };
            let reference = source.reference.unwrap_or_default();
            let image =
                self.image(&container.name, attempt, &reference, source.pull_policy.as_deref()).await?;
            ids.insert(volume.name, image.id);
        }
        Some(ids)
    }

    /// What the pod's pull secrets hold for an image. Missing secrets are told: the pull may do without.
    async fn pull_credentials(&self, name: &str, reference: &str) -> Vec<Credential> {
        let secrets = crate::observed::spec(&self.pod).image_pull_secrets.iter().flatten();
        let wanted: Vec<&str> = secrets.map(|secret| secret.name.as_str()).collect();
        let (false, Some(held)) = (wanted.is_empty(), &self.memory.held) else { return Vec::new() };
        let sources = match self.shared.references.read(held).await {
            Ok(sources) => sources,
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "cannot read pull secrets");
                return Vec::new();
            }
        };
        let found: Vec<_> =
            wanted.iter().map(|name| sources.secrets.get(*name).and_then(Option::as_ref)).collect();
        let missing: Vec<_> =
            wanted.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(n, _)| *n).collect();
        if !missing.is_empty() {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.tell(name, EventType::Warning, "FailedToRetrieveImagePullSecret", &text);
        }
        credentials_for(reference, &found.into_iter().flatten().collect::<Vec<_>>())
    }

    fn pull(&mut self, name: &str, attempt: u32, reference: String, credentials: Vec<Credential>) {
        self.tell(name, EventType::Normal, "Pulling", &format!("Pulling image {reference:?}"));
        let failures = self.memory.blocked.get(name).map_or(0, |b| b.failures);
        let waiting = Blocked {
            reason: "ContainerCreating".into(),
            message: String::new(),
            since: self.shared.clock.now(),
            retry_at: None,
            failures,
        };
        self.memory.blocked.insert(name.to_owned(), waiting);
        let (shared, pod, wake) = (self.shared.clone(), self.pod.clone(), self.wake.clone());
        let container = name.to_owned();
        client::spawn(async move {
            let clock = &shared.clock;
            let began = clock.monotonic();
            let (sender, progress) = watch::channel(PullProgress::default());
            let mut pull = shared.runtime.pull_image(&reference, credentials, sender);
            let result = loop {
                tokio::select! {
                    biased;
                    result = &mut pull => break result,
                    () = clock.sleep(PROGRESS_EVERY) => {
                        let text = progress_text(&reference, &progress.borrow());
                        tracing::info!(container, "{text}");
                        shared.events.container(&pod, &container, EventType::Normal, "Pulling", &text);
                    }
                }
            };
            let took = clock.monotonic().saturating_sub(began);
            drop(pull);
            // The worker may have ended meanwhile.
            drop(wake.send(Wake::Pulled { container, attempt, reference, took, result: Box::new(result) }));
        });
    }

    async fn configure(
        &mut self,
        container: &core::Container,
        attempt: u32,
        streak: u32,
        image: &ImageInfo,
        volume_images: &BTreeMap<String, String>,
    ) -> Result<ContainerConfig, String> {
        let shared = self.shared.clone();
        let held = self.memory.held.as_ref().ok_or("the pod's sources are not read yet")?;
        let sources = shared.references.read(held).await?;
        tokio::select! {
            biased;
            () = shared.services.synced() => {}
            // A static pod must run without an API server.
            () = std::future::ready(()), if self.mirror.is_some() => {}
            () = shared.clock.sleep(FIRST_READ) => {
                return Err("services have not yet been read at least once, cannot construct envvars".into());
            }
        }
        let in_namespace = |namespace: &str| {
            let list = shared.services.in_namespace(namespace);
            list.into_iter().map(|c| (c.key.name.clone(), c.object.clone())).collect()
        };
        let services = services_for(&self.pod, in_namespace);
        let fields = self.field_context();
        let dir = self.dir();
        let inputs = EnvInputs {
            pod: &self.pod,
            container,
            sources: &sources,
            services: &services,
            fields: &fields,
            pod_dir: &dir,
        };
        let env = environment(&inputs)?;
        self.write_pod_files().map_err(|e| e.to_string())?;
        write_container_files(&dir, &container.name, attempt).map_err(|e| e.to_string())?;
        container_config(ConfigInputs {
            pod: &self.pod,
            container,
            attempt,
            streak,
            image,
            volume_images,
            env,
            pod_dir: &dir,
            node_memory_bytes: shared.facts.memory_bytes,
        })
    }

    pub(super) fn field_context(&self) -> FieldContext {
        FieldContext {
            node_name: self.shared.facts.node_name.clone(),
            node_ips: self.shared.facts.node_ips.clone(),
            pod_ips: self.shared.network.addresses(&self.uid),
            node_cpu_milli: self.shared.facts.cpu_milli,
            node_memory_bytes: self.shared.facts.memory_bytes,
        }
    }
}
