//! What the server tidies up by itself: objects that nobody keeps go an hour after they were last written.

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::Duration;

use api::Verb;
use store::{CommitError, Condition, Op, Store, Txn};
use tokio::time::Instant;

use crate::registry::Registry;
use crate::resource::{Durability, Resource};
use crate::server::ApiServer;

/// How long Events are kept (Kubernetes, kube-apiserver `--event-ttl`).
const LIFETIME: Duration = Duration::from_secs(3600);
/// How often the server looks; an object lives that much longer at most.
const EVERY: Duration = Duration::from_secs(60);
/// Objects deleted in one transaction.
const BATCH: usize = 100;

/// Which revisions are old: revisions at times, oldest first. What was written before the server started counts from
/// the start.
#[derive(Default)]
struct Ages {
    marks: VecDeque<(Instant, u64)>,
    expired: u64,
}

impl Ages {
    /// Notes the newest revision. Returns the revision up to which everything is now older than the lifetime, if that has
    /// moved.
    fn note(&mut self, now: Instant, revision: u64) -> Option<u64> {
        if self.marks.back().is_none_or(|(_, last)| *last < revision) {
            self.marks.push_back((now, revision));
        }
        let before = self.expired;
        while let Some((_, revision)) = self.marks.pop_front_if(|(at, _)| *at + LIFETIME <= now) {
            self.expired = revision;
        }
        (self.expired > before).then_some(self.expired)
    }
}

/// Whether objects of a row go by themselves: those that may be lost in a crash are reports that nobody keeps.
fn expires(resource: &Resource) -> bool {
    resource.durability == Durability::Relaxed && resource.stored_as.is_none()
}

/// Runs until the server is gone.
pub(crate) async fn run(server: Weak<ApiServer>) {
    let mut ages = Ages::default();
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        let Some(server) = server.upgrade() else { return };
        match server.registry.store.current_revision().await {
            Err(store::StoreError::Closed) => return,
            Err(error) => tracing::warn!(%error, "cannot look for expired objects"),
            Ok(revision) => {
                if let Some(expired) = ages.note(Instant::now(), revision) {
                    sweep(&server.registry, expired).await;
                }
            }
        }
    }
}

async fn sweep(registry: &Registry, expired: u64) {
    let rows = registry.resources.current();
    for row in rows.iter().filter(|row| row.allows(Verb::List) && expires(row)) {
        match delete_older(&*registry.store, &row.store_prefix(), expired).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(resource = %row.gvr, count, "expired objects deleted"),
            Err(error) => tracing::warn!(resource = %row.gvr, %error, "expired objects remain"),
        }
    }
}

/// Deletes the objects under a prefix that were last written at a revision or before; the number of them.
async fn delete_older(store: &dyn Store, prefix: &str, expired: u64) -> Result<usize, store::StoreError> {
    let (mut after, mut count) = (None::<String>, 0);
    loop {
        let page = store.range(prefix, after.as_deref(), Some(BATCH), None).await?;
        after = page.entries.last().map(|entry| entry.key.to_string());
        let old = page.entries.iter().filter(|entry| entry.mod_revision <= expired);
        let mut txn = Txn { conditions: Vec::new(), ops: Vec::new(), relaxed: true };
        for entry in old {
            txn.conditions.push((entry.key.to_string(), Condition::ModifiedAt(entry.mod_revision)));
            txn.ops.push((entry.key.to_string(), Op::Delete));
        }
        let size = txn.ops.len();
        if size > 0 {
            match store.commit(txn).await {
                Ok(_) => count += size,
                // One was written meanwhile; the others of the page go next time.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => tracing::warn!(%error, "expired objects remain"),
            }
        }
        if !page.more {
            return Ok(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_grow_old() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut ages = Ages::default();
        assert_eq!(ages.note(at(0), 10), None);
        assert_eq!(ages.note(at(1), 12), None);
        assert_eq!(ages.note(at(59), 12), None);
        assert_eq!(ages.note(at(60), 90), Some(10), "what was there at the start");
        assert_eq!(ages.note(at(60), 90), None);
        assert_eq!(ages.note(at(61), 95), Some(12));
        assert_eq!(ages.note(at(500), 95), Some(95));
    }

    #[tokio::test]
    async fn what_was_written_before_goes() {
        let directory = tempfile::tempdir().unwrap();
        let store = store::EmbeddedStore::open(directory.path(), store::Options::default()).unwrap();
        let put = async |key: String| {
            let ops = vec![(key, Op::Put("{}".into()))];
            store.commit(Txn { conditions: Vec::new(), ops, relaxed: true }).await.unwrap();
        };
        for number in 0..BATCH + 20 {
            put(format!("/registry/core/events/{number:03}")).await;
        }
        put("/registry/core/pods/p".into()).await;
        let expired = store.current_revision().await.unwrap();
        // written again meanwhile
        put("/registry/core/events/007".into()).await;
        put("/registry/core/events/young".into()).await;
        let prefix = "/registry/core/events/";
        assert_eq!(delete_older(&*store, prefix, expired).await.unwrap(), BATCH + 19);
        let left = store.range("/registry/core/", None, None, None).await.unwrap().entries;
        let left: Vec<_> = left.iter().map(|entry| entry.key.rsplit('/').next().unwrap()).collect();
        assert_eq!(left, ["007", "young", "p"]);
        store.close();
    }
}
