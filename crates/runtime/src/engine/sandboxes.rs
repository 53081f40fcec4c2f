//! Sandboxes: making, stopping, removing, adopting, and what is left when a shim is gone.

use std::sync::Arc;

use super::{Engine, Sandbox, blocking, new_id, remove_dir};
use crate::cgroup::Hierarchies;
use crate::error::{During as _, RuntimeError, log_failure};
use crate::logs::now_nanos;
use crate::shim;
use crate::spec::{
    ContainerRecord, ContainerState, Resources, RuntimeEventKind, SandboxPlan, SandboxSpec, SandboxStatus,
    Usage,
};
use crate::wire::{self, Reply, Request};

impl Engine {
    /// Makes a sandbox; its network namespace has only the loopback interface.
    ///
    /// # Errors
    /// `Invalid` for what can't be done on any machine, `Other` when this one refuses.
    pub async fn run_sandbox(self: &Arc<Self>, spec: SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let id = new_id()?;
        let plan = SandboxPlan {
            dir: self.config.sandboxes().join(&id),
            cgroup_name: SandboxPlan::name_cgroup(&id, &spec),
            id,
            spec,
            cgroup_parent: self.config.cgroup_parent.clone(),
            created_at_nanos: now_nanos(),
        };
        let engine = Arc::clone(self);
        let made = plan.clone();
        blocking(move || {
            std::fs::create_dir_all(&made.dir).during(|| format!("cannot make {}", made.dir.display()))?;
            let spawned = engine.spawn_shim(&made);
            if spawned.is_err() {
                clear(&made);
            }
            spawned
        })
        .await?;
        let status = plan.status(true);
        let slice = plan.slice();
        self.add(plan).await;
        self.weigh(slice).await;
        Ok(status)
    }

    /// Changes the limits of a sandbox as a whole.
    ///
    /// # Errors
    /// `NotFound` for an unknown sandbox, `Other` when the kernel refuses a value.
    pub async fn limit_sandbox(&self, id: &str, resources: Resources) -> Result<(), RuntimeError> {
        self.ask(id, Request::Limit { id: None, resources: resources.clone() }).await?;
        let slice = {
            let mut state = self.state();
            let Some(sandbox) = state.sandboxes.get_mut(id) else { return Ok(()) };
            sandbox.plan.spec.cgroup = resources;
            sandbox.plan.slice()
        };
        self.weigh(slice).await;
        Ok(())
    }

    /// Changes the limits of a container.
    ///
    /// # Errors
    /// `NotFound` for an unknown container, `Other` when the kernel refuses a value.
    pub async fn limit_container(&self, id: &str, resources: Resources) -> Result<(), RuntimeError> {
        let sandbox_id = self.record(id)?.status.sandbox_id;
        let request = Request::Limit { id: Some(id.to_owned()), resources: resources.clone() };
        self.ask(&sandbox_id, request).await?;
        // A shim's news may still be on its way.
        if let Some(record) = self.state().containers.get_mut(id) {
            record.status.resources = resources;
        }
        Ok(())
    }

    /// What the sandboxes use now.
    ///
    /// # Errors
    /// When the control groups can't be found.
    pub async fn usage(&self) -> Result<Vec<Usage>, RuntimeError> {
        let plans: Vec<SandboxPlan> = self.state().sandboxes.values().map(|s| s.plan.clone()).collect();
        blocking(move || {
            let hierarchies = Hierarchies::detect()?;
            let usage = |plan: SandboxPlan| {
                let group = hierarchies.group(&plan.cgroup());
                Usage {
                    sandbox_id: plan.id,
                    pod_uid: plan.spec.pod_uid,
                    memory_bytes: group.memory_used(),
                    processes: group.processes().len() as u64,
                }
            };
            Ok(plans.into_iter().map(usage).collect())
        })
        .await
    }

    /// Gives a slice the weight of its sandboxes together, so that many small sandboxes are not as one.
    async fn weigh(&self, slice: Option<String>) {
        let Some(slice) = slice else { return };
        let shares: u64 = {
            let state = self.state();
            let members = state.sandboxes.values().filter(|s| s.plan.slice().as_ref() == Some(&slice));
            members.filter_map(|s| s.plan.spec.cgroup.cpu_shares).sum()
        };
        let weight = Resources { cpu_shares: Some(shares.max(2)), ..Resources::default() };
        let weighed = blocking(move || {
            let group = Hierarchies::detect()?.group(&slice);
            if group.exists() { group.limit(&weight).map(drop) } else { Ok(()) }
        });
        log_failure(weighed.await, "cannot weigh a slice of sandboxes");
    }

    /// Takes a sandbox into the books, watching its shim if that answers.
    async fn add(self: &Arc<Self>, plan: SandboxPlan) {
        let ready = !plan.dir.join("stopped").exists();
        let id = plan.id.clone();
        let sandbox = Sandbox { plan, ready, alive: true, leaving: false };
        let socket = sandbox.socket();
        self.state().sandboxes.insert(id.clone(), sandbox);
        match blocking(move || wire::ask(&socket, &Request::Watch)).await {
            Ok((stream, Reply::Snapshot(records), _)) => {
                for record in records {
                    self.learn(record);
                }
                self.watch_shim(id, stream);
            }
            Ok(_) | Err(_) => self.lost(&id).await,
        }
    }

    /// Finds the sandboxes of an earlier agent.
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        for entry in std::fs::read_dir(self.config.sandboxes())? {
            let dir = entry?.path();
            match read_plan(&dir) {
                Some(plan) => self.add(plan).await,
                // The shim never came up: whatever it left is in its folder.
                None => {
                    let id =
                        dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    let parent = self.config.cgroup_parent.clone();
                    let plan = SandboxPlan { id, dir, cgroup_parent: parent, ..SandboxPlan::default() };
                    blocking(move || {
                        clear(&plan);
                        Ok(())
                    })
                    .await?;
                }
            }
        }
        self.remove_strays()
    }

    /// Deletes files of containers that nobody knows: left by a crash or a reboot.
    fn remove_strays(&self) -> Result<(), RuntimeError> {
        for entry in std::fs::read_dir(self.config.containers())? {
            let entry = entry?;
            let known = self.state().containers.contains_key(&*entry.file_name().to_string_lossy());
            if !known {
                remove_dir(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Kills everything in a sandbox. Idempotent; the network namespace stays until it is removed.
    ///
    /// # Errors
    /// When the shim fails at it.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let (known, alive) = {
            let state = self.state();
            let sandbox = state.sandboxes.get(id);
            (sandbox.is_some(), sandbox.is_some_and(|sandbox| sandbox.alive))
        };
        if !known {
            return Ok(());
        }
        if alive {
            self.ask(id, Request::StopSandbox).await?;
        }
        self.wait_until(|state| {
            let mut here = state.containers.values().filter(|record| record.status.sandbox_id == id);
            here.all(|record| !shim::may_live(record)) || state.sandboxes.get(id).is_none_or(|s| !s.alive)
        })
        .await;
        let was_ready = {
            let mut state = self.state();
            state.sandboxes.get_mut(id).is_some_and(|sandbox| std::mem::replace(&mut sandbox.ready, false))
        };
        if was_ready {
            self.publish(id, None, RuntimeEventKind::SandboxStopped);
        }
        Ok(())
    }

    /// Kills and forgets a sandbox and its containers, and deletes their files. Idempotent.
    ///
    /// # Errors
    /// When something of it can't be removed; it stays listed then.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let (plan, alive) = {
            let mut state = self.state();
            let Some(sandbox) = state.sandboxes.get_mut(id) else { return Ok(()) };
            sandbox.leaving = true;
            (sandbox.plan.clone(), sandbox.alive)
        };
        let slice = plan.slice();
        if alive {
            log_failure(self.ask(id, Request::Shutdown).await, "a shim did not end in good order");
        }
        let containers: Vec<String> = {
            let state = self.state();
            let here = state.containers.iter().filter(|(_, record)| record.status.sandbox_id == id);
            here.map(|(container, _)| container.clone()).collect()
        };
        let dirs: Vec<_> = containers.iter().map(|id| self.config.containers().join(id)).collect();
        blocking(move || {
            clear(&plan);
            dirs.iter().try_for_each(|dir| remove_dir(dir))
        })
        .await?;
        {
            let mut state = self.state();
            state.sandboxes.remove(id);
            for container in containers {
                state.remove(&container);
            }
        }
        self.bump();
        self.weigh(slice).await;
        Ok(())
    }

    /// A shim is gone: its containers are killed, and those whose end nobody saw are declared ended.
    pub(super) async fn lost(&self, id: &str) {
        let plan = {
            let mut state = self.state();
            let Some(sandbox) = state.sandboxes.get_mut(id) else { return };
            sandbox.alive = false;
            sandbox.plan.clone()
        };
        let ended = blocking(move || Ok(bury(&plan))).await.unwrap_or_default();
        for record in ended {
            self.learn(record);
        }
        let was_ready = {
            let mut state = self.state();
            state.sandboxes.get_mut(id).is_some_and(|sandbox| std::mem::replace(&mut sandbox.ready, false))
        };
        self.bump();
        if was_ready {
            self.publish(id, None, RuntimeEventKind::SandboxStopped);
        }
    }

    /// Removes what a container of a dead sandbox has left.
    pub(super) async fn forget_dead(&self, sandbox_id: &str, id: &str) -> Result<(), RuntimeError> {
        let plan = self.state().sandboxes.get(sandbox_id).map(|sandbox| sandbox.plan.clone());
        let Some(plan) = plan else { return Ok(()) };
        let id = id.to_owned();
        blocking(move || {
            Hierarchies::detect()?.group(&plan.cgroup()).child(&id).remove()?;
            log_failure(std::fs::remove_file(shim::record_path(&plan.dir, &id)), "cannot delete a record");
            Ok(())
        })
        .await
    }
}

fn read_plan(dir: &std::path::Path) -> Option<SandboxPlan> {
    serde_json::from_slice(&std::fs::read(dir.join("sandbox.json")).ok()?).ok()
}

/// Kills what a dead shim left behind; returns all records, those without a seen end marked as such.
fn bury(plan: &SandboxPlan) -> Vec<ContainerRecord> {
    if let Ok(hierarchies) = Hierarchies::detect() {
        let group = hierarchies.group(&plan.cgroup());
        group.kill();
        if !group.wait_empty(super::KILL_LIMIT) {
            tracing::error!(sandbox = plan.id, "processes without a shim do not die");
        }
    }
    let mut records = Vec::new();
    let Ok(entries) = std::fs::read_dir(plan.dir.join("containers")) else { return records };
    for path in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        let Some(mut record) =
            std::fs::read(&path).ok().and_then(|json| serde_json::from_slice::<ContainerRecord>(&json).ok())
        else {
            tracing::error!(path = %path.display(), "unreadable container record");
            continue;
        };
        if shim::may_live(&record) {
            let status = &mut record.status;
            status.state = ContainerState::Exited;
            status.pid = 0;
            status.exit_code = 137;
            status.reason = "ContainerStatusUnknown".into();
            status.message = "the shim that watched the container is gone: nobody saw how it ended".into();
            status.finished_at_nanos = now_nanos();
            log_failure(shim::store(&path, &record), "cannot write a container's record");
        }
        records.push(record);
    }
    records
}

/// Removes every trace of a sandbox but its containers' files.
pub(crate) fn clear(plan: &SandboxPlan) {
    if let Ok(hierarchies) = Hierarchies::detect() {
        for path in [plan.cgroup(), plan.shim_cgroup()] {
            hierarchies.group(&path).kill();
        }
        shim::give_back(plan);
        log_failure(hierarchies.group(&plan.shim_cgroup()).remove(), "cannot remove a shim's control group");
    }
    log_failure(remove_dir(&plan.dir), "cannot delete a sandbox's folder");
}
