//! The default system call filter: what ordinary programs need; all else answers EPERM.
//!
//! The list is written from syscalls(2) and capabilities(7): a call is in it unless it administers the machine, reaches into the
//! kernel's memory or other processes' beyond the ptrace rules, or is so new and wide that it stands for many others
//! (io_uring). Calls that a capability guards come with the capability.
//!
//! Invariant: a filter for another instruction set is never made: an unknown machine is an error.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::error::RuntimeError;
use crate::init::allowed_capabilities;
use crate::spec::ContainerSpec;

mod calls;
mod names;
mod profile;

pub use profile::profile_seccomp;

/// CLONE_NEW* except CLONE_NEWTIME, which clone(2) can't say; linux/sched.h.
const NAMESPACES: u64 = 0x7e02_0000;
/// personality(2) values that change nothing a sandbox relies on: Linux, UNAME26, no randomisation with either, "only tell".
const PERSONALITIES: [u64; 5] = [0, 0x0002_0000, 0x0000_0008, 0x0002_0008, 0xffff_ffff];
/// Sockets to the hypervisor and other machines' hosts, which no network namespace separates.
const AF_VSOCK: u64 = 40;

/// The default filter of a container, as bytes for [`ContainerSpec::seccomp`]. It depends on the container's capabilities.
///
/// # Errors
/// Invalid for an unknown capability, Other on a machine that the list does not know.
pub fn default_seccomp(spec: &ContainerSpec) -> Result<Vec<u8>, RuntimeError> {
    let capabilities = allowed_capabilities(spec)?;
    let program = program(capabilities).map_err(|e| RuntimeError::Other(format!("seccomp filter: {e}")))?;
    Ok(bytes(&program))
}

/// Instructions as the kernel takes them.
fn bytes(program: &[sock_filter]) -> Vec<u8> {
    let bytes = |i: &sock_filter| {
        let [code, k] = [i.code.to_ne_bytes().to_vec(), i.k.to_ne_bytes().to_vec()];
        [code, vec![i.jt, i.jf], k].concat()
    };
    program.iter().flat_map(bytes).collect()
}

fn program(capabilities: u64) -> Result<BpfProgram, BackendError> {
    let may = |capability: u32| capabilities & (1 << capability) != 0;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls::ALWAYS.iter().map(|number| (*number, Vec::new())).collect();
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![word(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?])?],
    );
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![word(0, SeccompCmpOp::Ne, AF_VSOCK)?])?]);
    let mut personalities = Vec::new();
    for value in PERSONALITIES {
        personalities.push(SeccompRule::new(vec![word(0, SeccompCmpOp::Eq, value)?])?);
    }
    rules.insert(libc::SYS_personality, personalities);
    for (capability, numbers) in calls::WITH_CAPABILITY {
        if may(*capability) {
            rules.extend(numbers.iter().map(|number| (*number, Vec::new())));
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter: BpfProgram = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()?;
    // clone3 hides its flags behind a pointer: ENOSYS makes C libraries take clone, which can be judged.
    Ok(if may(calls::CAP_SYS_ADMIN) { filter } else { [unknown(libc::SYS_clone3), filter].concat() })
}

fn word(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

/// Instructions that answer ENOSYS to one call and go on to what follows for all others.
fn unknown(number: i64) -> BpfProgram {
    let number = u32::try_from(number).expect("system call numbers are small");
    let step = |code: u32, jf: u8, k: u32| sock_filter {
        code: u16::try_from(code).expect("instruction codes have 16 bits"),
        jt: 0,
        jf,
        k,
    };
    vec![
        // Offset 0 of struct seccomp_data is the call's number.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
    ]
}

#[cfg(test)]
mod tests;
