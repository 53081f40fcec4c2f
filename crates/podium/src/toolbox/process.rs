//! Applets about processes, time and the environment.

use std::time::Duration;

use super::{fail, signal};
use crate::cli::outln;

/// `pause`: does nothing until it is told to end.
pub(super) fn pause(_: &[String]) -> u8 {
    signal::wait_for_termination();
    0
}

/// `sleep SECONDS|infinity`, with a suffix s, m or h.
pub(super) fn sleep(arguments: &[String]) -> u8 {
    let Some(text) = arguments.first() else { return fail("sleep", "how long?") };
    match duration(text) {
        Some(Some(time)) => std::thread::sleep(time),
        Some(None) => loop {
            std::thread::park();
        },
        None => return fail("sleep", format!("invalid time {text:?}")),
    }
    0
}

/// `Some(None)` is for ever.
pub(super) fn duration(text: &str) -> Option<Option<Duration>> {
    if text == "infinity" {
        return Some(None);
    }
    let (number, scale) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3600.0),
        Some(number) => (number, 1.0),
        None => (text, 1.0),
    };
    let seconds = number.parse::<f64>().ok()? * scale;
    Duration::try_from_secs_f64(seconds).ok().map(Some)
}

/// `env [NAME…]`: the environment, or the values of the named variables (exit code 1 when one is unset).
pub(super) fn env(arguments: &[String]) -> u8 {
    if arguments.is_empty() {
        for (name, value) in std::env::vars() {
            outln(&format!("{name}={value}"));
        }
        return 0;
    }
    let mut code = 0;
    for name in arguments {
        match std::env::var(name) {
            Ok(value) => outln(&value),
            Err(_) => code = 1,
        }
    }
    code
}

/// `hostname`
pub(super) fn hostname(_: &[String]) -> u8 {
    outln(&rustix::system::uname().nodename().to_string_lossy());
    0
}

/// `date`: UTC, RFC 3339.
pub(super) fn date(_: &[String]) -> u8 {
    outln(&jiff::Timestamp::now().to_string());
    0
}

/// `id`: user, group and supplementary groups, in numbers.
pub(super) fn id(_: &[String]) -> u8 {
    let groups = rustix::process::getgroups().unwrap_or_default();
    let groups: Vec<String> = groups.iter().map(|g| g.as_raw().to_string()).collect();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    outln(&format!("uid={uid} gid={gid} groups={}", groups.join(",")));
    0
}

/// `kill [-SIGNAL] PID…`; signals by number or by the names TERM, KILL, INT, HUP, USR1, USR2, STOP, CONT.
pub(super) fn kill(arguments: &[String]) -> u8 {
    use rustix::process::{Pid, Signal, kill_process};
    let mut chosen = Signal::TERM;
    let mut code = 0;
    for argument in arguments {
        if let Some(name) = argument.strip_prefix('-') {
            let signal = match name.trim_start_matches("SIG") {
                "1" | "HUP" => Signal::HUP,
                "2" | "INT" => Signal::INT,
                "9" | "KILL" => Signal::KILL,
                "10" | "USR1" => Signal::USR1,
                "12" | "USR2" => Signal::USR2,
                "15" | "TERM" => Signal::TERM,
                "18" | "CONT" => Signal::CONT,
                "19" | "STOP" => Signal::STOP,
                other => return fail("kill", format!("unknown signal {other:?}")),
            };
            chosen = signal;
            continue;
        }
        let Some(pid) = argument.parse().ok().and_then(Pid::from_raw) else {
            return fail("kill", format!("invalid process {argument:?}"));
        };
        if let Err(error) = kill_process(pid, chosen) {
            code = fail("kill", format!("{argument}: {error}"));
        }
    }
    code
}

/// `ps`: process ids and command lines of the container.
pub(super) fn ps(_: &[String]) -> u8 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return fail("ps", "/proc is not mounted") };
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|n| n.parse().ok()))
        .collect();
    pids.sort_unstable();
    outln("  PID COMMAND");
    for pid in pids {
        // a process that ended meanwhile is no longer there to be listed
        let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let words: Vec<_> = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        outln(&format!("{pid:>5} {}", words.join(" ").trim_end()));
    }
    0
}

/// `seq [FIRST] LAST`
pub(super) fn seq(arguments: &[String]) -> u8 {
    let numbers: Option<Vec<i64>> = arguments.iter().map(|a| a.parse().ok()).collect();
    let (first, last) = match numbers.as_deref() {
        Some([last]) => (1, *last),
        Some([first, last]) => (*first, *last),
        Some(_) | None => return fail("seq", "usage: seq [FIRST] LAST"),
    };
    for number in first..=last {
        outln(&number.to_string());
    }
    0
}

/// `stty size` prints rows and columns of the terminal on standard input.
pub(super) fn stty(arguments: &[String]) -> u8 {
    match (arguments, rustix::termios::tcgetwinsize(rustix::stdio::stdin())) {
        ([what], Ok(size)) if what == "size" => {
            outln(&format!("{} {}", size.ws_row, size.ws_col));
            0
        }
        ([what], Err(error)) if what == "size" => fail("stty", error),
        _ => fail("stty", "usage: stty size"),
    }
}

/// `stress memory MIB` keeps that much memory in use; `stress cpu` keeps one core busy.
pub(super) fn stress(arguments: &[String]) -> u8 {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["memory", mib] => {
            let Ok(mib) = mib.parse::<usize>() else { return fail("stress", "memory in MiB, please") };
            let mut blocks = Vec::with_capacity(mib);
            for number in 0..mib {
                blocks.push(vec![u8::try_from(number % 255).unwrap_or(0) | 1; 1 << 20]);
            }
            outln(&format!("holding {} MiB", blocks.len()));
            signal::wait_for_termination();
            0
        }
        ["cpu"] => loop {
            std::hint::spin_loop();
        },
        _ => fail("stress", "usage: stress memory MIB | stress cpu"),
    }
}
