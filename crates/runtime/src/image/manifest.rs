//! The documents of an image (OCI image specification 1.1: index, manifest, configuration), as far as they are needed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ImageInfo, reference};
use crate::error::RuntimeError;

/// Manifests and configurations are small.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

#[derive(Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    config: Option<ProcessConfig>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ProcessConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Descriptor {
    /// Whether it names a list of manifests, one a platform.
    pub(super) fn is_index(&self) -> bool {
        self.media_type.contains("index") || self.media_type.contains("list")
    }
}

impl Index {
    /// The manifest for this machine, else the first that is for no known platform.
    pub(super) fn ours(&self) -> Result<&Descriptor, RuntimeError> {
        let ours = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        };
        let unmarked = |d: &&Descriptor| d.platform.is_none();
        let found = self.manifests.iter().find(ours).or_else(|| self.manifests.iter().find(unmarked));
        found.ok_or_else(|| {
            RuntimeError::Invalid(format!("no manifest for linux/{} in the image's index", architecture()))
        })
    }
}

impl ConfigFile {
    /// Digests of the layers' plain tars, the lowest first; as many as the manifest has layers.
    pub(super) fn diff_ids(&self, layers: usize) -> Result<&[String], RuntimeError> {
        let ids = &self.rootfs.diff_ids;
        if ids.len() != layers {
            let text = "the configuration and the manifest disagree on layers";
            return Err(RuntimeError::Invalid(text.into()));
        }
        match ids.iter().find(|id| !reference::is_digest(id)) {
            Some(id) => Err(RuntimeError::Invalid(format!("{id:?} is no supported digest"))),
            None => Ok(ids),
        }
    }

    /// What containers need of it. `id`: the digest of the configuration's bytes.
    pub(super) fn describe(self, id: String, size_bytes: u64) -> ImageInfo {
        let process = self.config.unwrap_or_default();
        let env = process.env.unwrap_or_default();
        let pair = |text: &String| {
            text.split_once('=').map_or((text.clone(), String::new()), |(n, v)| (n.to_owned(), v.to_owned()))
        };
        ImageInfo {
            id,
            size_bytes,
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            env: env.iter().map(pair).collect(),
            working_dir: process.working_dir.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            stop_signal: process.stop_signal.filter(|signal| !signal.is_empty()),
            ..ImageInfo::default()
        }
    }
}

/// This machine's architecture in Go's spelling, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_the_manifest_of_this_machine() {
        let entry = |digest: &str, platform: serde_json::Value| serde_json::json!({"digest": digest, "platform": platform});
        let index = |entries: Vec<serde_json::Value>| -> Index {
            serde_json::from_value(serde_json::json!({ "manifests": entries })).unwrap()
        };
        let other = entry("other", serde_json::json!({"os": "linux", "architecture": "mips"}));
        let ours = entry("ours", serde_json::json!({"os": "linux", "architecture": architecture()}));
        let unmarked = entry("unmarked", serde_json::Value::Null);
        assert_eq!(index(vec![other.clone(), unmarked.clone(), ours]).ours().unwrap().digest, "ours");
        assert_eq!(index(vec![other.clone(), unmarked]).ours().unwrap().digest, "unmarked");
        assert!(index(vec![other]).ours().is_err());
    }
}
