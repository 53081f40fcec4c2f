//! Running parsed commands.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::process::{Child, ExitStatus, Stdio};

use super::parse::{Command, Redirect, Target};
use super::{expand, fail};

/// State of a running shell.
pub(super) struct Shell {
    pub(super) arguments: Vec<String>,
    pub(super) status: u8,
    /// Set by `exit` (and by a failing command under `-e`).
    pub(super) exiting: Option<u8>,
    variables: BTreeMap<String, String>,
    stop_at_error: bool,
    background: Vec<Child>,
    /// Set by `break` and `continue` until the loop sees it.
    jump: Option<Jump>,
}

#[derive(Clone, Copy, PartialEq)]
enum Jump {
    Break,
    Continue,
}

/// Standard streams of a command; `None` inherits the shell's.
#[derive(Default)]
struct Streams {
    input: Option<File>,
    output: Option<File>,
    error: Option<File>,
}

impl Shell {
    pub(super) fn new(stop_at_error: bool) -> Self {
        Self {
            arguments: vec!["sh".into()],
            status: 0,
            exiting: None,
            variables: BTreeMap::new(),
            stop_at_error,
            background: Vec::new(),
            jump: None,
        }
    }

    /// Runs a list and returns the exit code.
    pub(super) fn run(&mut self, list: &[Command]) -> u8 {
        for command in list {
            self.command(command);
            if self.stop_at_error
                && self.status != 0
                && !matches!(command, Command::And(..) | Command::Or(..))
            {
                self.exiting.get_or_insert(self.status);
            }
            if self.exiting.is_some() || self.jump.is_some() {
                break;
            }
        }
        self.exiting.unwrap_or(self.status)
    }

    /// Value of a variable or parameter; "" when unset.
    pub(super) fn variable(&self, name: &str) -> String {
        match name {
            "?" => self.status.to_string(),
            "$" => std::process::id().to_string(),
            "#" => self.arguments.len().saturating_sub(1).to_string(),
            "@" | "*" => self.arguments.get(1..).unwrap_or_default().join(" "),
            _ => match name.parse::<usize>() {
                Ok(number) => self.arguments.get(number).cloned().unwrap_or_default(),
                Err(_) => match self.variables.get(name) {
                    Some(value) => value.clone(),
                    None => std::env::var(name).unwrap_or_default(),
                },
            },
        }
    }

    /// Output of a script run by another shell process.
    pub(super) fn substitute(&mut self, script: &str) -> String {
        let child = self.sub_shell(script).stdout(Stdio::piped()).spawn();
        match child.and_then(Child::wait_with_output) {
            Ok(output) => {
                self.status = code(output.status);
                String::from_utf8_lossy(&output.stdout).into_owned()
            }
            Err(error) => {
                self.status = fail("sh", error);
                String::new()
            }
        }
    }

    fn sub_shell(&self, script: &str) -> std::process::Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0("sh").arg("-c").arg(script).args(&self.arguments).envs(&self.variables);
        command
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Simple { words, redirects } => self.simple(words, redirects),
            Command::Pipeline(commands) => self.pipeline(commands),
            Command::Not(inner) => {
                self.command(inner);
                self.status = u8::from(self.status == 0);
            }
            Command::And(left, right) => {
                self.command(left);
                if self.status == 0 && self.exiting.is_none() {
                    self.command(right);
                }
            }
            Command::Or(left, right) => {
                self.command(left);
                if self.status != 0 && self.exiting.is_none() {
                    self.command(right);
                }
            }
            Command::If { condition, then, otherwise } => {
                let holds = self.condition(condition);
                self.status = 0;
                self.run(if holds { then } else { otherwise });
            }
            Command::While { condition, body, until } => {
                while self.exiting.is_none() && self.condition(condition) != *until {
                    if self.body(body) {
                        break;
                    }
                }
            }
            Command::For { name, words, body } => {
                let values: Vec<String> = words.iter().flat_map(|word| expand::fields(self, word)).collect();
                for value in values {
                    self.variables.insert(name.clone(), value);
                    if self.body(body) {
                        break;
                    }
                }
            }
            Command::Group(list) => {
                self.run(list);
            }
            Command::Background(inner) => self.in_background(inner),
        }
    }

    /// A condition's failure never ends the shell.
    fn condition(&mut self, list: &[Command]) -> bool {
        let strict = std::mem::replace(&mut self.stop_at_error, false);
        let holds = self.run(list) == 0;
        self.stop_at_error = strict;
        holds
    }

    /// Whether the loop is to end.
    fn body(&mut self, body: &[Command]) -> bool {
        self.run(body);
        self.exiting.is_some() || self.jump.take() == Some(Jump::Break)
    }

    fn in_background(&mut self, command: &Command) {
        let Command::Simple { words, redirects } = command else {
            self.status = fail("sh", "only simple commands run in the background");
            return;
        };
        let words: Vec<String> = words.iter().flat_map(|word| expand::fields(self, word)).collect();
        match self.streams(redirects, Streams::default()).and_then(|streams| self.spawn(&words, streams)) {
            Ok(child) => self.background.push(child),
            Err(error) => self.status = fail("sh", error),
        }
    }

    fn simple(&mut self, words: &[String], redirects: &[Redirect]) {
        if let Some(assignments) = words.iter().map(|word| assignment(word)).collect::<Option<Vec<_>>>()
            && !assignments.is_empty()
        {
            self.status = 0;
            for (name, value) in assignments {
                let value = expand::one(self, value);
                self.variables.insert(name.to_owned(), value);
            }
            return;
        }
        let words: Vec<String> = words.iter().flat_map(|word| expand::fields(self, word)).collect();
        if self.builtin(&words) {
            return;
        }
        let started =
            self.streams(redirects, Streams::default()).and_then(|streams| self.spawn(&words, streams));
        self.status = match started.and_then(|mut child| child.wait()) {
            Ok(status) => code(status),
            Err(error) => not_started(words.first(), &error),
        };
    }

    fn builtin(&mut self, words: &[String]) -> bool {
        let arguments = words.get(1..).unwrap_or_default();
        let number = arguments.first().and_then(|n| n.parse::<u8>().ok());
        self.status = match words.first().map(String::as_str) {
            None | Some(":") => 0,
            Some("exit") => {
                self.exiting = Some(number.unwrap_or(self.status));
                self.status
            }
            Some("break") => {
                self.jump = Some(Jump::Break);
                0
            }
            Some("continue") => {
                self.jump = Some(Jump::Continue);
                0
            }
            Some("cd") => {
                let home = self.variable("HOME");
                let dir = arguments.first().map_or(if home.is_empty() { "/" } else { &home }, String::as_str);
                std::env::set_current_dir(dir)
                    .map_or_else(|error| fail("cd", format!("{dir}: {error}")), |()| 0)
            }
            Some("export") => {
                for (name, value) in arguments.iter().filter_map(|word| assignment(word)) {
                    self.variables.insert(name.to_owned(), value.to_owned());
                }
                0
            }
            Some("unset") => {
                for name in arguments {
                    self.variables.remove(name);
                }
                0
            }
            Some("set") => {
                self.stop_at_error |= arguments.iter().any(|a| a == "-e");
                0
            }
            Some("[") => match arguments.split_last() {
                Some((last, condition)) if last == "]" => super::test(condition),
                Some(_) | None => fail("[", "missing ]"),
            },
            Some("wait") => {
                let mut last = 0;
                for mut child in std::mem::take(&mut self.background) {
                    last = child.wait().map_or_else(|error| fail("wait", error), code);
                }
                last
            }
            Some("exec") if !arguments.is_empty() => {
                use std::os::unix::process::CommandExt as _;
                let mut command = std::process::Command::new(&arguments[0]);
                let error = command.args(&arguments[1..]).envs(&self.variables).exec();
                not_started(arguments.first(), &error)
            }
            Some(_) => return false,
        };
        true
    }

    fn streams(&mut self, redirects: &[Redirect], mut streams: Streams) -> io::Result<Streams> {
        for redirect in redirects {
            let file = match &redirect.target {
                Target::Read(word) => File::open(expand::one(self, word))?,
                Target::Write(word) => File::create(expand::one(self, word))?,
                Target::Append(word) => {
                    OpenOptions::new().append(true).create(true).open(expand::one(self, word))?
                }
                Target::Duplicate(from) => streams.duplicate(*from)?,
            };
            match redirect.descriptor {
                0 => streams.input = Some(file),
                1 => streams.output = Some(file),
                2 => streams.error = Some(file),
                other => return Err(io::Error::other(format!("descriptor {other} cannot be redirected"))),
            }
        }
        Ok(streams)
    }

    fn spawn(&self, words: &[String], streams: Streams) -> io::Result<Child> {
        let (name, arguments) = words.split_first().ok_or_else(|| io::Error::other("no command"))?;
        let mut command = std::process::Command::new(name);
        command.args(arguments).envs(&self.variables);
        streams.apply(&mut command);
        command.spawn()
    }

    fn pipeline(&mut self, commands: &[Command]) {
        match self.start_pipeline(commands) {
            Ok(children) => {
                for mut child in children {
                    self.status = child.wait().map_or_else(|error| fail("sh", error), code);
                }
            }
            Err(error) => self.status = fail("sh", error),
        }
    }

    fn start_pipeline(&mut self, commands: &[Command]) -> io::Result<Vec<Child>> {
        let mut children = Vec::new();
        let mut input = None;
        for (number, command) in commands.iter().enumerate() {
            let Command::Simple { words, redirects } = command else {
                return Err(io::Error::other("only simple commands can be piped"));
            };
            let mut streams = Streams { input: input.take(), ..Streams::default() };
            if number + 1 < commands.len() {
                let (reader, writer) = io::pipe()?;
                input = Some(File::from(std::os::fd::OwnedFd::from(reader)));
                streams.output = Some(File::from(std::os::fd::OwnedFd::from(writer)));
            }
            let words: Vec<String> = words.iter().flat_map(|word| expand::fields(self, word)).collect();
            let streams = self.streams(redirects, streams)?;
            children.push(self.spawn(&words, streams)?);
        }
        Ok(children)
    }
}

impl Streams {
    fn duplicate(&self, from: u8) -> io::Result<File> {
        use std::os::fd::AsFd as _;
        let fd = match (from, &self.output, &self.error) {
            (1, Some(file), _) | (2, _, Some(file)) => file.try_clone()?.into(),
            (1, None, _) => io::stdout().as_fd().try_clone_to_owned()?,
            (2, _, None) => io::stderr().as_fd().try_clone_to_owned()?,
            (other, ..) => return Err(io::Error::other(format!("descriptor {other} is not open"))),
        };
        Ok(File::from(fd))
    }

    fn apply(self, command: &mut std::process::Command) {
        if let Some(file) = self.input {
            command.stdin(file);
        }
        if let Some(file) = self.output {
            command.stdout(file);
        }
        if let Some(file) = self.error {
            command.stderr(file);
        }
    }
}

/// `NAME=value`
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    good.then_some((name, value))
}

/// Exit codes of POSIX shells: 127 not found, 126 not executable.
fn not_started(name: Option<&String>, error: &io::Error) -> u8 {
    fail("sh", format!("{}: {error}", name.map_or("", String::as_str)));
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(255)
}
