//! ResourceQuota: what a write takes of what its namespace is allowed is charged in the write's own commit.
//!
//! ```text
//!   /podium/quota/allowances/NS   what the namespace's quotas allow; written with each ResourceQuota
//!   /podium/quota/used/NS         what is taken of it; written with each object that takes or frees a share
//! ```
//!
//! Every commit in a namespace holds the first key still (or absent), and every commit that takes or frees something
//! holds the second one. So nothing is let in against a quota that it has not seen, and no use is counted twice or not
//! at all. A quota's use is counted from the objects when it is charged for the first time: whoever could change what
//! is counted meanwhile would have to change the second key. The status of a ResourceQuota is only a picture of this,
//! which a controller paints.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use api::quota::{Allowance, Measured, Usage};
use api::{GroupVersionResource, Object, Quantity, Status};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use crate::registry::Registry;
use crate::registry::meta;
use crate::resource::{Change, Expect, Extension, PrivateEntry, Reader, Resource, WriteContext};

/// Namespaces share this many locks.
const LOCKS: usize = 64;

/// Lets the writers of one namespace queue up instead of undoing each other's commits. The commit's conditions decide.
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    async fn take(&self, namespace: &str) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::new().hash_one(namespace);
        let index = usize::try_from(hash % self.0.len() as u64).unwrap_or(0);
        self.0[index].lock().await
    }
}

/// A quota as the first key has it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
struct Quota {
    /// New with every change: what was counted under another one is void.
    version: String,
    allowance: Allowance,
}

/// A quota's use as the second key has it.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Used {
    version: String,
    amounts: BTreeMap<String, String>,
}

impl Used {
    fn usage(&self) -> Usage {
        let parsed = self.amounts.iter().filter_map(|(name, text)| {
            let amount = Quantity::parse(text).ok()?;
            Some((name.clone(), amount))
        });
        parsed.collect()
    }
}

fn allowances_key(namespace: &str) -> String {
    format!("/podium/quota/allowances/{namespace}")
}

fn used_key(namespace: &str) -> String {
    format!("/podium/quota/used/{namespace}")
}

fn decode<T: DeserializeOwned + Default>(entry: Option<&PrivateEntry>) -> Result<T, Status> {
    entry.map_or_else(
        || Ok(T::default()),
        |entry| serde_json::from_slice(&entry.value).map_err(Status::internal),
    )
}

fn expectation(entry: Option<&PrivateEntry>) -> Expect {
    entry.map_or(Expect::Absent, |entry| Expect::ModifiedAt(entry.revision))
}

fn encode(value: &impl Serialize) -> Result<bytes::Bytes, Status> {
    serde_json::to_vec(value).map(Into::into).map_err(Status::internal)
}

/// Keeps the namespace's allowances in step with a ResourceQuota that is written or goes away.
pub(crate) async fn define(
    cx: &WriteContext<'_>,
    change: Change<'_>,
    extension: &mut Extension,
) -> Result<(), Status> {
    let (quota, allowance) = match change {
        Change::Create(quota) => (&*quota, Some(allowance_of(quota))),
        Change::Update { new, .. } => (&*new, Some(allowance_of(new))),
        Change::Delete(quota) => (quota, None),
    };
    let key = allowances_key(quota.namespace());
    let entry = cx.reader.private(&key).await?;
    let before: BTreeMap<String, Quota> = decode(entry.as_ref())?;
    let mut after = before.clone();
    match allowance {
        Some(allowance) if after.get(quota.name()).is_some_and(|known| known.allowance == allowance) => {}
        Some(allowance) => {
            after.insert(quota.name().to_owned(), Quota { version: meta::uuid(), allowance });
        }
        None => drop(after.remove(quota.name())),
    }
    if after == before {
        return Ok(());
    }
    extension.expect(&key, expectation(entry.as_ref()));
    if after.is_empty() {
        extension.release(&key);
        extension.release(&used_key(quota.namespace()));
    } else {
        extension.ops.push((key, Some(encode(&after)?)));
    }
    Ok(())
}

fn allowance_of(quota: &Object) -> Allowance {
    Allowance::of(quota.get(&["spec"]).unwrap_or(&serde_json::Value::Null))
}

/// Group and resource under which the objects of a row are stored, and so counted.
fn counted_as(resource: &Resource) -> &GroupVersionResource {
    resource.stored_as.as_ref().unwrap_or(&resource.gvr)
}

fn measure(resource: &Resource, object: &Object) -> Measured {
    let gvr = counted_as(resource);
    Measured::of(&gvr.group, &gvr.resource, &serde_json::Value::Object(object.0.clone()))
}

/// Charges a write to the quotas of its namespace, or refuses it. To be held until the commit.
pub(crate) async fn charge<'a>(
    registry: &'a Registry,
    resource: &Resource,
    (new, old): (Option<&Object>, Option<&Object>),
    extension: &mut Extension,
) -> Result<Option<MutexGuard<'a, ()>>, Status> {
    let Some(object) = new.or(old).filter(|_| resource.namespaced) else { return Ok(None) };
    let namespace = object.namespace();
    let key = allowances_key(namespace);
    if registry.private(&key).await?.is_none() {
        hold(extension, &key, Expect::Absent);
        return Ok(None);
    }
    let measured = |object: Option<&Object>| object.map(|object| measure(resource, object));
    let (before, after) = (measured(old), measured(new));
    if before == after {
        return Ok(None);
    }
    let turn = registry.turns.take(namespace).await;
    let entry = registry.private(&key).await?;
    hold(extension, &key, expectation(entry.as_ref()));
    let quotas: BTreeMap<String, Quota> = decode(entry.as_ref())?;
    let write = Charge { registry, resource, object, namespace, before, after };
    write.book(&quotas, new.filter(|_| old.is_none()), extension).await?;
    Ok(Some(turn))
}

/// Adds a condition unless there is one for the key: a strategy that writes it has set a stronger one.
fn hold(extension: &mut Extension, key: &str, expect: Expect) {
    if !extension.conditions.iter().any(|(held, _)| held == key) {
        extension.expect(key, expect);
    }
}

/// One write, as quotas see it.
struct Charge<'a> {
    registry: &'a Registry,
    resource: &'a Resource,
    object: &'a Object,
    namespace: &'a str,
    before: Option<Measured>,
    after: Option<Measured>,
}

impl Charge<'_> {
    /// Writes the new use of every quota that is touched.
    async fn book(
        &self,
        quotas: &BTreeMap<String, Quota>,
        created: Option<&Object>,
        extension: &mut Extension,
    ) -> Result<(), Status> {
        let key = used_key(self.namespace);
        if extension.ops.iter().any(|(written, _)| *written == key) {
            return Ok(());
        }
        let entry = self.registry.private(&key).await?;
        let mut all: BTreeMap<String, Used> = decode(entry.as_ref())?;
        all.retain(|name, used| quotas.get(name).is_some_and(|quota| quota.version == used.version));
        let mut touched = false;
        for (name, quota) in quotas {
            let share =
                |of: &Option<Measured>| of.as_ref().map(|of| quota.allowance.share(of)).unwrap_or_default();
            let (freed, taken) = (share(&self.before), share(&self.after));
            if let Some(pod) = created.filter(|_| !taken.is_empty()) {
                self.check_said(name, quota, pod)?;
            }
            if freed == taken {
                continue;
            }
            touched = true;
            let grows = taken.iter().any(|(name, amount)| freed.get(name).is_none_or(|freed| amount > freed));
            let used = match all.get(name) {
                Some(used) => used.usage(),
                None if grows => self.count(&quota.allowance).await?,
                // Counted when somebody wants more.
                None => continue,
            };
            let amounts = self.settle(name, &quota.allowance, used, &freed, &taken)?;
            let amounts = amounts.into_iter().map(|(name, amount)| (name, amount.to_string())).collect();
            all.insert(name.clone(), Used { version: quota.version.clone(), amounts });
        }
        if touched {
            hold(extension, &key, expectation(entry.as_ref()));
            extension.ops.push((key, Some(encode(&all)?)));
        }
        Ok(())
    }

    fn refusal(&self, why: &str) -> Status {
        let gvr = &self.resource.gvr;
        Status::forbidden(&gvr.group, &gvr.resource, self.object.name(), why)
    }

    fn check_said(&self, name: &str, quota: &Quota, pod: &Object) -> Result<(), Status> {
        let gvr = counted_as(self.resource);
        let Some(measured) = self.after.as_ref().filter(|_| gvr.group.is_empty() && gvr.resource == "pods")
        else {
            return Ok(());
        };
        let pod = serde_json::Value::Object(pod.0.clone());
        match quota.allowance.unsaid(&pod, measured) {
            Some(why) => Err(self.refusal(&format!("failed quota: {name}: {why}"))),
            None => Ok(()),
        }
    }

    /// The use after the write; refused where it grows beyond what is allowed.
    fn settle(
        &self,
        name: &str,
        allowance: &Allowance,
        used: Usage,
        freed: &Usage,
        taken: &Usage,
    ) -> Result<Usage, Status> {
        let mut after = used.clone();
        let (mut wanted, mut had, mut limits) = (Vec::new(), Vec::new(), Vec::new());
        for resource in taken.keys().chain(freed.keys().filter(|name| !taken.contains_key(*name))) {
            let of = |usage: &Usage| usage.get(resource).copied().unwrap_or_default();
            let more = of(taken) - of(freed);
            let sum = of(&used) + more;
            let hard = allowance.hard.get(resource).and_then(|text| Quantity::parse(text).ok());
            if let Some(hard) = hard.filter(|hard| !more.is_negative() && !more.is_zero() && sum > *hard) {
                wanted.push(format!("{resource}={more}"));
                had.push(format!("{resource}={}", of(&used)));
                limits.push(format!("{resource}={hard}"));
            }
            after.insert(resource.clone(), sum.max(Quantity::ZERO));
        }
        if wanted.is_empty() {
            return Ok(after);
        }
        Err(self.refusal(&format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            wanted.join(","),
            had.join(","),
            limits.join(",")
        )))
    }

    /// What the objects in the namespace take now.
    async fn count(&self, allowance: &Allowance) -> Result<Usage, Status> {
        let mut sum = Usage::new();
        let rows = self.registry.resources.current();
        let mut counted: Vec<&GroupVersionResource> = Vec::new();
        for row in rows.iter().filter(|row| row.namespaced && row.stored_as.is_none()) {
            let gvr = &row.gvr;
            let again = counted.iter().any(|c| c.group == gvr.group && c.resource == gvr.resource);
            if again || !allowance.is_about(&gvr.group, &gvr.resource) {
                continue;
            }
            counted.push(gvr);
            for object in Reader::list(self.registry, gvr, Some(self.namespace)).await? {
                for (name, amount) in allowance.share(&measure(row, &object)) {
                    api::quota::add(&mut sum, name, amount);
                }
            }
        }
        Ok(sum)
    }
}
