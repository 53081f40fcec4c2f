//! `sh`: a small shell for commands in pods: lists, `&&`, `||`, `!`, pipes, redirections, quotes, variables,
//! command substitution, `if`, `while`, `until`, `for`, braces and background jobs. No functions, arithmetic or job control.

mod exec;
mod expand;
mod parse;

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use super::fail;

/// `sh [-c COMMAND [NAME ARGUMENT…]] [FILE [ARGUMENT…]]`, or commands from standard input.
pub(super) fn sh(arguments: &[String]) -> u8 {
    let mut flags = String::new();
    let mut rest = arguments;
    while let Some((first, others)) = rest.split_first() {
        let Some(letters) = first.strip_prefix('-').filter(|l| !l.is_empty()) else { break };
        flags.push_str(letters);
        rest = others;
    }
    let mut shell = exec::Shell::new(flags.contains('e'));
    if flags.contains('c') {
        let Some((command, words)) = rest.split_first() else { return fail("sh", "-c needs a command") };
        shell.arguments = if words.is_empty() { vec!["sh".into()] } else { words.to_vec() };
        return run(&mut shell, command);
    }
    if let Some(file) = rest.first() {
        shell.arguments = rest.to_vec();
        return match std::fs::read_to_string(file) {
            Ok(script) => run(&mut shell, &script),
            Err(error) => fail("sh", format!("{file}: {error}")),
        };
    }
    interactive(&mut shell)
}

fn run(shell: &mut exec::Shell, script: &str) -> u8 {
    match parse::parse(script) {
        Ok(list) => shell.run(&list),
        Err(error) => {
            fail("sh", format!("syntax error: {error}"));
            2
        }
    }
}

/// Reads commands line by line; a command that is not complete yet gets further lines.
fn interactive(shell: &mut exec::Shell) -> u8 {
    let terminal = std::io::stdin().is_terminal();
    let mut pending = String::new();
    loop {
        if terminal {
            prompt(if pending.is_empty() { "# " } else { "> " });
        }
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) => return shell.status,
            Ok(_) => pending.push_str(&line),
            Err(error) => return fail("sh", error),
        }
        match parse::parse(&pending) {
            Ok(list) => {
                shell.run(&list);
                pending.clear();
                if let Some(code) = shell.exiting {
                    return code;
                }
            }
            Err(parse::Error::Incomplete) => {}
            Err(error @ parse::Error::Unexpected(_)) => {
                fail("sh", format!("syntax error: {error}"));
                shell.status = 2;
                pending.clear();
            }
        }
    }
}

#[expect(clippy::let_underscore_must_use, reason = "a closed terminal is noticed by the next read")]
fn prompt(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `test`: the conditions of POSIX `test` with one or two operands.
pub(super) fn test(arguments: &[String]) -> u8 {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match condition(&words) {
        Some(holds) => u8::from(!holds),
        None => {
            fail("test", "unknown condition");
            2
        }
    }
}

fn condition(words: &[&str]) -> Option<bool> {
    let number = |text: &str| text.parse::<i64>().ok();
    Some(match words {
        [] => false,
        [word] => !word.is_empty(),
        ["!", rest @ ..] => !condition(rest)?,
        ["-z", word] => word.is_empty(),
        ["-n", word] => !word.is_empty(),
        ["-e", path] => std::path::Path::new(path).exists(),
        ["-f", path] => std::path::Path::new(path).is_file(),
        ["-d", path] => std::path::Path::new(path).is_dir(),
        ["-s", path] => std::fs::metadata(path).is_ok_and(|m| m.len() > 0),
        [a, "=" | "==", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "-eq", b] => number(a)? == number(b)?,
        [a, "-ne", b] => number(a)? != number(b)?,
        [a, "-lt", b] => number(a)? < number(b)?,
        [a, "-le", b] => number(a)? <= number(b)?,
        [a, "-gt", b] => number(a)? > number(b)?,
        [a, "-ge", b] => number(a)? >= number(b)?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
