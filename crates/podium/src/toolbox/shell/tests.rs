//! Scripts and what they do: exit code and the files they leave.

use super::exec::Shell;
use super::parse::{Error, parse};

/// Runs a script in a folder of its own and returns (exit code, contents of the file `out`).
fn run(script: &str) -> (u8, String) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut shell = Shell::new(false);
    shell.arguments = vec!["sh".into(), out.to_str().unwrap().into()];
    let code = shell.run(&parse(script).unwrap());
    (code, std::fs::read_to_string(out).unwrap_or_default())
}

#[test]
fn scripts() {
    let table = [
        ("echo one two > $1", 0, "one two\n"),
        ("echo a > $1; echo b >> $1", 0, "a\nb\n"),
        ("x='a  b'; echo $x \"$x\" > $1", 0, "a b a  b\n"),
        ("false || echo no > $1", 0, "no\n"),
        ("true && exit 4; echo never > $1", 4, ""),
        ("for i in 1 2 3; do echo $i >> $1; done", 0, "1\n2\n3\n"),
        ("for i in 1 2 3; do if [ $i = 2 ]; then continue; fi; echo $i >> $1; done", 0, "1\n3\n"),
        ("while true; do echo once >> $1; break; done", 0, "once\n"),
        ("if [ a = b ]; then exit 1; elif [ 2 -gt 1 ]; then echo yes > $1; else exit 2; fi", 0, "yes\n"),
        ("echo x | cat > $1", 0, "x\n"),
        ("! false", 0, ""),
        ("{ echo in > $1; }; exit 3", 3, "in\n"),
        ("echo ${NOPE:-default} '$x' \\$y > $1", 0, "default $x $y\n"),
        ("no-such-command-here", 127, ""),
        ("sh -c 'exit 9' & wait", 9, ""),
        ("echo err 2>&1 > $1 # comment", 0, "err\n"),
    ];
    for (script, code, out) in table {
        assert_eq!(run(script), (code, out.to_owned()), "{script}");
    }
}

#[test]
fn an_unfinished_command_waits_for_more() {
    for script in ["if true", "while true; do", "echo 'a", "echo \"a", "for x in", "echo $(a", "true &&"] {
        assert_eq!(parse(script), Err(Error::Incomplete), "{script}");
    }
    assert_eq!(parse("| a"), Err(Error::Unexpected("|".into())));
}
