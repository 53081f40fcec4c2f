//! `tar`, as far as copying files in and out of a container by `kubectl cp` needs it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::fail;

/// What a command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    extract: bool,
    create: bool,
    /// Where to work, "" for here.
    folder: PathBuf,
    /// "-" is standard input or output.
    file: String,
    /// Modification times stay those of now.
    fresh: bool,
    paths: Vec<String>,
}

/// `tar [-]c|x[m]f FILE [-C FOLDER] [PATH…]`
pub(super) fn tar(arguments: &[String]) -> u8 {
    let done = match parse(arguments) {
        Some(wanted) if wanted.extract => extract(&wanted),
        Some(wanted) if wanted.create => create(&wanted),
        _ => return fail("tar", "usage: tar c|x[m]f FILE [-C FOLDER] [PATH...]"),
    };
    match done {
        Ok(()) => 0,
        Err(error) => fail("tar", error),
    }
}

fn parse(arguments: &[String]) -> Option<Wanted> {
    let mut wanted = Wanted { file: "-".into(), ..Wanted::default() };
    let mut words = arguments.iter();
    let mut first = true;
    while let Some(word) = words.next() {
        // The first word may be letters without a dash.
        let letters = word.strip_prefix('-').filter(|rest| !rest.starts_with('-') && !rest.is_empty());
        match letters.or(first.then_some(word.as_str()).filter(|word| !word.starts_with('-'))) {
            Some(letters) => {
                for letter in letters.chars() {
                    match letter {
                        'c' => wanted.create = true,
                        'x' => wanted.extract = true,
                        'm' => wanted.fresh = true,
                        'f' => wanted.file.clone_from(words.next()?),
                        'C' => wanted.folder = words.next()?.into(),
                        'p' | 'o' => {}
                        _ => return None,
                    }
                }
            }
            // Owners and modes are as the process can make them, whatever is said.
            None if word.starts_with("--no-same-") || word == "--" => {}
            None if word.starts_with("--") => return None,
            None => wanted.paths.push(word.clone()),
        }
        first = false;
    }
    (wanted.create != wanted.extract).then_some(wanted)
}

fn extract(wanted: &Wanted) -> io::Result<()> {
    let source: Box<dyn io::Read> = match wanted.file.as_str() {
        "-" => Box::new(io::stdin().lock()),
        file => Box::new(std::fs::File::open(file)?),
    };
    let mut archive = tar::Archive::new(source);
    archive.set_preserve_mtime(!wanted.fresh);
    let here = Path::new(".");
    archive.unpack(if wanted.folder.as_os_str().is_empty() { here } else { &wanted.folder })
}

fn create(wanted: &Wanted) -> io::Result<()> {
    let sink: Box<dyn io::Write> = match wanted.file.as_str() {
        "-" => Box::new(io::stdout().lock()),
        file => Box::new(std::fs::File::create(file)?),
    };
    let mut archive = tar::Builder::new(io::BufWriter::new(sink));
    archive.follow_symlinks(false);
    for path in &wanted.paths {
        let from = wanted.folder.join(path);
        // Names in an archive are relative.
        let name = path.trim_start_matches('/');
        if from.is_dir() {
            archive.append_dir_all(if name.is_empty() { "." } else { name }, &from)?;
        } else {
            archive.append_path_with_name(&from, name)?;
        }
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_lines_of_kubectl_are_understood() {
        let wanted = |line: &str| parse(&words(line));
        let out = wanted("cf - /etc/passwd").unwrap();
        assert_eq!((out.create, out.paths), (true, vec!["/etc/passwd".to_owned()]));
        let into = wanted("--no-same-permissions --no-same-owner -xmf - -C /tmp").unwrap();
        assert_eq!((into.extract, into.fresh, into.folder), (true, true, "/tmp".into()));
        for wrong in ["", "xcf -", "tf -", "-x --unknown"] {
            assert_eq!(wanted(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_folder_goes_in_and_out() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, file) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("a.tar"));
        std::fs::create_dir_all(from.join("d/deep")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/deep/file"), "text").unwrap();
        let run = |line: String| assert_eq!(tar(&words(&line)), 0, "{line}");
        run(format!("cf {} -C {} d", file.display(), from.display()));
        run(format!("-xmf {} -C {}", file.display(), to.display()));
        assert_eq!(std::fs::read_to_string(to.join("d/deep/file")).unwrap(), "text");
    }
}
