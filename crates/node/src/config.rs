//! Settings of a node agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::eviction::Rules;
use crate::image_gc::Policy;

/// What the agent must be told; the rest it finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub node_name: String,
    /// Volumes and managed files of the pods, one folder per pod uid.
    pub root_dir: PathBuf,
    /// Container logs, one folder per pod.
    pub log_root: PathBuf,
    /// Its own addresses, one a family, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Name servers of pods with dnsPolicy ClusterFirst.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub max_pods: u32,
    /// `spec.podCIDRs` of the Node; none leaves them to somebody else.
    pub pod_cidrs: Vec<String>,
    /// Extra labels of the Node.
    pub labels: Vec<(String, String)>,
    /// Process limit of a pod.
    pub pod_pids_limit: Option<i64>,
    /// How long the node's lease is good; it is renewed after a quarter of that.
    pub lease_duration: Duration,
    /// When the node shows pressure and evicts pods.
    pub eviction: Rules,
    /// Where the runtime keeps images and what containers write.
    pub image_dir: PathBuf,
    /// When unused images go.
    pub image_gc: Policy,
    /// Folder of the files of static pods, made if need be; `None` is no static pods.
    pub manifests: Option<PathBuf>,
    /// Name servers and search domains of the host.
    pub host_resolv_conf: PathBuf,
}

impl NodeConfig {
    /// Defaults for everything that has one.
    pub fn new(node_name: &str, root_dir: PathBuf, log_root: PathBuf, node_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            image_dir: root_dir.clone(),
            root_dir,
            log_root,
            node_ips,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            max_pods: 110,
            pod_cidrs: Vec::new(),
            eviction: Rules::usual(),
            image_gc: Policy::default(),
            labels: Vec::new(),
            pod_pids_limit: None,
            lease_duration: Duration::from_secs(40),
            manifests: None,
            host_resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}
