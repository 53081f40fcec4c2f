//! Lifecycle hooks: what a pod wants done right after a container's start and right before its stop.
//!
//! ```text
//!   start ─▶ postStart ─▶ probes begin, the container counts as started      (fails: killed, restart policy)
//!   stop  ─▶ preStop, within the grace period ─▶ stop signal with what is left of it
//! ```
//!
//! A hook runs at least once for a stop; a hook that was under way when the agent stopped is not run again for a start.

use std::time::Duration;

use client::Clock;
use k8s_openapi::api::core::v1 as core;

use crate::ports::Runtime;
use crate::prober::{ProbeTarget, http_code};

/// Time that a process always has after its preStop hook, however much of the grace period the hook took.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// A postStart hook has no limit of its own; a year stands for that.
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 3600);

/// A container's postStart hook, until it has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostStart {
    Running,
    /// The container is to be killed.
    Failed,
}

/// Runs a postStart hook to its end.
///
/// # Errors
/// Why it failed.
pub async fn post_start(
    handler: &core::LifecycleHandler,
    target: &ProbeTarget,
    runtime: &dyn Runtime,
    clock: &dyn Clock,
) -> Result<(), String> {
    run(handler, target, runtime, clock, UNLIMITED).await
}

/// Runs a preStop hook, if there is one and time for it; returns what is left of the grace period, and why it failed.
pub async fn pre_stop(
    target: &ProbeTarget,
    grace: Duration,
    runtime: &dyn Runtime,
    clock: &dyn Clock,
) -> (Duration, Result<(), String>) {
    let handler = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    let Some(handler) = handler.filter(|_| !grace.is_zero()) else { return (grace, Ok(())) };
    let began = clock.monotonic();
    let result = tokio::select! {
        result = run(handler, target, runtime, clock, grace) => result,
        () = clock.sleep(grace) => Err(format!("not done within the grace period of {}s", grace.as_secs())),
    };
    let spent = clock.monotonic().saturating_sub(began);
    (grace.saturating_sub(spent).max(LEAST_GRACE.min(grace)), result)
}

async fn run(
    handler: &core::LifecycleHandler,
    target: &ProbeTarget,
    runtime: &dyn Runtime,
    clock: &dyn Clock,
    limit: Duration,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let done = runtime.exec_sync(&target.container_id, command.clone(), limit).await;
        return match done {
            Ok(done) if done.exit_code == 0 => Ok(()),
            Ok(done) => Err(format!("command {command:?} exited with {}", done.exit_code)),
            Err(error) => Err(format!("command {command:?}: {error}")),
        };
    }
    if let Some(http) = &handler.http_get {
        // Any answer means that the request was delivered.
        return http_code(http, target).await.map(drop);
    }
    if let Some(sleep) = &handler.sleep {
        clock.sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("this kind of hook is not supported by the node".into())
}
