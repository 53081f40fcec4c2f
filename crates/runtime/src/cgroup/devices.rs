//! Which device files a container may open: a list of the v1 controller, a small program in v2.
//!
//! Node files of every device may be made, as in other engines; only opening the usual ones is allowed.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{During as _, RuntimeError};
use crate::sys;

/// Character devices by major and minor number; without a minor all of them: null, zero, full, random, urandom, the
/// terminals of the process and of the container.
const ALLOWED: [(u32, Option<u32>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// Sets a v1 group's list.
pub(super) fn restrict_v1(folder: &Path) -> Result<(), RuntimeError> {
    fs::write(folder.join("devices.deny"), "a").during(|| "cannot restrict devices".into())?;
    let opened = ALLOWED.iter().map(|(major, minor)| match minor {
        Some(minor) => format!("c {major}:{minor} rwm"),
        None => format!("c {major}:* rwm"),
    });
    for rule in ["c *:* m".to_owned(), "b *:* m".to_owned()].into_iter().chain(opened) {
        fs::write(folder.join("devices.allow"), rule).during(|| "cannot allow devices".into())?;
    }
    Ok(())
}

/// Attaches the program to a v2 group, for it and the groups below. It goes with the group.
pub(super) fn restrict_v2(folder: &Path) -> std::io::Result<()> {
    let program = sys::load_device_program(&program())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group: OwnedFd = rustix::fs::open(folder, flags, Mode::empty())?;
    sys::attach_device_program(group.as_fd(), program.as_fd())
}

/// Offsets in the context and its values: struct bpf_cgroup_dev_ctx, linux/bpf.h.
mod context {
    pub(super) const ACCESS_AND_TYPE: i16 = 0;
    pub(super) const MAJOR: i16 = 4;
    pub(super) const MINOR: i16 = 8;
    pub(super) const CHARACTER: i32 = 2;
    pub(super) const MAKE: i32 = 1;
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// One instruction of the kernel's virtual machine (RFC 9669, section 3.1).
fn instruction(opcode: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let offset = u64::from(offset.cast_unsigned());
    let value = u64::from(value.cast_unsigned());
    u64::from(opcode) | u64::from(from << 4 | to) << 8 | offset << 16 | value << 32
}

/// Answers 1 to what is allowed, 0 to the rest.
fn program() -> Vec<u64> {
    let (answer, given, kind, access, major, minor) = (0, 1, 2, 3, 4, 5);
    let mut code = vec![
        instruction(MOVE, answer, 0, 0, 1),
        instruction(LOAD_WORD, kind, given, context::ACCESS_AND_TYPE, 0),
        instruction(MOVE_REGISTER, access, kind, 0, 0),
        instruction(SHIFT_RIGHT, access, 0, 0, 16),
        instruction(AND, kind, 0, 0, 0xffff),
        // over the next instruction if more than making is asked for
        instruction(JUMP_UNLESS_EQUAL, access, 0, 1, context::MAKE),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(LOAD_WORD, major, given, context::MAJOR, 0),
        instruction(LOAD_WORD, minor, given, context::MINOR, 0),
        // over the next two instructions if it is a character device
        instruction(JUMP_IF_EQUAL, kind, 0, 2, context::CHARACTER),
        instruction(MOVE, answer, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    for (wanted_major, wanted_minor) in ALLOWED {
        let numbers = [(major, Some(wanted_major)), (minor, wanted_minor)];
        let tests: Vec<_> = numbers.iter().filter_map(|(register, n)| Some((*register, (*n)?))).collect();
        for (left, (register, number)) in
            (1i16..).zip(tests.iter().rev()).collect::<Vec<_>>().into_iter().rev()
        {
            // to behind this entry's exit
            code.push(instruction(JUMP_UNLESS_EQUAL, *register, 0, left, number.cast_signed()));
        }
        code.push(instruction(EXIT, 0, 0, 0, 0));
    }
    code.extend([instruction(MOVE, answer, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program of the few instructions used here.
    fn run(code: &[u64], access: u32, kind: u32, major: u32, minor: u32) -> u64 {
        let given = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 8];
        let mut at = 0usize;
        for _ in 0..code.len() {
            let word = code[at];
            let (opcode, to, from) = (word as u8, (word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16) as u16 as usize, word >> 32);
            at += 1;
            match opcode {
                LOAD_WORD => registers[to] = u64::from(given[offset / 4]),
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_IF_EQUAL if registers[to] == value => at += offset,
                JUMP_UNLESS_EQUAL if registers[to] != value => at += offset,
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {}
                EXIT => return registers[0],
                other => panic!("opcode {other:#x}"),
            }
        }
        panic!("it does not end")
    }

    #[test]
    fn only_the_usual_devices_may_be_opened() {
        let (block, character) = (1, 2);
        let (make, read, write) = (1, 2, 4);
        let cases = [
            ("make any block device", make, block, 8, 0, 1),
            ("make any character device", make, character, 1, 1, 1),
            ("read a disk", read, block, 8, 0, 0),
            ("make and read a disk", make | read, block, 8, 0, 0),
            ("a disk with a terminal's numbers", read, block, 136, 3, 0),
            ("read /dev/null", read, character, 1, 3, 1),
            ("write /dev/urandom", write, character, 1, 9, 1),
            ("read and write /dev/ptmx", read | write, character, 5, 2, 1),
            ("any pseudo terminal", read | write, character, 136, 4711, 1),
            ("read /dev/mem", read, character, 1, 1, 0),
            ("read /dev/kmsg", read, character, 1, 11, 0),
            ("the host's console", read, character, 5, 1, 0),
            ("a tun device", read | write, character, 10, 200, 0),
        ];
        let code = program();
        for (what, access, kind, major, minor, answer) in cases {
            assert_eq!(run(&code, access, kind, major, minor), answer, "{what}");
        }
    }
}
