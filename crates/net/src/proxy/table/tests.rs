use super::*;
use crate::proxy::ruleset::Protocol::{Tcp, Udp};

fn frontend(address: [u8; 4], protocol: Protocol, port: u16) -> Frontend {
    Frontend::new(Some(IpAddr::from(address)), protocol, port)
}

fn targets_at(numbers: &[u8]) -> Backend {
    let target = |n: &u8| Target { address: IpAddr::from([10, 244, 0, *n]), port: 8080 };
    Backend::to(numbers.iter().map(target).collect())
}

fn table() -> Table {
    let network = |prefix| (IpAddr::from([10, 244, 0, 0]), prefix);
    Table::new("podium-test", network(24), network(16), None)
}

/// What `apply` would send, with the bookkeeping done.
fn step(table: &mut Table, installed: &mut Installed) -> (usize, usize, StaleUdp) {
    let touched = std::mem::take(&mut table.touched);
    let delta = table.delta(installed, &touched);
    (delta.remove.len(), delta.add.len(), delta.stale)
}

#[test]
fn a_change_touches_only_what_differs() {
    let (mut table, mut installed) = (table(), Installed::default());
    let (a, f) = (ObjectKey::new("ns", "a"), frontend([10, 96, 0, 1], Tcp, 80));
    table.set_service(&a, vec![(f, targets_at(&[2, 3, 4]))]);
    // one verdict, three targets, three hairpins
    assert_eq!(step(&mut table, &mut installed), (0, 7, StaleUdp::default()));
    table.set_service(&a, vec![(f, targets_at(&[2, 3, 4]))]);
    assert!(table.touched.is_empty());
    // one replaced by another: one target and one hairpin each way
    table.set_service(&a, vec![(f, targets_at(&[2, 4, 5]))]);
    assert_eq!(step(&mut table, &mut installed), (2, 2, StaleUdp::default()));
    // one less: verdict changes, two targets go (one moves), one hairpin goes
    table.set_service(&a, vec![(f, targets_at(&[4, 5]))]);
    assert_eq!(step(&mut table, &mut installed), (4, 2, StaleUdp::default()));
    table.set_service(&a, vec![]);
    assert_eq!(step(&mut table, &mut installed), (5, 0, StaleUdp::default()));
    assert!(table.claims.is_empty() && table.by_service.is_empty() && installed.hairpin.is_empty());
}

#[test]
fn a_contested_frontend_goes_to_the_next_claimant() {
    let mut table = table();
    let (a, b, f) =
        (ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b"), frontend([203, 0, 113, 7], Tcp, 80));
    table.set_service(&b, vec![(f, targets_at(&[3]))]);
    table.set_service(&a, vec![(f, targets_at(&[2]))]);
    assert_eq!(table.desired().frontends[&f], targets_at(&[2]));
    table.set_service(&a, vec![]);
    assert_eq!(table.desired().frontends[&f], targets_at(&[3]));
}

#[test]
fn udp_flows_of_gone_targets_are_stale() {
    let (mut table, mut installed) = (table(), Installed::default());
    let (a, f) = (ObjectKey::new("ns", "a"), frontend([10, 96, 0, 1], Udp, 53));
    table.set_service(&a, vec![(f, targets_at(&[2, 3]))]);
    let (_, _, first) = step(&mut table, &mut installed);
    assert_eq!(first.new, [f].into());
    table.set_service(&a, vec![(f, targets_at(&[3]))]);
    let (_, _, stale) = step(&mut table, &mut installed);
    let flow =
        |to: &str, by: &str| conntrack::Flow { to: to.parse().unwrap(), answered_by: by.parse().unwrap() };
    assert!(is_stale(&flow("10.96.0.1:53", "10.244.0.2:8080"), &stale));
    assert!(!is_stale(&flow("10.96.0.1:53", "10.244.0.3:8080"), &stale));
    assert!(!is_stale(&flow("10.96.0.2:53", "10.244.0.2:8080"), &stale));
    assert!(is_stale(&flow("10.96.0.1:53", "10.96.0.1:53"), &first));
}
