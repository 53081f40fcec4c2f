//! Container logs: files in CRI format, read from disk.

use std::path::{Path, PathBuf};

use api::Status;
use api::stream::LogOptions;
use k8s_openapi::api::core::v1 as core;

use crate::observed::{ephemeral_containers, find_container, init_containers, spec};
use crate::ports::{ContainerState, ContainerStatus};

pub mod format;
pub mod read;

pub use read::{last_lines, read_start};

/// Folder of a pod's logs: `<namespace>_<name>_<uid>`.
pub fn log_dir(root: &Path, pod: &core::Pod) -> PathBuf {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    root.join(format!("{}_{}_{}", text(&meta.namespace), text(&meta.name), text(&meta.uid)))
}

/// Removes a log with its rotated files: `0.log`, `0.log.1` and so on.
///
/// # Errors
/// The file system's, but for files that are not there.
pub fn remove(path: &Path) -> std::io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let own = |other: &std::ffi::OsStr| {
        let rest = other.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
    };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.filter_map(Result::ok).filter(|entry| own(&entry.file_name())) {
        std::fs::remove_file(entry.path())?;
    }
    Ok(())
}

/// The container that a request means.
///
/// # Errors
/// BadRequest when it names none of several, or one that the pod does not have.
pub fn pick_container(pod: &core::Pod, wanted: &str) -> Result<String, Status> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !wanted.is_empty() {
        if find_container(pod, wanted).is_some() {
            return Ok(wanted.to_owned());
        }
        return Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")));
    }
    let annotation =
        pod.metadata.annotations.as_ref().and_then(|a| a.get("kubectl.kubernetes.io/default-container"));
    if let Some(default) = annotation.filter(|n| find_container(pod, n).is_some()) {
        return Ok(default.clone());
    }
    let containers = &spec(pod).containers;
    if let [only] = containers.as_slice() {
        return Ok(only.name.clone());
    }
    let join = |list: Vec<&str>| list.join(" ");
    let mut text = format!(
        "a container name must be specified for pod {name}, choose one of: [{}]",
        join(containers.iter().map(|c| c.name.as_str()).collect())
    );
    let init = init_containers(pod);
    if !init.is_empty() {
        text += &format!(
            " or one of the init containers: [{}]",
            join(init.iter().map(|c| c.name.as_str()).collect())
        );
    }
    let ephemeral = ephemeral_containers(pod);
    if !ephemeral.is_empty() {
        let names = ephemeral.iter().map(|c| c.name.as_str()).collect();
        text += &format!(" or one of the ephemeral containers: [{}]", join(names));
    }
    Err(Status::bad_request(text))
}

/// The attempt whose log a request means.
///
/// # Errors
/// BadRequest when the container has not started, or has no earlier attempt.
pub fn pick_attempt(
    pod: &core::Pod,
    container: &str,
    containers: &[ContainerStatus],
    options: &LogOptions,
) -> Result<ContainerStatus, Status> {
    let mut attempts: Vec<&ContainerStatus> = containers.iter().filter(|c| c.name == container).collect();
    attempts.retain(|c| c.state != ContainerState::Created);
    attempts.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at_nanos)));
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let (waiting, reason) = waiting_reason(pod, container);
    if options.previous {
        // While a container waits to be restarted, its last attempt is the previous one.
        let waits = waiting && attempts.first().is_some_and(|c| c.state == ContainerState::Exited);
        let found = attempts.get(usize::from(!waits)).copied().cloned();
        return found.ok_or_else(|| {
            Status::bad_request(format!(
                "previous terminated container {container:?} in pod {name:?} not found"
            ))
        });
    }
    attempts.first().copied().cloned().ok_or_else(|| {
        let why = match reason.as_str() {
            "ErrImagePull" => "image can't be pulled".to_owned(),
            "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
            other => other.to_owned(),
        };
        Status::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {why}"))
    })
}

fn waiting_reason(pod: &core::Pod, container: &str) -> (bool, String) {
    let lists = pod.status.iter().flat_map(|s| {
        [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses]
            .into_iter()
            .flatten()
    });
    let found = lists.flatten().find(|s| s.name == container);
    let waiting = found.and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref());
    let reason = waiting.and_then(|w| w.reason.clone()).unwrap_or_else(|| "ContainerCreating".into());
    (waiting.is_some(), reason)
}

#[cfg(test)]
mod tests;
