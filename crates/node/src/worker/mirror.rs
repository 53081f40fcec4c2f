//! A static pod's side of the API: its mirror pod and the status that it shows.

use api::{ObjectKey, RequestOptions, Status};
use k8s_openapi::api::core::v1 as core;

use super::report::send_status;
use super::{PodWorker, pods, revision};
use crate::static_pods::mirror::{Step, object, step};
use crate::static_pods::mirrored;

/// What the API has under a static pod's name.
#[derive(Default)]
pub(super) struct Mirror {
    found: Option<core::Pod>,
    /// The mirror has shown our status.
    shown: bool,
    /// It was said that an ordinary pod is in the way.
    complained: bool,
}

impl PodWorker {
    /// Takes what the cache has, which may lag behind our own writes.
    pub(super) fn take_mirror(&mut self, pod: core::Pod) {
        let Some(mirror) = &self.mirror else { return };
        let newer = mirror.found.as_ref().is_none_or(|known| revision(&pod) >= revision(known));
        if !newer {
            return;
        }
        self.found(Some(pod));
    }

    pub(super) fn mirror_gone(&mut self, uid: &str) {
        if let Some(mirror) = &mut self.mirror
            && mirror.found.as_ref().is_some_and(|known| known.metadata.uid.as_deref() == Some(uid))
        {
            mirror.found = None;
        }
    }

    /// Sees to it that the mirror is there and shows the pod's status.
    pub(super) async fn report_mirror(&mut self) {
        for _ in 0..4 {
            let status = self.status(self.shared.clock.now());
            self.pod.status = Some(status.clone());
            match self.mirror_step(&status).await {
                Ok(true) => {
                    self.memory.failures = 0;
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(pod = %self.uid, %error, "cannot keep the mirror of the static pod");
                    break;
                }
            }
        }
        self.retry();
    }

    /// One step; true when the mirror is as it should be.
    async fn mirror_step(&mut self, status: &core::PodStatus) -> Result<bool, Status> {
        let found = self.mirror.as_ref().and_then(|mirror| mirror.found.clone());
        match (step(&self.uid, found.as_ref()), found) {
            (Step::Keep, Some(found)) => {
                let answer = send_status(&self.shared.client, &self.key(), &found, status).await;
                match answer {
                    Ok(None) => {}
                    Ok(Some(pod)) => self.found(Some(pod)),
                    Err(status) if status.is_conflict() || status.is_not_found() => {
                        self.look_for_mirror().await?;
                        return Ok(false);
                    }
                    Err(status) => return Err(status),
                }
                self.mirror.get_or_insert_default().shown = true;
                Ok(true)
            }
            (Step::Delete, Some(found)) => {
                self.delete_mirror(&found).await?;
                self.found(None);
                Ok(false)
            }
            (Step::Blocked, _) => {
                let mirror = self.mirror.get_or_insert_default();
                if !std::mem::replace(&mut mirror.complained, true) {
                    tracing::warn!(pod = ?self.key(), "a pod of the API has the name of a static pod");
                }
                // The cache tells when it goes.
                Ok(true)
            }
            _ => {
                self.create_mirror().await?;
                Ok(false)
            }
        }
    }

    fn found(&mut self, pod: Option<core::Pod>) {
        let mirror = self.mirror.get_or_insert_default();
        if let Some(pod) = pod.as_ref().filter(|pod| !mirror.shown && mirrored(pod) == Some(&self.uid))
            && pod.status.as_ref().is_some_and(|status| status.start_time.is_some())
        {
            // An earlier agent reported it: times and restarts go on from there.
            self.pod.status.clone_from(&pod.status);
        }
        mirror.found = pod;
    }

    async fn create_mirror(&mut self) -> Result<(), Status> {
        let client = &self.shared.client;
        let node: core::Node = client.get(&ObjectKey::new("", self.shared.facts.node_name.clone())).await?;
        let namespace = self.pod.metadata.namespace.clone();
        match client.create(namespace.as_deref(), &object(&self.pod, &node)).await {
            Ok(made) => {
                self.found(Some(made));
                Ok(())
            }
            Err(status) if status.is_already_exists() => self.look_for_mirror().await,
            Err(status) => Err(status),
        }
    }

    async fn look_for_mirror(&mut self) -> Result<(), Status> {
        match self.shared.client.get::<core::Pod>(&self.key()).await {
            Ok(pod) => self.found(Some(pod)),
            Err(status) if status.is_not_found() => self.found(None),
            Err(status) => return Err(status),
        }
        Ok(())
    }

    async fn delete_mirror(&self, mirror: &core::Pod) -> Result<(), Status> {
        let options = RequestOptions {
            grace_period_seconds: Some(0),
            precondition_uid: mirror.metadata.uid.clone(),
            ..RequestOptions::default()
        };
        match self.shared.client.delete(&pods(), &self.key(), options).await {
            Err(status) if !status.is_not_found() && !status.is_conflict() => Err(status),
            _ => Ok(()),
        }
    }

    /// The static pod has ended: so does its mirror. True once it is gone.
    pub(super) async fn drop_mirror(&mut self) -> bool {
        let found = self.mirror.as_ref().and_then(|mirror| mirror.found.clone());
        let Some(found) = found.filter(|pod| mirrored(pod) == Some(&self.uid)) else { return true };
        match self.delete_mirror(&found).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "cannot delete the mirror of the static pod");
                self.retry();
                false
            }
        }
    }
}
