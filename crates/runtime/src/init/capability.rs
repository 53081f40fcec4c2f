//! Capability names and sets.

use crate::error::RuntimeError;
use crate::spec::ContainerSpec;

/// Names in the order of their numbers, linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// The customary set of OCI engines.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Number of the last capability this program knows; the kernel may know more.
pub(super) const LAST: u64 = NAMES.len() as u64 - 1;

/// The capabilities a container may have at most, as a bit set.
pub(crate) fn allowed(spec: &ContainerSpec) -> Result<u64, RuntimeError> {
    let all = (1u64 << NAMES.len()) - 1;
    if spec.privileged {
        return Ok(all);
    }
    let (dropped, added) = (masks(&spec.drop_capabilities, all)?, masks(&spec.add_capabilities, all)?);
    let default = DEFAULT.iter().fold(0, |set, name| set | bit(name).unwrap_or(0));
    // Adding everything yields to single drops; dropping everything yields to single additions.
    if spec.drop_capabilities.iter().any(|name| is_all(name)) {
        return Ok(if added == all { 0 } else { added });
    }
    Ok((default | added) & !dropped)
}

fn masks(names: &[String], all: u64) -> Result<u64, RuntimeError> {
    names.iter().try_fold(0, |set, name| {
        let mask = if is_all(name) { Some(all) } else { bit(name) };
        mask.map(|mask| set | mask)
            .ok_or_else(|| RuntimeError::Invalid(format!("unknown capability {name:?}")))
    })
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Result<u64, RuntimeError> {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        allowed(&ContainerSpec {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..ContainerSpec::default()
        })
    }

    #[test]
    fn sets_follow_additions_and_drops() {
        let cases: [(&[&str], &[&str], u64); 6] = [
            (&[], &[], 0xa804_25fb),
            (&["NET_ADMIN"], &[], 0xa804_35fb),
            (&["cap_net_admin"], &["ALL"], 1 << 12),
            (&[], &["all"], 0),
            (&[], &["CHOWN"], 0xa804_25fa),
            (&["ALL"], &["CAP_SYS_ADMIN"], ((1 << 41) - 1) & !(1 << 21)),
        ];
        for (add, drop, want) in cases {
            assert_eq!(set(add, drop), Ok(want), "{add:?} {drop:?}");
        }
        assert!(matches!(set(&["FLY"], &[]), Err(RuntimeError::Invalid(_))));
    }
}
