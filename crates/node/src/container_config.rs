//! From a pod's container to the runtime's container: command, user, security, resources, mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use crate::env::expand;
use crate::observed::{IMAGE_LABEL, STREAK_LABEL, spec};
use crate::ports::{ContainerConfig, ImageInfo, Mount, Propagation, Seccomp};
use crate::resources::container_resources;
use crate::volumes::{sub_path, volume_path};

/// Everything a container is made from.
pub struct ConfigInputs<'a> {
    pub pod: &'a core::Pod,
    pub container: &'a core::Container,
    pub attempt: u32,
    pub streak: u32,
    pub image: &'a ImageInfo,
    /// Images of image volumes, by volume.
    pub volume_images: &'a BTreeMap<String, String>,
    pub env: Vec<(String, String)>,
    pub pod_dir: &'a Path,
    pub node_memory_bytes: i64,
}

/// Builds the configuration; effects are only the mount points below the pod's own folder.
///
/// # Errors
/// The message of CreateContainerConfigError.
pub fn container_config(inputs: ConfigInputs<'_>) -> Result<ContainerConfig, String> {
    let (pod, container) = (inputs.pod, inputs.container);
    let mounts = mounts(&inputs)?;
    let known = |name: &str| inputs.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand_all = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, known)).collect()
    };
    let own = container.security_context.clone().unwrap_or_default();
    let of_pod = spec(pod).security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(of_pod.run_as_user);
    check_non_root(&inputs, user, own.run_as_non_root.or(of_pod.run_as_non_root))?;
    let strict_groups = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
    if own.proc_mount.as_deref() == Some("Unmasked") {
        return Err("procMount Unmasked needs user namespaces, which the node does not support".into());
    }
    let mut groups = of_pod.supplemental_groups.unwrap_or_default();
    groups.extend(of_pod.fs_group);
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    let profile = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    // A privileged container is confined by nothing.
    let seccomp = if privileged { Seccomp::Unconfined } else { seccomp(profile)? };
    let lifecycle_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: inputs.attempt,
        image: inputs.image.id.clone(),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        user,
        group: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups: groups,
        strict_groups,
        process_namespace_of: None,
        mounts,
        resources: container_resources(container, spec(pod), inputs.node_memory_bytes),
        privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        allow_privilege_escalation: privileged || own.allow_privilege_escalation.unwrap_or(true),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        log_path: PathBuf::from(format!("{}/{}.log", container.name, inputs.attempt)),
        labels: container_labels(pod, container, inputs.streak),
        stop_signal: lifecycle_signal,
        seccomp,
        env: inputs.env,
    })
}

/// What a profile asks for; no profile is no filter.
///
/// # Errors
/// A kind of profile that nobody knows: running without it would be less than what was asked for.
fn seccomp(profile: Option<&core::SeccompProfile>) -> Result<Seccomp, String> {
    match profile.map(|p| p.type_.as_str()) {
        None | Some("" | "Unconfined") => Ok(Seccomp::Unconfined),
        Some("RuntimeDefault") => Ok(Seccomp::RuntimeDefault),
        Some("Localhost") => {
            Ok(Seccomp::Localhost(profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default()))
        }
        Some(other) => Err(format!("seccomp profiles of type {other} are not supported by the node")),
    }
}

fn container_labels(pod: &core::Pod, container: &core::Container, streak: u32) -> BTreeMap<String, String> {
    let mut labels = pod_labels(pod);
    labels.insert("io.kubernetes.container.name".into(), container.name.clone());
    labels.insert(STREAK_LABEL.into(), streak.to_string());
    labels.insert(IMAGE_LABEL.into(), container.image.clone().unwrap_or_default());
    labels
}

/// Labels that name a pod.
pub fn pod_labels(pod: &core::Pod) -> BTreeMap<String, String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    BTreeMap::from([
        ("io.kubernetes.pod.name".into(), text(&pod.metadata.name)),
        ("io.kubernetes.pod.namespace".into(), text(&pod.metadata.namespace)),
        ("io.kubernetes.pod.uid".into(), text(&pod.metadata.uid)),
    ])
}

fn check_non_root(inputs: &ConfigInputs<'_>, user: Option<i64>, wanted: Option<bool>) -> Result<(), String> {
    if wanted != Some(true) {
        return Ok(());
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &inputs.pod.metadata;
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid),
        inputs.container.name
    );
    let image_user = inputs.image.user.split(':').next().unwrap_or_default();
    match (user, image_user.parse::<i64>()) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if image_user.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {place}"
        )),
    }
}

/// Folder of a container's own files on the host.
pub fn container_dir(pod_dir: &Path, container: &str) -> PathBuf {
    pod_dir.join("containers").join(container)
}

/// File that a container's termination message is read from.
pub fn termination_file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    container_dir(pod_dir, container).join(format!("termination-log.{attempt}"))
}

fn mounts(inputs: &ConfigInputs<'_>) -> Result<Vec<Mount>, String> {
    let mut list = Vec::new();
    for (index, wanted) in inputs.container.volume_mounts.iter().flatten().enumerate() {
        list.push(volume_mount(inputs, index, wanted)?);
    }
    let managed =
        [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")];
    for (file, path) in managed {
        if !list.iter().any(|m: &Mount| m.container_path == path) {
            list.push(bind(inputs.pod_dir.join(file), path));
        }
    }
    let path = inputs.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !path.is_empty() {
        let file = termination_file(inputs.pod_dir, &inputs.container.name, inputs.attempt);
        list.push(bind(file, path));
    }
    Ok(list)
}

fn bind(host_path: PathBuf, container_path: &str) -> Mount {
    Mount { host_path, container_path: container_path.into(), ..Mount::default() }
}

fn volume_mount(
    inputs: &ConfigInputs<'_>,
    index: usize,
    wanted: &core::VolumeMount,
) -> Result<Mount, String> {
    let volumes = spec(inputs.pod).volumes.as_deref().unwrap_or_default();
    let volume = volumes.iter().find(|v| v.name == wanted.name);
    let volume = volume.ok_or_else(|| format!("volume {:?} not found", wanted.name))?;
    let mut host_path = volume_path(inputs.pod_dir, volume);
    let known = |name: &str| inputs.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expanded = wanted.sub_path_expr.as_deref().map(|expr| expand(expr, known));
    let sub = expanded.as_deref().or(wanted.sub_path.as_deref()).filter(|s| !s.is_empty());
    if volume.image.is_some() {
        let image = inputs.volume_images.get(&wanted.name);
        let image = image.ok_or_else(|| format!("the image of volume {:?} is not there", wanted.name))?;
        return Ok(Mount {
            image: Some(image.clone()),
            sub_path: sub.unwrap_or_default().to_owned(),
            container_path: wanted.mount_path.clone(),
            readonly: true,
            ..Mount::default()
        });
    }
    if let Some(sub) = sub {
        let target =
            inputs.pod_dir.join("volume-subpaths").join(&inputs.container.name).join(index.to_string());
        sub_path::bind(&host_path, sub, &target)?;
        host_path = target;
    }
    // Sources of these kinds belong to the agent: containers may not change them.
    let projected = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    Ok(Mount {
        host_path,
        image: None,
        sub_path: String::new(),
        container_path: wanted.mount_path.clone(),
        readonly: projected || wanted.read_only.unwrap_or(false),
        propagation: match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    })
}

/// Makes the files that are mounted into a container.
///
/// # Errors
/// The file system's.
pub fn write_container_files(pod_dir: &Path, container: &str, attempt: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let file = termination_file(pod_dir, container, attempt);
    std::fs::create_dir_all(container_dir(pod_dir, container))?;
    std::fs::write(&file, b"")?;
    // Whatever user the container runs as may leave its message.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(pod: serde_json::Value, container: serde_json::Value) -> Result<Seccomp, String> {
        let mut main = json!({"name": "main", "image": "web:1"});
        main["securityContext"] = container;
        let pod: core::Pod =
            serde_json::from_value(json!({"spec": {"securityContext": pod, "containers": [main]}})).unwrap();
        let inputs = ConfigInputs {
            pod: &pod,
            container: &spec(&pod).containers[0],
            attempt: 0,
            streak: 0,
            image: &ImageInfo::default(),
            volume_images: &BTreeMap::new(),
            env: Vec::new(),
            pod_dir: Path::new("/nowhere"),
            node_memory_bytes: 0,
        };
        container_config(inputs).map(|config| config.seccomp)
    }

    #[test]
    fn a_seccomp_profile_is_applied_or_refuses_the_container() {
        let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
        let cases = [
            (json!({}), json!({}), Ok(Seccomp::Unconfined)),
            (profile("RuntimeDefault"), json!({}), Ok(Seccomp::RuntimeDefault)),
            (profile("RuntimeDefault"), profile("Unconfined"), Ok(Seccomp::Unconfined)),
            (profile("Unconfined"), profile("RuntimeDefault"), Ok(Seccomp::RuntimeDefault)),
            (profile("RuntimeDefault"), json!({"privileged": true}), Ok(Seccomp::Unconfined)),
            (
                json!({}),
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "own.json"}}),
                Ok(Seccomp::Localhost("own.json".into())),
            ),
            (
                json!({}),
                profile("Other"),
                Err("seccomp profiles of type Other are not supported by the node".to_owned()),
            ),
        ];
        for (pod, container, want) in cases {
            assert_eq!(wanted(pod.clone(), container.clone()), want, "{pod} {container}");
        }
    }
}
