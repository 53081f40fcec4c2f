//! The network of a node: pod addresses and links, the service proxy, cluster DNS.
//!
//! ```text
//!   node agent ──attach/detach──▶ PodNet ──rtnetlink──▶ veth pairs, routes         (pod_net, ipam)
//!   Services, EndpointSlices ──▶ proxy: desired_rules ──nfnetlink──▶ one nft table (proxy, nft)
//!   NetworkPolicies, Namespaces, Pods ──▶ policy: of_node ──▶ the same table           (policy)
//!   Services, EndpointSlices, Pods ──▶ dns: answer(query, zone) ──▶ UDP and TCP    (dns)
//! ```
//!
//! Invariants:
//! - Nothing durable here but leases and old kernel settings in small files; rules and zone are recomputed.
//! - Only interfaces, routes and the one nftables table that carry the instance's name are written.
//! - No external program is run.

mod address;
pub mod dns;
pub mod foreign;
pub mod ipam;
pub mod model;
mod netlink;
mod nft;
pub mod pod_net;
pub mod policy;
pub mod proxy;
pub mod routes;
mod sysctl;

pub use address::{Family, Network, contains, gateway_of, parse_cidr};
pub use netlink::NetlinkError;
pub use pod_net::{PodMtu, PodNet, PodNetConfig, PodNetError, down, recorded_networks};
