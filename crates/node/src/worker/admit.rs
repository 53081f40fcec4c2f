//! Whether the node takes the pod, and the changes of its size that it asks for.

use client::EventType;

use super::{Flow, PodWorker};
use crate::admission::Supply;
use crate::pod_actions::{is_finished, is_terminating};
use crate::ports::{Resources, RuntimeError};
use crate::resize;

impl PodWorker {
    /// Takes a new pod or fails it; takes up a resize or says why not.
    pub(super) fn admit(&mut self) {
        let observed = self.observed();
        if is_terminating(&self.pod, &observed) || is_finished(&self.pod, &observed) {
            self.memory.resize_pending = None;
            return;
        }
        if !self.memory.admitted {
            // One that has begun was taken by an earlier agent.
            let begun = !self.record.sandboxes.is_empty()
                || self.pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
            self.memory.wanted = resize::wanted(&self.pod);
            let amounts = if begun { resize::promised(&self.pod) } else { self.memory.wanted.clone() };
            resize::allocate(&mut self.pod, &amounts);
            self.memory.allocated = Some(amounts);
            self.memory.admitted = true;
            let shared = self.shared.clone();
            if begun {
                shared.book.adopt(&self.uid, &self.pod);
            } else if let Err(failure) =
                shared.book.admit(&self.uid, &self.pod, &shared.facts, &self.supply())
            {
                shared.events.pod(&self.pod, EventType::Warning, &failure.reason, &failure.message);
                self.memory.failure = Some(failure);
                return;
            }
        }
        self.resize();
    }

    /// Pressure keeps no static pod away: the machine's owner put it there.
    fn supply(&self) -> Supply {
        let supply = self.shared.supply();
        let pressures = if self.mirror.is_some() { Vec::new() } else { supply.pressures };
        Supply { pressures, ..supply }
    }

    fn resize(&mut self) {
        if self.memory.allocated.as_ref() == Some(&self.memory.wanted) {
            self.memory.resize_pending = None;
            return;
        }
        let mut larger = self.pod.clone();
        resize::allocate(&mut larger, &self.memory.wanted);
        match self.shared.book.resize(&self.uid, &larger, &self.shared.supply()) {
            Ok(()) => {
                self.pod = larger;
                self.memory.allocated = Some(self.memory.wanted.clone());
                (self.memory.resize_pending, self.memory.resize_error) = (None, None);
                self.shared.events.pod(&self.pod, EventType::Normal, "ResizeStarted", "Pod resize started");
            }
            Err(refusal) => {
                let (reason, message) = refusal.parts();
                let pending = Some((reason.to_owned(), message.to_owned()));
                if self.memory.resize_pending != pending {
                    let event = format!("Resize{reason}");
                    self.shared.events.pod(&self.pod, EventType::Warning, &event, message);
                    self.memory.resize_pending = pending;
                }
            }
        }
    }

    pub(super) async fn resize_container(&mut self, id: &str, name: &str, resources: Resources) -> Flow {
        let result = self.shared.runtime.update_container(id, resources).await;
        self.resized(&format!("container {name}"), result)
    }

    pub(super) async fn resize_sandbox(&mut self, id: &str, resources: Resources) -> Flow {
        let result = self.shared.runtime.update_sandbox(id, resources).await;
        self.resized("the pod", result)
    }

    fn resized(&mut self, what: &str, result: Result<(), RuntimeError>) -> Flow {
        match result {
            Ok(()) => {
                self.memory.resize_error = None;
                Flow::Done
            }
            // It has just ended.
            Err(RuntimeError::NotFound) => Flow::Done,
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "cannot resize {what}");
                self.memory.resize_error = Some(format!("cannot resize {what}: {error}"));
                self.retry();
                // The rest of the pod goes on.
                Flow::Background
            }
        }
    }
}
