//! Pod addresses: leased from one CIDR, each lease a small file named after its address.
//!
//! ```text
//!   Pool (memory, pure)  ◀── open: read, check ──  state_dir/leases/10.244.0.7  ("<pod id>\n")
//!        └── lease / release ──▶ write beside, rename / unlink
//! ```
//!
//! Invariants: an address has at most one holder and a pod at most one address; the network address, the first
//! address (the node's gateway) and the last one are never leased; a freed address comes back only after every
//! other free one has been tried, so that old connections and DNS answers cannot reach a stranger at once.
//! Leases need not outlive a reboot (the pods do not either), so nothing is synced.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::address::{Family, Network, number, range};

/// Why an address could not be leased.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// Every address is held.
    #[error("no free pod address in {0}/{1}")]
    Exhausted(IpAddr, u8),
    /// The CIDR has no room for pods.
    #[error("pod CIDR {0}/{1} is too small: a gateway and one pod need four addresses")]
    TooSmall(IpAddr, u8),
    /// A lease file could not be read or written.
    #[error("lease file {path}")]
    File { path: PathBuf, source: std::io::Error },
}

/// Which address belongs to whom: pure bookkeeping.
#[derive(Debug)]
struct Pool {
    family: Family,
    first: u128,
    last: u128,
    /// the address leased last; the search goes on after it
    cursor: u128,
    by_address: BTreeMap<u128, String>,
    by_pod: HashMap<String, u128>,
}

impl Pool {
    fn new(cidr: Network) -> Option<Self> {
        let family = Family::of(cidr.0);
        if cidr.1 > family.width() - 2 {
            return None;
        }
        let (base, end) = range(cidr);
        let (first, last) = (base + 2, end - 1);
        let (by_address, by_pod) = (BTreeMap::new(), HashMap::new());
        Some(Self { family, first, last, cursor: last, by_address, by_pod })
    }

    fn contains(&self, address: u128) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// Records a lease found on disk; false if it contradicts what is known.
    fn adopt(&mut self, address: u128, pod: &str) -> bool {
        if !self.contains(address) || pod.is_empty() || self.by_pod.contains_key(pod) {
            return false;
        }
        if self.by_address.contains_key(&address) {
            return false;
        }
        self.by_address.insert(address, pod.to_owned());
        self.by_pod.insert(pod.to_owned(), address);
        true
    }

    /// The next free address after the cursor, round and round.
    fn next_free(&self) -> Option<u128> {
        let start = if self.cursor >= self.last { self.first } else { self.cursor + 1 };
        (start..=self.last).chain(self.first..start).find(|a| !self.by_address.contains_key(a))
    }

    fn release(&mut self, pod: &str) -> Option<u128> {
        let address = self.by_pod.remove(pod)?;
        self.by_address.remove(&address);
        Some(address)
    }
}

/// The leases of one node.
#[derive(Debug)]
pub struct Ipam {
    dir: PathBuf,
    cidr: Network,
    pool: Pool,
}

impl Ipam {
    /// Reads the leases under `dir` (made if it is missing). Files that make no sense (another CIDR, empty, a
    /// second address of one pod) are removed with a warning: they cannot belong to a living pod of this node.
    pub fn open(dir: &Path, cidr: Network) -> Result<Self, IpamError> {
        let pool = Pool::new(cidr).ok_or(IpamError::TooSmall(cidr.0, cidr.1))?;
        let mut ipam = Self { dir: dir.to_owned(), cidr, pool };
        fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
        let mut newest: Option<(SystemTime, u128)> = None;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| failed(dir, e))? {
            let entry = entry.map_err(|e| failed(dir, e))?;
            let address = entry.file_name().to_str().and_then(|n| n.parse::<IpAddr>().ok());
            let address = address.filter(|a| Family::of(*a) == ipam.pool.family);
            found.push((address.map(number), entry.path()));
        }
        found.sort();
        for (address, path) in found {
            let holder = fs::read_to_string(&path).map_err(|e| failed(&path, e))?;
            match address {
                Some(a) if ipam.pool.adopt(a, holder.trim()) => {
                    let written =
                        fs::metadata(&path).and_then(|m| m.modified()).map_err(|e| failed(&path, e))?;
                    newest = newest.max(Some((written, a)));
                }
                _ => {
                    tracing::warn!(file = %path.display(), "removing a pod address lease that makes no sense");
                    fs::remove_file(&path).map_err(|e| failed(&path, e))?;
                }
            }
        }
        if let Some((_, address)) = newest {
            ipam.pool.cursor = address;
        }
        Ok(ipam)
    }

    /// The pod's address: the one it has, or a free one, recorded on disk before it is returned.
    pub fn lease(&mut self, pod: &str) -> Result<IpAddr, IpamError> {
        if let Some(address) = self.address(pod) {
            return Ok(address);
        }
        let address = self.pool.next_free().ok_or(IpamError::Exhausted(self.cidr.0, self.cidr.1))?;
        let name = self.pool.family.address(address).to_string();
        let path = self.dir.join(&name);
        let beside = self.dir.join(format!(".{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&beside)?;
            writeln!(file, "{pod}")?;
            fs::rename(&beside, &path)
        };
        write().map_err(|e| failed(&path, e))?;
        self.pool.cursor = address;
        let adopted = self.pool.adopt(address, pod);
        debug_assert!(adopted, "a free address and a pod without one");
        Ok(self.pool.family.address(address))
    }

    /// Gives the pod's address back; a pod without one is fine.
    pub fn release(&mut self, pod: &str) -> Result<(), IpamError> {
        if let Some(address) = self.address(pod) {
            let path = self.dir.join(address.to_string());
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, e)),
                _ => {}
            }
        }
        self.pool.release(pod);
        Ok(())
    }

    /// The address the pod holds.
    pub fn address(&self, pod: &str) -> Option<IpAddr> {
        self.pool.by_pod.get(pod).map(|a| self.pool.family.address(*a))
    }

    /// Every pod that holds an address.
    pub fn pods(&self) -> Vec<String> {
        self.pool.by_address.values().cloned().collect()
    }
}

fn failed(path: &Path, source: std::io::Error) -> IpamError {
    IpamError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use proptest::prelude::*;

    const CIDR: Network = (IpAddr::V4(Ipv4Addr::new(10, 244, 3, 0)), 29);
    const CIDR_6: Network = (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 3, 0, 0, 0, 0)), 64);

    fn last_byte(address: IpAddr) -> u8 {
        crate::address::octets(address).last().copied().unwrap()
    }

    #[test]
    fn addresses_of_a_large_network_are_leased_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("10.244.3.3"), "stranger").unwrap();
        let mut ipam = Ipam::open(dir.path(), CIDR_6).unwrap();
        let got: Vec<_> = (0..3).map(|i| ipam.lease(&format!("p{i}")).unwrap().to_string()).collect();
        assert_eq!(got, ["fd00:10:244:3::2", "fd00:10:244:3::3", "fd00:10:244:3::4"]);
        ipam.release("p0").unwrap();
        let mut again = Ipam::open(dir.path(), CIDR_6).unwrap();
        assert_eq!(again.pods(), ["p1", "p2"]);
        assert_eq!(again.lease("p3").unwrap().to_string(), "fd00:10:244:3::5");
    }

    #[test]
    fn first_last_and_gateway_are_kept_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), CIDR).unwrap();
        let got: Vec<_> = (0..5).map(|i| last_byte(ipam.lease(&format!("p{i}")).unwrap())).collect();
        assert_eq!(got, [2, 3, 4, 5, 6]);
        assert!(matches!(ipam.lease("p5"), Err(IpamError::Exhausted(..))));
    }

    #[test]
    fn a_freed_address_is_not_reused_at_once_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), CIDR).unwrap();
        let a = ipam.lease("a").unwrap();
        ipam.release("a").unwrap();
        let b = ipam.lease("b").unwrap();
        assert_ne!(a, b);
        let mut again = Ipam::open(dir.path(), CIDR).unwrap();
        assert_eq!(again.address("b"), Some(b));
        let c = again.lease("c").unwrap();
        assert!(c != a && c != b, "{a} {b} {c}");
    }

    #[test]
    fn nonsense_on_disk_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("10.244.3.3", "a"), ("10.244.3.4", "a"), ("10.0.0.1", "b"), ("10.244.3.5", ""), (".x.new", "c")]
        {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let ipam = Ipam::open(dir.path(), CIDR).unwrap();
        assert_eq!(ipam.pods(), ["a"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_cidr_without_room_is_refused() {
        assert!(matches!(Ipam::open(Path::new("/nonexistent"), (CIDR.0, 31)), Err(IpamError::TooSmall(..))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Any interleaving of leases, releases and restarts keeps one address per pod and one pod per address,
        /// and what is on disk is what is in memory.
        #[test]
        fn leases_stay_unique(steps in proptest::collection::vec((0u8..4, 0u8..9), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let mut ipam = Ipam::open(dir.path(), CIDR).unwrap();
            let mut model: BTreeMap<String, IpAddr> = BTreeMap::new();
            for (what, who) in steps {
                let pod = format!("p{who}");
                match what {
                    0 | 1 => match ipam.lease(&pod) {
                        Ok(address) => {
                            prop_assert!(model.get(&pod).is_none_or(|a| *a == address));
                            prop_assert!(!model.iter().any(|(p, a)| *p != pod && *a == address));
                            prop_assert!((2..=6).contains(&last_byte(address)));
                            model.insert(pod, address);
                        }
                        Err(IpamError::Exhausted(..)) => prop_assert_eq!(model.len(), 5),
                        Err(e) => return Err(TestCaseError::fail(e.to_string())),
                    },
                    2 => {
                        ipam.release(&pod).unwrap();
                        model.remove(&pod);
                    }
                    _ => ipam = Ipam::open(dir.path(), CIDR).unwrap(),
                }
                prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), model.len());
                for (pod, address) in &model {
                    prop_assert_eq!(ipam.address(pod), Some(*address));
                }
            }
        }
    }
}
