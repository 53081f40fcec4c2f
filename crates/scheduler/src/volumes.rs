//! Claims and volumes, as far as they decide where a pod can run (Kubernetes documentation, "Volume Binding Mode").
//!
//! A bound claim ties its pods to the nodes that its volume can be reached from. A claim that waits for its first consumer
//! gets a volume together with the pod's node: the volume is reserved here, the binder makes the pair of them.

use std::collections::BTreeMap;

use api::{GroupVersionResource, LabelSelector, ObjectKey, Quantity};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde::Deserialize;

use crate::node::NodeSpec;
use crate::pod::{NodeTerm, PodInfo, node_term, selector};

/// Nobody makes volumes of such a class.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// A claim.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "PersistentVolumeClaim")]
pub struct ClaimInfo {
    pub uid: String,
    /// The volume, once both name each other.
    pub bound_to: Option<String>,
    deleting: bool,
    class: String,
    size: Quantity,
    modes: Vec<String>,
    mode: String,
    labels: Option<LabelSelector>,
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "PersistentVolume")]
pub struct VolumeInfo {
    pub resource_version: String,
    /// Whom it is for: the claim, and its uid unless it is reserved by name only.
    pub claim: Option<(ObjectKey, String)>,
    free: bool,
    class: String,
    size: Quantity,
    modes: Vec<String>,
    mode: String,
    labels: BTreeMap<String, String>,
    /// Alternatives of which a node must match one; `None` when it can be reached from everywhere.
    nodes: Option<Vec<NodeTerm>>,
}

/// A class of volumes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "StorageClass")]
pub struct ClassInfo {
    waits: bool,
    provisions: bool,
}

impl From<PersistentVolumeClaim> for ClaimInfo {
    fn from(claim: PersistentVolumeClaim) -> Self {
        let spec = claim.spec.unwrap_or_default();
        let annotations = claim.metadata.annotations.unwrap_or_default();
        let requests = spec.resources.and_then(|resources| resources.requests);
        Self {
            uid: claim.metadata.uid.unwrap_or_default(),
            bound_to: spec.volume_name.filter(|_| annotations.contains_key(BIND_COMPLETED)),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            class: spec.storage_class_name.unwrap_or_default(),
            size: size(requests.as_ref()),
            modes: spec.access_modes.unwrap_or_default(),
            mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            labels: spec.selector.map(|typed| selector(Some(typed))),
        }
    }
}

impl From<PersistentVolume> for VolumeInfo {
    fn from(volume: PersistentVolume) -> Self {
        let spec = volume.spec.unwrap_or_default();
        let claim = spec.claim_ref.map(|claim| {
            let key = ObjectKey::new(claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default());
            (key, claim.uid.unwrap_or_default())
        });
        let phase = volume.status.and_then(|status| status.phase);
        let required = spec.node_affinity.and_then(|affinity| affinity.required);
        Self {
            resource_version: volume.metadata.resource_version.unwrap_or_default(),
            claim,
            free: phase.as_deref() == Some("Available") && volume.metadata.deletion_timestamp.is_none(),
            class: spec.storage_class_name.unwrap_or_default(),
            size: size(spec.capacity.as_ref()),
            modes: spec.access_modes.unwrap_or_default(),
            mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            labels: volume.metadata.labels.unwrap_or_default(),
            nodes: required.map(|required| required.node_selector_terms.into_iter().map(node_term).collect()),
        }
    }
}

impl From<StorageClass> for ClassInfo {
    fn from(class: StorageClass) -> Self {
        Self {
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisions: !class.provisioner.is_empty() && class.provisioner != NO_PROVISIONER,
        }
    }
}

fn size(
    list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> Quantity {
    list.and_then(|list| Quantity::parse(&list.get("storage")?.0).ok()).unwrap_or_default()
}

macro_rules! kinds {
    ($($info:ty: $group:literal, $api_version:literal, $resource:literal, $kind:literal;)*) => {$(
        impl client::Kind for $info {
            fn gvr() -> GroupVersionResource {
                GroupVersionResource::new($group, "v1", $resource)
            }

            fn api_version_kind() -> (String, &'static str) {
                ($api_version.into(), $kind)
            }
        }
    )*};
}

kinds! {
    ClaimInfo: "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim";
    VolumeInfo: "", "v1", "persistentvolumes", "PersistentVolume";
    ClassInfo: "storage.k8s.io", "storage.k8s.io/v1", "storageclasses", "StorageClass";
}

/// All of them, and what is reserved but not written yet.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    pub claims: BTreeMap<ObjectKey, ClaimInfo>,
    pub volumes: BTreeMap<String, VolumeInfo>,
    pub classes: BTreeMap<String, ClassInfo>,
    reserved: BTreeMap<String, ObjectKey>,
}

/// What is to be written before a pod is bound to its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The volume is the claim's.
    Reserve { volume: String, claim: ObjectKey },
    /// Somebody shall make a volume that the node can reach.
    Provision { claim: ObjectKey },
}

impl Volumes {
    /// What a pod's claims need on a node.
    ///
    /// # Errors
    /// Why they keep the pod from that node.
    pub fn steps(&self, pod: &PodInfo, node: &NodeSpec) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        let mut taken: Vec<&str> = Vec::new();
        for name in &pod.spec.claims {
            let key = ObjectKey::new(&*pod.key.namespace, &**name);
            let Some(claim) = self.claims.get(&key) else {
                return Err(format!("persistentvolumeclaim {name:?} not found"));
            };
            if claim.deleting {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if let Some(volume) = &claim.bound_to {
                let Some(volume) = self.volumes.get(volume) else {
                    let why = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
                    return Err(why.to_owned());
                };
                if !volume.reaches(node) {
                    return Err("node(s) didn't match PersistentVolume's node affinity".to_owned());
                }
                continue;
            }
            let class = self.classes.get(&claim.class);
            if !class.is_some_and(|class| class.waits) {
                return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
            }
            match self.volume_for(&key, claim, node, &taken) {
                Some(volume) => {
                    taken.push(volume);
                    steps.push(Step::Reserve { volume: volume.to_owned(), claim: key });
                }
                None if class.is_some_and(|class| class.provisions) => {
                    steps.push(Step::Provision { claim: key });
                }
                None => return Err("node(s) didn't find available persistent volumes to bind".to_owned()),
            }
        }
        Ok(steps)
    }

    /// The volume reserved for a claim, else the smallest free one that suits it, if the node reaches it.
    fn volume_for(
        &self,
        key: &ObjectKey,
        claim: &ClaimInfo,
        node: &NodeSpec,
        taken: &[&str],
    ) -> Option<&str> {
        let own = |name: &str, volume: &VolumeInfo| match &volume.claim {
            Some((owner, uid)) => owner == key && (uid.is_empty() || *uid == claim.uid),
            None => self.reserved.get(name) == Some(key),
        };
        let suits = |name: &str, volume: &VolumeInfo| {
            let free = volume.free && volume.claim.is_none() && !self.reserved.contains_key(name);
            (own(name, volume) || free) && !taken.contains(&name) && volume.suits(claim)
        };
        let all = self.volumes.iter().filter(|(name, volume)| suits(name, volume));
        let mut fitting: Vec<(&String, &VolumeInfo)> = all.collect();
        // A volume that is the claim's already leaves no choice.
        if let Some(mine) = fitting.iter().position(|(name, volume)| own(name, volume)) {
            fitting = vec![fitting[mine]];
        }
        let reached = fitting.into_iter().filter(|(_, volume)| volume.reaches(node));
        reached.min_by_key(|(_, volume)| volume.size).map(|(name, _)| name.as_str())
    }

    /// Holds what the steps reserve until it is written.
    pub fn reserve(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Reserve { volume, claim } = step {
                self.reserved.insert(volume.clone(), claim.clone());
            }
        }
    }

    /// Gives it back.
    pub fn release(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Reserve { volume, .. } = step {
                self.reserved.remove(volume);
            }
        }
    }
}

impl VolumeInfo {
    fn reaches(&self, node: &NodeSpec) -> bool {
        self.nodes.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node)))
    }

    fn suits(&self, claim: &ClaimInfo) -> bool {
        self.class == claim.class
            && self.mode == claim.mode
            && self.size >= claim.size
            && claim.modes.iter().all(|mode| self.modes.contains(mode))
            && claim.labels.as_ref().is_none_or(|labels| labels.matches(&self.labels))
    }
}
