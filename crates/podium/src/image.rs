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
    /// Pull an image from its registry, with what registries.yaml in the data directory says
    Pull {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
        /// User of the registry; the password is read from standard input
        #[arg(long, value_name = "NAME")]
        username: Option<String>,
        /// The image, e.g. docker.io/library/nginx:1.29
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// Remove images by name, or with all their names by id
    Rm {
        /// Where the cluster's data lives
        #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
        data_dir: PathBuf,
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
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
        ImageCommand::Pull { data_dir, username, image } => {
            pull(&Paths::create(data_dir)?, username.as_deref(), image)
        }
        ImageCommand::Rm { data_dir, images } => {
            let engine = Paths::existing(data_dir)?.engine()?;
            images.iter().try_for_each(|image| {
                runtime::remove_image(&engine, image).with_context(|| format!("cannot remove {image}"))?;
                outln(&format!("removed {image}"));
                Ok(())
            })
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

fn pull(paths: &Paths, username: Option<&str>, image: &str) -> Result<()> {
    let credential = username.map(|username| {
        let mut password = String::new();
        std::io::stdin().read_line(&mut password).context("cannot read the password")?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        anyhow::Ok(runtime::Credential { username: username.to_owned(), password })
    });
    let spec = runtime::PullSpec {
        reference: image.to_owned(),
        credentials: credential.transpose()?.into_iter().collect(),
        registries: paths.registries().read()?,
    };
    let engine = paths.engine()?;
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let pulled = executor.context("cannot start")?.block_on(async {
        let (sender, mut seen) = tokio::sync::watch::channel(runtime::PullProgress::default());
        let told = tokio::spawn(async move {
            let mut layers_done = 0;
            while seen.changed().await.is_ok() {
                let now = *seen.borrow_and_update();
                if now.layers_done > layers_done {
                    layers_done = now.layers_done;
                    outln(&format!(
                        "{layers_done} of {} layers, {} of {} bytes",
                        now.layers, now.bytes_done, now.bytes
                    ));
                }
            }
        });
        let pulled = runtime::pull_image(&engine, spec, sender).await;
        told.await.context("cannot report progress")?;
        pulled.with_context(|| format!("cannot pull {image}"))
    })?;
    outln(&format!("pulled {} {}", names(&pulled), pulled.id));
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
