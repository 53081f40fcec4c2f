//! `podium image`: container images on this machine, with or without a running agent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::cli::outln;
use crate::config::Paths;

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Import docker archives or OCI layouts (tar files, may be gzipped)
    Import {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
        /// The archives
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List the images
    Ls {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
    },
}

/// # Errors
/// When an archive is broken or the data directory can't be read or written.
pub(crate) fn run(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Import { data_dir, files } => {
            let paths = Paths::create(data_dir)?;
            files.iter().try_for_each(|file| import(&paths, file))
        }
        ImageCommand::Ls { data_dir } => list(&Paths::existing(data_dir)?),
    }
}

fn import(paths: &Paths, file: &Path) -> Result<()> {
    let images = runtime::import_image(&paths.engine()?, file)
        .with_context(|| format!("cannot import {}", file.display()))?;
    for image in images {
        outln(&format!("imported {} {}", names(&image), image.id));
    }
    Ok(())
}

fn list(paths: &Paths) -> Result<()> {
    for image in runtime::list_images(&paths.engine()?).context("cannot list the images")? {
        outln(&format!("{} {} {} bytes", names(&image), image.id, image.size_bytes));
    }
    Ok(())
}

fn names(image: &runtime::ImageInfo) -> String {
    let names: Vec<&str> = image.repo_tags.iter().chain(&image.repo_digests).map(String::as_str).collect();
    if names.is_empty() { "<none>".into() } else { names.join(",") }
}
