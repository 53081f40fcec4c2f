//! A container's environment.

use std::collections::BTreeMap;
use std::path::Path;

use client::Kind;
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;

use crate::fields::{FieldContext, field, resource};
use crate::observed::spec;
use crate::references::Sources;
use crate::volumes::volume_path;

mod file;

use file::EnvFileError;

/// The part of a Service that environment variables need.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct ServiceView {
    pub spec: ServiceSpecView,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpecView {
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub ports: Vec<ServicePortView>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct ServicePortView {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

impl Kind for ServiceView {
    fn gvr() -> api::GroupVersionResource {
        api::GroupVersionResource::new("", "v1", "services")
    }

    fn api_version_kind() -> (String, &'static str) {
        ("v1".into(), "Service")
    }
}

/// Variables of one service, in the form of the Docker links that Kubernetes kept.
pub fn service_variables(name: &str, service: &ServiceView) -> Vec<(String, String)> {
    let ip = &service.spec.cluster_ip;
    if ip.is_empty() || ip == "None" {
        return Vec::new();
    }
    let Some(first) = service.spec.ports.first() else { return Vec::new() };
    let prefix = variable(name);
    let mut list = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in service.spec.ports.iter().filter(|p| !p.name.is_empty()) {
        list.push((format!("{prefix}_SERVICE_PORT_{}", variable(&port.name)), port.port.to_string()));
    }
    let protocol =
        |p: &ServicePortView| if p.protocol.is_empty() { "TCP".to_owned() } else { p.protocol.clone() };
    let url = |p: &ServicePortView| format!("{}://{}:{}", protocol(p).to_lowercase(), host(ip), p.port);
    list.push((format!("{prefix}_PORT"), url(first)));
    for port in &service.spec.ports {
        let base = format!("{prefix}_PORT_{}_{}", port.port, protocol(port));
        list.push((base.clone(), url(port)));
        list.push((format!("{base}_PROTO"), protocol(port).to_lowercase()));
        list.push((format!("{base}_PORT"), port.port.to_string()));
        list.push((format!("{base}_ADDR"), ip.clone()));
    }
    list
}

fn host(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// Everything an environment is made of.
pub struct EnvInputs<'a> {
    pub pod: &'a core::Pod,
    pub container: &'a core::Container,
    pub sources: &'a Sources,
    /// Services of the pod's namespace (unless links are off) and `default/kubernetes`, by name.
    pub services: &'a [(String, ServiceView)],
    pub fields: &'a FieldContext,
    /// The pod's own folder, with its volumes.
    pub pod_dir: &'a Path,
}

/// The variables in order of definition. Service variables come first and are overridden by the pod's own.
///
/// # Errors
/// What is missing, as in the message of CreateContainerConfigError.
pub fn environment(inputs: &EnvInputs<'_>) -> Result<Vec<(String, String)>, String> {
    let services = inputs.services.iter().flat_map(|(name, service)| service_variables(name, service));
    let services: BTreeMap<String, String> = services.collect();
    let mut result: Vec<(String, String)> = Vec::new();
    for from in inputs.container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (name, value) in env_from(inputs, from)? {
            put(&mut result, format!("{prefix}{name}"), value);
        }
    }
    for variable in inputs.container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match value_from(inputs, source)? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => {
                let known = |name: &str| {
                    let own = result.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
                    own.or_else(|| services.get(name).cloned())
                };
                expand(value.as_deref().unwrap_or_default(), known)
            }
        };
        put(&mut result, variable.name.clone(), value);
    }
    for (name, value) in services {
        if !result.iter().any(|(n, _)| *n == name) {
            result.push((name, value));
        }
    }
    Ok(result)
}

fn put(list: &mut Vec<(String, String)>, name: String, value: String) {
    match list.iter_mut().find(|(n, _)| *n == name) {
        Some(slot) => slot.1 = value,
        None => list.push((name, value)),
    }
}

fn namespaced(inputs: &EnvInputs<'_>, name: &str) -> String {
    format!("{}/{name}", inputs.pod.metadata.namespace.as_deref().unwrap_or_default())
}

fn env_from(inputs: &EnvInputs<'_>, from: &core::EnvFromSource) -> Result<Vec<(String, String)>, String> {
    if let Some(source) = &from.config_map_ref {
        return match inputs.sources.config_maps.get(&source.name) {
            Some(Some(map)) => Ok(map.data.clone().unwrap_or_default().into_iter().collect()),
            _ if source.optional == Some(true) => Ok(Vec::new()),
            _ => Err(format!("configmap {:?} not found", source.name)),
        };
    }
    if let Some(source) = &from.secret_ref {
        return match inputs.sources.secrets.get(&source.name) {
            Some(Some(secret)) => {
                let data = secret.data.iter().flatten();
                Ok(data.map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned())).collect())
            }
            _ if source.optional == Some(true) => Ok(Vec::new()),
            _ => Err(format!("secret {:?} not found", source.name)),
        };
    }
    Ok(Vec::new())
}

/// `None` leaves the variable out (an optional source is missing).
fn value_from(inputs: &EnvInputs<'_>, source: &core::EnvVarSource) -> Result<Option<String>, String> {
    if let Some(r) = &source.field_ref {
        return field(inputs.pod, &r.field_path, inputs.fields).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return resource(inputs.pod, Some(inputs.container), r, inputs.fields).map(Some);
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(Some(map)) = inputs.sources.config_maps.get(&r.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", r.name)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {}", r.key, namespaced(inputs, &r.name))),
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(Some(secret)) = inputs.sources.secrets.get(&r.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", r.name)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {}", r.key, namespaced(inputs, &r.name))),
        };
    }
    if let Some(r) = &source.file_key_ref {
        return file_key(inputs, r);
    }
    Ok(None)
}

/// A value from a file that another container has written (KEP-3721).
fn file_key(inputs: &EnvInputs<'_>, r: &core::FileKeySelector) -> Result<Option<String>, String> {
    let volumes = spec(inputs.pod).volumes.as_deref().unwrap_or_default();
    let volume = volumes.iter().find(|volume| volume.name == r.volume_name);
    let volume = volume
        .ok_or_else(|| format!("cannot find the volume {:?} referenced by FileKeyRef", r.volume_name))?;
    let optional = r.optional == Some(true);
    match file::read(&volume_path(inputs.pod_dir, volume), &r.path) {
        Ok(mut values) => match values.remove(&r.key) {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => Err(format!("environment variable key {:?} not found in file {:?}", r.key, r.path)),
        },
        Err(EnvFileError::Missing) if optional => Ok(None),
        Err(error) => Err(format!("couldn't parse env file {:?}: {error}", r.path)),
    }
}

/// Replaces `$(NAME)` of known names; `$$` is one `$`; unknown names stay as they are.
pub fn expand(text: &str, known: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match known(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// Services whose variables a pod gets: those of its namespace unless `enableServiceLinks` is false, and always
/// the API server's (`default/kubernetes`).
pub fn services_for(
    pod: &core::Pod,
    in_namespace: impl Fn(&str) -> Vec<(String, ServiceView)>,
) -> Vec<(String, ServiceView)> {
    let mut list: Vec<_> =
        in_namespace("default").into_iter().filter(|(name, _)| name == "kubernetes").collect();
    if spec(pod).enable_service_links.unwrap_or(true) {
        let own = in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        list.extend(
            own.into_iter().filter(|(name, _)| name != "kubernetes" || list.is_empty()).collect::<Vec<_>>(),
        );
    }
    list
}

#[cfg(test)]
mod tests;
