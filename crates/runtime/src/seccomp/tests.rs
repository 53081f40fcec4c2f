//! The filter, run by an interpreter of the few instructions it uses.

use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DEFAULT: u64 = 0xa804_25fb;

/// What the kernel would answer; `data` as struct seccomp_data, linux/seccomp.h.
fn run(program: &[sock_filter], number: i64, argument: u64) -> u32 {
    let arch: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    let mut data = Vec::new();
    data.extend(u32::try_from(number).unwrap().to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    data.extend(argument.to_ne_bytes());
    data.resize(64, 0);
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let i = &program[at];
        at += 1;
        match u32::from(i.code) {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                let offset = i.k as usize;
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= i.k,
            code if code == libc::BPF_RET | libc::BPF_K => return i.k,
            code if code == libc::BPF_JMP | libc::BPF_JA => at += i.k as usize,
            code if code & 7 == libc::BPF_JMP => {
                let yes = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == i.k,
                    libc::BPF_JGT => accumulator > i.k,
                    libc::BPF_JGE => accumulator >= i.k,
                    other => panic!("jump {other:#x}"),
                };
                at += usize::from(if yes { i.jt } else { i.jf });
            }
            code => panic!("instruction {code:#x}"),
        }
    }
}

#[test]
fn ordinary_calls_pass_and_administration_needs_its_capability() {
    let refused = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let (eperm, enosys) = (refused(libc::EPERM), refused(libc::ENOSYS));
    let sys_admin = DEFAULT | 1 << calls::CAP_SYS_ADMIN;
    let cases = [
        (DEFAULT, libc::SYS_read, 0, ALLOW),
        (DEFAULT, libc::SYS_execve, 0, ALLOW),
        (DEFAULT, libc::SYS_mount, 0, eperm),
        (DEFAULT, libc::SYS_bpf, 0, eperm),
        (DEFAULT, libc::SYS_keyctl, 0, eperm),
        (DEFAULT, libc::SYS_io_uring_setup, 0, eperm),
        (DEFAULT, libc::SYS_unshare, 0, eperm),
        (DEFAULT, 9_999, 0, eperm),
        (DEFAULT, libc::SYS_clone, 0x003d_0f00, ALLOW),
        (DEFAULT, libc::SYS_clone, 0x1000_0000, eperm),
        (DEFAULT, libc::SYS_clone3, 0, enosys),
        (DEFAULT, libc::SYS_socket, 2, ALLOW),
        (DEFAULT, libc::SYS_socket, AF_VSOCK, eperm),
        (DEFAULT, libc::SYS_personality, 0xffff_ffff, ALLOW),
        (DEFAULT, libc::SYS_personality, 0x0040_0000, eperm),
        (DEFAULT, libc::SYS_chroot, 0, ALLOW),
        (0, libc::SYS_chroot, 0, eperm),
        (sys_admin, libc::SYS_mount, 0, ALLOW),
        (sys_admin, libc::SYS_clone, 0x1000_0000, ALLOW),
        (sys_admin, libc::SYS_clone3, 0, ALLOW),
        (sys_admin, libc::SYS_reboot, 0, eperm),
    ];
    for (capabilities, number, argument, want) in cases {
        let got = run(&program(capabilities).unwrap(), number, argument);
        assert_eq!(got, want, "call {number} with {argument:#x} and {capabilities:#x}");
    }
}

#[test]
fn bytes_are_the_kernels_instructions() {
    let bytes = default_seccomp(&ContainerSpec::default()).unwrap();
    assert_eq!(bytes.len(), program(DEFAULT).unwrap().len() * 8);
    assert!(bytes.len() / 8 <= 4096, "BPF_MAXINSNS");
    let none = ContainerSpec { add_capabilities: vec!["FLY".into()], ..ContainerSpec::default() };
    assert!(matches!(default_seccomp(&none), Err(RuntimeError::Invalid(_))));
}
