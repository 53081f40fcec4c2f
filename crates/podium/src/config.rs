//! Where things are: folders, names and addresses, all derived from the data directory and the flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::registries::RegistriesFile;

/// DNS suffix of the cluster.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";
/// Addresses of Services.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// First address of the service range: Service `default/kubernetes`.
pub(crate) const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Tenth address of the service range, by Kubernetes' custom: Service `kube-system/kube-dns`.
pub(crate) const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Folder in the data directory while a restore is under way.
pub(crate) const UNFINISHED: &str = "restoring";
/// Pod addresses of all nodes; the API server gives each node a network out of it.
pub(crate) const CLUSTER_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
/// Pod addresses of the control plane's own node.
pub(crate) const POD_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 24);

/// First address of the pod range: the node's own address in the pod network, where DNS listens.
pub(crate) fn gateway_address() -> Ipv4Addr {
    let [a, b, c, d] = POD_CIDR.0.octets();
    Ipv4Addr::new(a, b, c, d + 1)
}

/// All paths of one cluster on one machine.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) data: PathBuf,
    /// Six hex digits from the data directory's path: several clusters can live on one machine.
    pub(crate) instance: String,
}

impl Paths {
    /// Makes the data directory (mode 0700) if need be.
    ///
    /// # Errors
    /// When the directory can't be made or resolved.
    pub(crate) fn create(data_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot make data directory {}", data_dir.display()))?;
        restrict(data_dir)?;
        anyhow::ensure!(
            !data_dir.join(UNFINISHED).exists(),
            "{} holds an unfinished restore: empty the directory and restore again",
            data_dir.display()
        );
        Self::existing(data_dir)
    }

    /// Paths of a data directory that is there.
    ///
    /// # Errors
    /// When it isn't.
    pub(crate) fn existing(data_dir: &Path) -> Result<Self> {
        let data =
            data_dir.canonicalize().with_context(|| format!("no data directory {}", data_dir.display()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, data.as_os_str().as_encoded_bytes());
        let instance = digest.as_ref().iter().take(3).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { data, instance })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    /// Images and container layers.
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("runtime")
    }

    /// What the machine's owner says of image registries.
    pub(crate) fn registries(&self) -> RegistriesFile {
        RegistriesFile(self.data.join("registries.yaml"))
    }

    /// Pod volumes.
    pub(crate) fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Seccomp profiles that pods name (`localhostProfile`).
    pub(crate) fn seccomp(&self) -> PathBuf {
        self.data.join("seccomp")
    }

    /// Manifests of static pods, unless a flag says where they are.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.data.join("manifests")
    }

    /// Address leases and the old values of changed sysctls.
    pub(crate) fn network(&self) -> PathBuf {
        self.data.join("network")
    }

    /// Sockets and container state: lost at a reboot, like the containers.
    pub(crate) fn run(&self) -> PathBuf {
        PathBuf::from("/run/podium").join(&self.instance)
    }

    pub(crate) fn cgroup_parent(&self) -> String {
        format!("podium-{}", self.instance)
    }

    /// Configuration of the container engine.
    pub(crate) fn engine(&self) -> Result<runtime::EngineConfig> {
        Ok(runtime::EngineConfig {
            data_dir: self.images(),
            run_dir: self.run(),
            cgroup_parent: self.cgroup_parent(),
            exe: std::env::current_exe().context("cannot find the running program's file")?,
        })
    }
}

/// Takes away group's and others' access to a folder or file.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Address of the machine towards others: the source address of its default route, else the gateway address.
///
/// Connecting a UDP socket sends nothing; the kernel only picks the route.
pub(crate) fn node_address() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 254), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match probe() {
        Ok(address) if !address.is_loopback() && !address.is_unspecified() => address,
        Ok(_) | Err(_) => IpAddr::V4(gateway_address()),
    }
}

/// Address of this machine on its way to a server: the source address of the route.
///
/// # Errors
/// When there is no route.
pub(crate) fn address_towards(server: SocketAddr) -> Result<IpAddr> {
    let probe = || -> std::io::Result<IpAddr> {
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        Ok(socket.local_addr()?.ip())
    };
    probe().with_context(|| format!("no route to {server}"))
}

/// A Node name that was asked for (RFC 1123 subdomain).
///
/// # Errors
/// When the API would refuse it.
pub(crate) fn node_name(name: String) -> Result<String> {
    let label = |part: &str| {
        let inner = part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        inner && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    anyhow::ensure!(
        name.len() <= 253 && name.split('.').all(label),
        "{name:?} is no node name: use lower case letters, digits, '-' and '.'"
    );
    Ok(name)
}

/// Host name in the form of a Node name (RFC 1123 subdomain).
///
/// # Errors
/// When nothing usable is left of the host name.
pub(crate) fn default_node_name() -> Result<String> {
    let raw = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let name: String =
        raw.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    anyhow::ensure!(!name.is_empty(), "the host name {raw:?} makes no node name: give --node-name");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::node_name;

    #[test]
    fn node_names_are_those_that_the_api_accepts() {
        for good in ["n1", "a-b.c-1", "10"] {
            assert_eq!(node_name(good.into()).unwrap(), good);
        }
        for bad in ["", "Bad", "a b", "-a", "a-", "a..b", "ä", &"a".repeat(254)] {
            assert!(node_name(bad.into()).is_err(), "{bad:?}");
        }
    }
}
