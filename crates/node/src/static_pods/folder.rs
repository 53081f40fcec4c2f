//! The folder of manifests: read whole whenever one of its files comes, goes or was rewritten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};

use super::manifest;
use crate::notify::{Changed, FileChanges};

/// Before a folder that cannot be made or watched is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What is known of each file.
#[derive(Default)]
struct Known {
    pods: BTreeMap<PathBuf, core::Pod>,
    /// Files and what was said about them: each complaint is made once.
    complaints: BTreeSet<(PathBuf, String)>,
}

/// Tells of all static pods whenever they have changed, until `stop` turns true. The first list comes in any case.
pub(crate) async fn follow(
    folder: PathBuf,
    node: String,
    clock: Arc<dyn Clock>,
    pods: mpsc::UnboundedSender<Vec<core::Pod>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut known = Known::default();
    loop {
        // Watched before it is read: nothing in between is missed.
        let watched = std::fs::create_dir_all(&folder).and_then(|()| FileChanges::finished(&folder));
        if let Err(error) = &watched {
            tracing::warn!(folder = %folder.display(), %error, "cannot watch the folder of static pods");
        }
        loop {
            known.read(&folder, &node, clock.now());
            if pods.send(known.pods.values().cloned().collect()).is_err() {
                return;
            }
            let change = async {
                match &watched {
                    Ok(changes) => changes.next().await.unwrap_or(Changed::Gone),
                    Err(_) => {
                        clock.sleep(RETRY).await;
                        Changed::Gone
                    }
                }
            };
            tokio::select! {
                changed = change => if changed == Changed::Gone { break },
                () = crate::agent::stopped(&mut stop) => return,
            }
        }
    }
}

impl Known {
    /// A file that became unreadable keeps its pod: a slip of the pen stops nothing that runs.
    fn read(&mut self, folder: &Path, node: &str, now: Timestamp) {
        let files = files(folder);
        self.pods.retain(|path, _| files.contains(path));
        let mut complaints = BTreeSet::new();
        for path in files {
            let text = std::fs::read_to_string(&path).map_err(|e| e.to_string());
            let name = path.display().to_string();
            let read = text.and_then(|t| manifest::read(&name, &t, node, now).map_err(|e| e.to_string()));
            let complaint = match read {
                Ok(pod) => self.take(&path, pod).err(),
                Err(error) => Some(error),
            };
            complaints.extend(complaint.map(|complaint| (path, complaint)));
        }
        for (path, error) in complaints.difference(&self.complaints) {
            tracing::warn!(file = %path.display(), %error, "no static pod is made of this file");
        }
        self.complaints = complaints;
    }

    fn take(&mut self, path: &Path, pod: core::Pod) -> Result<(), String> {
        let named = |p: &core::Pod| (p.metadata.namespace.clone(), p.metadata.name.clone());
        let other = self.pods.iter().find(|(file, other)| *file != path && named(other) == named(&pod));
        if let Some((file, _)) = other {
            return Err(format!("{} holds a pod of the same name", file.display()));
        }
        // The time at which it was seen stays while it is the same.
        if self.pods.get(path).is_none_or(|before| before.metadata.uid != pod.metadata.uid) {
            self.pods.insert(path.to_owned(), pod);
        }
        Ok(())
    }
}

/// Files that are not hidden, in the order of their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let shown = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let mut files: Vec<PathBuf> = shown.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use client::SystemClock;

    use super::*;

    fn manifest(name: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: a, image: a}}]}}}}"
        )
    }

    #[tokio::test]
    async fn files_that_come_change_and_go_are_noticed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("manifests");
        let (sender, mut lists) = mpsc::unbounded_channel();
        let (_keep, stop) = watch::channel(false);
        let follow = follow(folder.clone(), "n".into(), Arc::new(SystemClock::default()), sender, stop);
        let task = tokio::spawn(follow);
        // Names once they are as wanted: some changes come in two parts.
        let mut until = async |wanted: &[&str]| {
            let wait = async {
                loop {
                    let list = lists.recv().await.unwrap();
                    let names: Vec<_> = list.into_iter().filter_map(|pod| pod.metadata.name).collect();
                    if names == wanted {
                        return;
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(10), wait)
                .await
                .unwrap_or_else(|_| panic!("{wanted:?}"));
        };
        until(&[]).await;
        std::fs::write(folder.join("a.yaml"), manifest("a")).unwrap();
        until(&["a-n"]).await;
        std::fs::write(folder.join(".hidden"), manifest("h")).unwrap();
        std::fs::write(folder.join("b.yaml"), manifest("a")).unwrap();
        std::fs::write(place.path().join("c"), manifest("c")).unwrap();
        std::os::unix::fs::symlink(place.path().join("c"), folder.join("c.yaml")).unwrap();
        until(&["a-n", "c-n"]).await;
        std::fs::write(folder.join("a.yaml"), "broken: [").unwrap();
        std::fs::rename(place.path().join("c"), folder.join("d.yaml")).unwrap();
        until(&["a-n", "c-n"]).await;
        std::fs::remove_file(folder.join("a.yaml")).unwrap();
        until(&["a-n", "c-n"]).await;
        std::fs::remove_dir_all(&folder).unwrap();
        until(&[]).await;
        std::fs::write(folder.join("e.yaml"), manifest("e")).unwrap();
        until(&["e-n"]).await;
        task.abort();
    }
}
