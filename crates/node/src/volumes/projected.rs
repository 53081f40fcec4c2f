//! projected volumes: several sources in one folder.

use k8s_openapi::api::core::v1 as core;

use super::{DEFAULT_MODE, Payload, PayloadFile, VolumeInputs, config_map, downward_api, mode, secret};

pub(super) fn payload(
    source: &core::ProjectedVolumeSource,
    volume: &str,
    inputs: &VolumeInputs<'_>,
) -> Result<Payload, String> {
    let default = mode(source.default_mode, DEFAULT_MODE);
    let mut payload = Payload::new();
    for (index, part) in source.sources.iter().flatten().enumerate() {
        if let Some(s) = &part.config_map {
            let files = config_map::project(&s.name, s.items.as_ref(), s.optional, default, inputs.sources)?;
            payload.extend(files);
        } else if let Some(s) = &part.secret {
            let files = secret::project(&s.name, s.items.as_ref(), s.optional, default, inputs.sources)?;
            payload.extend(files);
        } else if let Some(s) = &part.downward_api {
            let items = s.items.as_deref().unwrap_or_default();
            payload.extend(downward_api::project(items, default, inputs.pod, inputs.fields)?);
        } else if let Some(s) = &part.service_account_token {
            let token =
                inputs.tokens.get(volume, index).ok_or("the service account token is not there yet")?;
            // A token is readable by its owner alone, unless the pod shares it through its fsGroup.
            let private =
                if super::fs_group(inputs.pod).is_some() { 0o640 } else { token_mode(inputs.pod, default) };
            let file = PayloadFile { bytes: token.as_bytes().to_vec(), mode: private };
            payload.insert(s.path.clone(), file);
        } else {
            return Err("this kind of projection is not supported by the node".into());
        }
    }
    Ok(payload)
}

/// Files belong to root: a pod that runs as somebody else can read its token only if the mode stays open.
fn token_mode(pod: &core::Pod, default: u32) -> u32 {
    let root_only =
        crate::observed::spec(pod).security_context.as_ref().and_then(|c| c.run_as_user) == Some(0);
    if root_only { 0o600 } else { default }
}
