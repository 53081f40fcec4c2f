//! The agent's handle on its spawner.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::time::Duration;

use super::Engine;
use crate::error::{During as _, RuntimeError};
use crate::spec::SandboxPlan;
use crate::wire::{self, Reply, SpawnRequest};

/// Making namespaces can wait for the kernel under load.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Spawner {
    control: UnixStream,
    child: Child,
}

impl Spawner {
    pub(super) fn start(exe: &Path) -> Result<Self, RuntimeError> {
        let (control, theirs) = UnixStream::pair()?;
        let child = Command::new(exe)
            .arg(crate::spawner::COMMAND)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .during(|| format!("cannot start {}", exe.display()))?;
        Ok(Self { control, child })
    }

    fn request(&self, plan: &SandboxPlan) -> Result<UnixStream, RuntimeError> {
        let (answer, theirs) = UnixStream::pair()?;
        wire::send(&self.control, &SpawnRequest::Shim(Box::new(plan.clone())), &[theirs.as_fd()])?;
        answer.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(answer)
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // It ends by itself when the socket closes; killing makes sure that waiting for it is short.
        crate::error::log_failure(self.child.kill(), "cannot end the spawner");
        crate::error::log_failure(self.child.wait(), "cannot wait for the spawner");
    }
}

impl Engine {
    /// Has a shim started, by a new spawner if the last one is gone. Blocks.
    pub(super) fn spawn_shim(&self, plan: &SandboxPlan) -> Result<(), RuntimeError> {
        for last_try in [false, true] {
            let answer = {
                let mut spawner = self.spawner.lock().unwrap_or_else(PoisonError::into_inner);
                if spawner.is_none() {
                    *spawner = Some(Spawner::start(&self.config.exe)?);
                }
                let asked = spawner.as_ref().map(|spawner| spawner.request(plan));
                match asked {
                    Some(Ok(answer)) => answer,
                    Some(Err(error)) if last_try => return Err(error),
                    Some(Err(_)) | None => {
                        *spawner = None;
                        continue;
                    }
                }
            };
            match wire::receive::<Reply>(&answer)? {
                Some((Reply::Done, _)) => return Ok(()),
                Some((Reply::Failed(error), _)) => return Err(error),
                Some(_) => return Err(RuntimeError::Other("the shim answered nonsense".into())),
                None if last_try => return Err(RuntimeError::Other("the sandbox's shim died".into())),
                // The request may have been lost with a spawner that was killed.
                None => {
                    super::sandboxes::clear(plan);
                    std::fs::create_dir_all(&plan.dir)?;
                    let mut spawner = self.spawner.lock().unwrap_or_else(PoisonError::into_inner);
                    *spawner = None;
                }
            }
        }
        Err(RuntimeError::Other("cannot start a shim".into()))
    }
}
