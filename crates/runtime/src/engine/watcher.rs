//! Watching a shim: its events as they come, and its end.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;

use super::{Engine, blocking};
use crate::error::RuntimeError;
use crate::spec::{ContainerRecord, ContainerState, RuntimeEventKind};
use crate::wire::{self, Reply, Request};

impl Engine {
    /// Follows a shim until it ends or the engine is dropped.
    pub(super) fn watch_shim(self: &Arc<Self>, id: String, stream: UnixStream) {
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut stream = stream;
            loop {
                let mut events = match into_tokio(stream) {
                    Ok(events) => events,
                    Err(error) => {
                        tracing::error!(%error, sandbox = id, "cannot watch a shim");
                        return;
                    }
                };
                while let Ok(Some(reply)) = read_reply(&mut events).await {
                    let Some(engine) = engine.upgrade() else { return };
                    if let Reply::Changed(record) = reply {
                        engine.learn(*record);
                    }
                }
                let Some(engine) = engine.upgrade() else { return };
                let Some(socket) = engine.watched_socket(&id) else { return };
                // A shim drops a watcher that is too slow; only one that can't be reached is gone.
                match blocking(move || wire::ask(&socket, &Request::Watch)).await {
                    Ok((again, Reply::Snapshot(records), _)) => {
                        records.into_iter().for_each(|record| engine.learn(record));
                        stream = again;
                    }
                    Ok(_) | Err(_) => return engine.lost(&id).await,
                }
            }
        });
    }

    /// The socket of a sandbox that is meant to live.
    fn watched_socket(&self, id: &str) -> Option<std::path::PathBuf> {
        let state = self.state();
        let sandbox = state.sandboxes.get(id).filter(|sandbox| !sandbox.leaving)?;
        Some(sandbox.socket())
    }

    /// Takes a container's record into the books and tells of what is new in it. Removed containers don't come back.
    pub(super) fn learn(&self, record: ContainerRecord) {
        let (id, sandbox_id, state) =
            (record.status.id.clone(), record.status.sandbox_id.clone(), record.status.state);
        let before = {
            let mut books = self.state();
            if books.removed.contains(&id) {
                return;
            }
            books.containers.insert(id.clone(), record).map(|old| old.status.state)
        };
        self.bump();
        if before != Some(state) {
            match state {
                ContainerState::Created => {}
                ContainerState::Running => self.publish(&sandbox_id, Some(&id), RuntimeEventKind::Started),
                ContainerState::Exited => self.publish(&sandbox_id, Some(&id), RuntimeEventKind::Exited),
            }
        }
    }
}

pub(super) fn into_tokio(stream: UnixStream) -> Result<tokio::net::UnixStream, RuntimeError> {
    stream.set_nonblocking(true)?;
    Ok(tokio::net::UnixStream::from_std(stream)?)
}

/// The next frame; `None` at the end.
pub(super) async fn read_reply(stream: &mut tokio::net::UnixStream) -> Result<Option<Reply>, RuntimeError> {
    let mut prefix = [0u8; 4];
    match stream.read_exact(&mut prefix).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut json = vec![0; wire::frame_length(prefix)?];
    stream.read_exact(&mut json).await?;
    wire::decode(&json).map(Some)
}
