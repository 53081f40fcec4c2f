//! Applets about files.

use std::fs;
use std::io::{self, Read as _, Write as _};

use super::fail;
use crate::cli::outln;

/// `cat [FILE…]`; `-` and no file mean standard input.
pub(super) fn cat(arguments: &[String]) -> u8 {
    let standard_input = ["-".to_owned()];
    let files = if arguments.is_empty() { &standard_input[..] } else { arguments };
    let mut code = 0;
    for file in files {
        if let Err(error) = copy(file) {
            code = fail("cat", format!("{file}: {error}"));
        }
    }
    code
}

/// Every block is flushed: `cat` in a pipe or on a terminal shows what it reads when it reads it.
fn copy(file: &str) -> io::Result<()> {
    let mut source: Box<dyn io::Read> =
        if file == "-" { Box::new(io::stdin().lock()) } else { Box::new(fs::File::open(file)?) };
    let mut out = io::stdout().lock();
    let mut block = [0; 16 * 1024];
    loop {
        match source.read(&mut block)? {
            0 => return Ok(()),
            read => {
                out.write_all(block.get(..read).unwrap_or_default())?;
                out.flush()?;
            }
        }
    }
}

/// `echo [-n] WORD…`
pub(super) fn echo(arguments: &[String]) -> u8 {
    let (words, end) = match arguments.split_first() {
        Some((first, rest)) if first == "-n" => (rest, ""),
        Some(_) | None => (arguments, "\n"),
    };
    let text = format!("{}{end}", words.join(" "));
    match io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => 0,
        Err(error) => fail("echo", error),
    }
}

/// `ls [-l] [PATH…]`
pub(super) fn ls(arguments: &[String]) -> u8 {
    let long = arguments.iter().any(|a| a.starts_with('-') && a.contains('l'));
    let hidden = arguments.iter().any(|a| a.starts_with('-') && a.contains('a'));
    let mut paths: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect();
    if paths.is_empty() {
        paths.push(".");
    }
    let mut code = 0;
    for path in paths {
        if let Err(error) = list(path, long, hidden) {
            code = fail("ls", format!("{path}: {error}"));
        }
    }
    code
}

fn list(path: &str, long: bool, hidden: bool) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        return show(path.as_ref(), path, long);
    }
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if hidden || !name.starts_with('.') {
            show(&entry.path(), &name, long)?;
        }
    }
    Ok(())
}

fn show(path: &std::path::Path, name: &str, long: bool) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if !long {
        outln(name);
        return Ok(());
    }
    let meta = fs::symlink_metadata(path)?;
    let target = fs::read_link(path).map(|t| format!(" -> {}", t.display())).unwrap_or_default();
    outln(&format!(
        "{:06o} {:>4} {:>4} {:>9} {name}{target}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.size()
    ));
    Ok(())
}

/// `mkdir [-p] DIR…`
pub(super) fn mkdir(arguments: &[String]) -> u8 {
    let parents = arguments.iter().any(|a| a == "-p");
    each("mkdir", arguments, |path| if parents { fs::create_dir_all(path) } else { fs::create_dir(path) })
}

/// `rm [-r] [-f] PATH…`
pub(super) fn rm(arguments: &[String]) -> u8 {
    let flag = |letter| arguments.iter().any(|a| a.starts_with('-') && a.contains(letter));
    let (recursive, force) = (flag('r'), flag('f'));
    each("rm", arguments, |path| {
        let removed = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() && recursive => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if force && error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    })
}

/// `touch FILE…`
pub(super) fn touch(arguments: &[String]) -> u8 {
    each("touch", arguments, |path| {
        let file = fs::OpenOptions::new().create(true).append(true).open(path)?;
        file.set_modified(std::time::SystemTime::now())
    })
}

/// `readlink PATH…`
pub(super) fn readlink(arguments: &[String]) -> u8 {
    each("readlink", arguments, |path| {
        outln(&fs::read_link(path)?.to_string_lossy());
        Ok(())
    })
}

/// `pwd`
pub(super) fn pwd(_: &[String]) -> u8 {
    match std::env::current_dir() {
        Ok(dir) => {
            outln(&dir.to_string_lossy());
            0
        }
        Err(error) => fail("pwd", error),
    }
}

/// `wc`: lines and bytes of standard input.
pub(super) fn wc(_: &[String]) -> u8 {
    let mut bytes = Vec::new();
    match io::stdin().lock().read_to_end(&mut bytes) {
        Ok(length) => {
            outln(&format!("{} {length}", bytes.iter().filter(|b| **b == b'\n').count()));
            0
        }
        Err(error) => fail("wc", error),
    }
}

fn each(applet: &str, arguments: &[String], act: impl Fn(&str) -> io::Result<()>) -> u8 {
    let mut code = 0;
    for path in arguments.iter().filter(|a| !a.starts_with('-')) {
        if let Err(error) = act(path) {
            code = fail(applet, format!("{path}: {error}"));
        }
    }
    code
}
