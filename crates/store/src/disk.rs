//! What the store needs of a file system, and the real one.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// One directory of files.
pub trait Disk: Send + Sync + 'static {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates an empty file, or empties one, to append to.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Opens a file to read it from the beginning.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;
    /// Cuts a file down to `length` bytes and syncs it.
    fn truncate(&self, name: &str, length: u64) -> io::Result<()>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file that is being appended to.
pub trait File: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all appended bytes durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the host, locked against a second process as long as this lives.
pub struct RealDisk {
    path: PathBuf,
    _lock: fs::File,
}

const LOCK_FILE: &str = "lock";

impl RealDisk {
    /// Opens a directory (readable by its owner only when it is made) and locks it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds the lock.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            use std::os::unix::fs::DirBuilderExt as _;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            if let Some(parent) = path.canonicalize()?.parent() {
                fs::File::open(parent)?.sync_all()?;
            }
        }
        let lock =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK_FILE))?;
        lock.try_lock()?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| name != LOCK_FILE));
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(self.path.join(name))?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::BufReader::with_capacity(1 << 18, fs::File::open(self.path.join(name))?)))
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.path.join(name))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}
