//! projected volumes: several sources in one folder.

use k8s_openapi::api::core::v1 as core;

use super::{
    DEFAULT_MODE, Payload, PayloadFile, VolumeInputs, config_map, downward_api, mode, secret, trust_bundle,
};

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
            let bytes = token.as_bytes().to_vec();
            payload.insert(s.path.clone(), PayloadFile { bytes, mode: private_mode(inputs.pod, default) });
        } else if let Some(s) = &part.cluster_trust_bundle {
            let bytes = trust_bundle::file(s, &inputs.sources.trust_bundles)?;
            payload.insert(s.path.clone(), PayloadFile { bytes, mode: default });
        } else if let Some(s) = &part.pod_certificate {
            let made = inputs.certificates.get(volume, index)?;
            let both = format!("{}{}", made.key, made.chain);
            let files = [
                (&s.credential_bundle_path, &both),
                (&s.key_path, &made.key),
                (&s.certificate_chain_path, &made.chain),
            ];
            for (path, text) in files {
                let Some(path) = path.as_ref().filter(|path| !path.is_empty()) else { continue };
                let bytes = text.clone().into_bytes();
                payload.insert(path.clone(), PayloadFile { bytes, mode: private_mode(inputs.pod, default) });
            }
        } else {
            return Err("this kind of projection is not supported by the node".into());
        }
    }
    Ok(payload)
}

/// Tokens and keys are readable by their owner alone, unless the pod shares them through its fsGroup. Files belong to
/// root: a pod that runs as somebody else can read them only if the mode stays open.
fn private_mode(pod: &core::Pod, default: u32) -> u32 {
    if super::fs_group(pod).is_some() {
        return 0o640;
    }
    let root_only =
        crate::observed::spec(pod).security_context.as_ref().and_then(|c| c.run_as_user) == Some(0);
    if root_only { 0o600 } else { default }
}
