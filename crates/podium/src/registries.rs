//! `registries.yaml` in the data directory: mirrors, authorities and credentials of image registries.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The file; it is read at every pull, so that a change needs no restart.
#[derive(Clone, Debug)]
pub(crate) struct RegistriesFile(pub(crate) PathBuf);

impl RegistriesFile {
    /// # Errors
    /// When the file is there but can't be read, or says something that has no meaning.
    pub(crate) fn read(&self) -> Result<runtime::Registries> {
        let text = match std::fs::read_to_string(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(runtime::Registries::default());
            }
            text => text.with_context(|| format!("cannot read {}", self.0.display()))?,
        };
        if text.trim().is_empty() {
            return Ok(runtime::Registries::default());
        }
        serde_yaml_ng::from_str(&text).with_context(|| format!("{} is wrong", self.0.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_may_be_missing_but_not_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = RegistriesFile(dir.path().join("registries.yaml"));
        assert_eq!(file.read().unwrap(), runtime::Registries::default());
        let text = "mirrors:\n  docker.io:\n    endpoint: [\"http://here:5000\"]\nconfigs:\n  here:5000:\n    auth: {username: u, password: p}\n";
        std::fs::write(&file.0, text).unwrap();
        let read = file.read().unwrap();
        assert_eq!(read.mirrors["docker.io"].endpoints, ["http://here:5000"]);
        assert!(read.configs["here:5000"].auth.is_some());
        std::fs::write(&file.0, "mirors: {}\n").unwrap();
        assert!(format!("{:#}", file.read().unwrap_err()).contains("mirors"));
    }
}
