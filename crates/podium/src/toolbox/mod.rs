//! The programs of the built-in image `podium.local/toolbox`: a hello web server, pause, a small shell and little tools.
//!
//! The image holds one copy of this executable and a symbolic link per applet; the name of the link picks the applet,
//! so that real workloads run on a machine without a registry.
//!
//! Invariants: no threads before [`dispatch`]; every applet ends at SIGTERM, also as process 1, where the kernel
//! would otherwise drop the signal.

mod archive;
mod fetch;
mod files;
mod hello;
mod nslookup;
mod process;
mod shell;
mod signal;

use std::path::Path;
use std::process::ExitCode;

/// An applet: takes the arguments after its name and returns the exit code.
type Applet = fn(&[String]) -> u8;

/// Name and code of each applet.
const APPLETS: &[(&str, Applet)] = &[
    ("cat", files::cat),
    ("date", process::date),
    ("echo", files::echo),
    ("env", process::env),
    ("false", |_| 1),
    ("fetch", fetch::fetch),
    ("hello", hello::hello),
    ("hostname", process::hostname),
    ("id", process::id),
    ("kill", process::kill),
    ("ls", files::ls),
    ("mkdir", files::mkdir),
    ("nslookup", nslookup::nslookup),
    ("pause", process::pause),
    ("printenv", process::env),
    ("ps", process::ps),
    ("pwd", files::pwd),
    ("readlink", files::readlink),
    ("rm", files::rm),
    ("seq", process::seq),
    ("sh", shell::sh),
    ("sleep", process::sleep),
    ("stress", process::stress),
    ("stty", process::stty),
    ("tar", archive::tar),
    ("test", shell::test),
    ("touch", files::touch),
    ("true", |_| 0),
    ("wc", files::wc),
];

/// The built-in image: the program, a link per applet, and the few files that users expect.
pub(crate) fn image_layout(executable: &Path) -> runtime::Layout {
    const PROGRAM: &str = "/podium";
    let text = |path: &str, content: &str| (path.to_owned(), content.to_owned(), 0o644);
    runtime::Layout {
        executable: executable.to_owned(),
        program: PROGRAM.into(),
        links: APPLETS.iter().map(|(name, _)| (format!("/bin/{name}"), PROGRAM.to_owned())).collect(),
        files: vec![
            text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
            text("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ],
        folders: vec![("/tmp".into(), 0o1777), ("/root".into(), 0o700)],
        entrypoint: Vec::new(),
        cmd: vec!["hello".into()],
        env: vec![("PATH".into(), "/bin".into())],
    }
}

/// Runs the applet that the program's own name picks; `None` when it is no applet's name.
pub(crate) fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    let program = arguments.next()?;
    let name = Path::new(&program).file_name()?.to_str()?;
    let (_, applet) = APPLETS.iter().find(|(known, _)| *known == name)?;
    let arguments: Vec<String> = arguments.collect();
    if rustix::process::getpid().is_init() && !matches!(name, "hello" | "pause") {
        signal::exit_on_termination(|signal| 128u8.saturating_add(signal));
    }
    Some(ExitCode::from(applet(&arguments)))
}

/// Prints an error of an applet and returns exit code 1.
fn fail(applet: &str, error: impl std::fmt::Display) -> u8 {
    crate::cli::errln(&format!("{applet}: {error}"));
    1
}
