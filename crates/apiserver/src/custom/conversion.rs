//! Objects from one version of their kind into another: by changing `apiVersion` alone, or by a webhook.
//!
//! ```text
//!   stored bytes ──prepare (asks the webhook for all of them at once)──▶ known ──read──▶ object of the row's version
//! ```
//!
//! Reading is synchronous and everywhere; asking is not. So whoever has taken bytes from the store prepares them, and
//! what the webhook gave is kept for those who read the same bytes later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{Object, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::callout::{Network, Webhook};
use crate::registry::{Registry, meta};
use crate::resource::Resource;
use crate::stored;

const GROUP: &str = "apiextensions.k8s.io";
const TIMEOUT: Duration = Duration::from_secs(30);
/// What is kept of answers, per version.
const MOST_BYTES: usize = 32 << 20;

/// The way of one version's objects through a conversion webhook.
pub struct Conversion {
    webhook: Webhook,
    review_version: String,
    known: Mutex<Known>,
}

/// Stored bytes in other versions and what became of them.
#[derive(Default)]
struct Known {
    converted: HashMap<Bytes, Bytes>,
    order: VecDeque<Bytes>,
    size: usize,
}

impl Known {
    fn insert(&mut self, stored: Bytes, converted: Bytes) {
        let size = stored.len() + converted.len();
        if self.converted.insert(stored.clone(), converted).is_some() {
            return;
        }
        self.size += size;
        self.order.push_back(stored);
        while self.size > MOST_BYTES && self.order.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            let gone = self.converted.remove(&oldest).map_or(0, |converted| converted.len());
            self.size -= oldest.len() + gone;
        }
    }
}

/// The `apiVersion` that stored bytes begin with.
fn version_of(stored: &[u8]) -> &[u8] {
    const START: &[u8] = b"{\"apiVersion\":\"";
    let rest = stored.strip_prefix(START).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b'"').unwrap_or(rest.len());
    &rest[..end]
}

impl Conversion {
    /// Reads a definition's `conversion`; `None` when no webhook is asked.
    pub(super) fn of(conversion: &Value) -> Option<Self> {
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        let known = versions.filter_map(Value::as_str).find(|version| matches!(*version, "v1" | "v1beta1"));
        Some(Self {
            webhook: Webhook::of(&webhook["clientConfig"]),
            review_version: known.unwrap_or("v1").to_owned(),
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stored bytes in a row's version.
    ///
    /// # Errors
    /// When nobody has prepared them.
    pub(crate) fn converted(&self, row: &Resource, stored: &Bytes) -> Result<Bytes, Status> {
        if version_of(stored) == row.api_version().as_bytes() {
            return Ok(stored.clone());
        }
        let found = self.known().converted.get(stored).cloned();
        found.ok_or_else(|| {
            Status::unavailable(format!("an object is not converted to {} yet", row.api_version()))
        })
    }

    /// Asks for everything that is not in the row's version and not known yet, at once.
    ///
    /// # Errors
    /// When the webhook does not answer, or nonsense.
    pub(crate) async fn prepare(
        &self,
        network: &Network,
        row: &Resource,
        stored: impl IntoIterator<Item = &Bytes>,
    ) -> Result<(), Status> {
        let version = row.api_version();
        let mut wanted: Vec<Bytes> = Vec::new();
        {
            let known = self.known();
            let strange = |value: &&Bytes| {
                version_of(value) != version.as_bytes() && !known.converted.contains_key(*value)
            };
            for value in stored.into_iter().filter(strange) {
                if !wanted.contains(value) {
                    wanted.push(value.clone());
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let objects = wanted.iter().map(|value| stored::decode(value, 0)).collect::<Result<Vec<_>, _>>()?;
        let converted = self.convert(network, objects, &version, &row.kind).await?;
        let mut known = self.known();
        for (value, object) in wanted.into_iter().zip(converted) {
            known.insert(value, stored::encode(&object));
        }
        Ok(())
    }

    /// Objects in another version.
    ///
    /// # Errors
    /// When the webhook does not answer, or nonsense.
    async fn convert(
        &self,
        network: &Network,
        objects: Vec<Object>,
        version: &str,
        kind: &str,
    ) -> Result<Vec<Object>, Status> {
        let failed = |why: String| {
            let from = objects.first().map(|object| object.str(&["apiVersion"])).unwrap_or_default();
            Status::internal(format!("conversion webhook for {from}, Kind={kind} failed: {why}"))
        };
        let uid = meta::uuid();
        let trees: Vec<Value> = objects.iter().map(|object| Value::Object(object.0.clone())).collect();
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("{GROUP}/{}", self.review_version),
            "request": {"uid": uid, "desiredAPIVersion": version, "objects": trees},
        });
        let answer = self.webhook.call(network, &review, TIMEOUT).await;
        let mut answer = answer.map_err(|error| failed(error.reason))?;
        let list = self.check(&mut answer, &uid).map_err(failed)?;
        if list.len() != objects.len() {
            return Err(failed(format!("returned {} objects, expected {}", list.len(), objects.len())));
        }
        let pairs = list.into_iter().zip(&objects).enumerate();
        pairs
            .map(|(index, (converted, original))| {
                settle(converted, original, version).map_err(|why| {
                    failed(format!("returned invalid converted object at index {index}: {why}"))
                })
            })
            .collect()
    }

    /// The objects of an answer.
    fn check(&self, answer: &mut Value, uid: &str) -> Result<Vec<Value>, String> {
        let want = format!("{GROUP}/{}", self.review_version);
        if self.review_version == "v1"
            && (answer["kind"] != "ConversionReview" || answer["apiVersion"] != want.as_str())
        {
            return Err(format!("expected webhook response of {want}, Kind=ConversionReview"));
        }
        let response = &mut answer["response"];
        if !response.is_object() {
            return Err("no response provided".to_owned());
        }
        if self.review_version == "v1" && response["uid"] != uid {
            return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
        }
        let result = &response["result"];
        if result["status"] != "Success" {
            let message = result["message"].as_str().unwrap_or_default();
            let status = result["status"].as_str().unwrap_or_default();
            let usual = || format!("response.result.status was '{status}', not 'Success'");
            return Err(if message.is_empty() { usual() } else { message.to_owned() });
        }
        match response["convertedObjects"].take() {
            Value::Array(list) => Ok(list),
            _ => Ok(Vec::new()),
        }
    }
}

/// A converted object: the same object as the original, in the version that was asked for. Of its metadata a webhook
/// changes labels and annotations alone.
fn settle(converted: Value, original: &Object, version: &str) -> Result<Object, String> {
    let mut object = Object::from_value(converted).ok_or("it is no object")?;
    let pairs = [
        ("groupVersion", version, object.str(&["apiVersion"])),
        ("kind", original.str(&["kind"]), object.str(&["kind"])),
        ("name", original.name(), object.name()),
        ("namespace", original.namespace(), object.namespace()),
        ("UID", original.uid(), object.uid()),
    ];
    if let Some((what, want, is)) = pairs.into_iter().find(|(_, want, is)| want != is) {
        return Err(format!("invalid {what} (expected {want}, received {is})"));
    }
    let mut metadata = original.get(&["metadata"]).cloned().unwrap_or_else(|| json!({}));
    if let Value::Object(metadata) = &mut metadata {
        for name in ["labels", "annotations"] {
            match object.get(&["metadata", name]) {
                Some(value) => metadata.insert(name.to_owned(), value.clone()),
                None => metadata.remove(name),
            };
        }
    }
    object.set(&["metadata"], metadata);
    Ok(object)
}

impl Registry {
    /// The way to webhooks.
    pub(crate) fn network(&self) -> Network {
        Network::new(&self.store, &self.resources)
    }

    /// Makes stored bytes readable as objects of a row. Nothing to do for most rows.
    ///
    /// # Errors
    /// When a webhook that is needed fails.
    pub(crate) async fn make_readable(
        &self,
        row: &Resource,
        stored: impl IntoIterator<Item = &Bytes>,
    ) -> Result<(), Status> {
        match row.strategy.conversion() {
            None => Ok(()),
            Some(conversion) => conversion.prepare(&self.network(), row, stored).await,
        }
    }

    /// An object of one row as an object of another row that shows the same stored objects.
    ///
    /// # Errors
    /// When it cannot be converted.
    pub(crate) async fn convert(
        &self,
        mut object: Object,
        from: &Resource,
        to: &Resource,
    ) -> Result<Object, Status> {
        if let Some(conversion) = to.strategy.conversion() {
            let converted =
                conversion.convert(&self.network(), vec![object], &to.api_version(), &to.kind).await?;
            object = converted.into_iter().next().unwrap_or_default();
        } else {
            from.strategy.to_stored(&mut object);
        }
        to.strategy.from_stored(&mut object);
        object.set(&["apiVersion"], to.api_version());
        object.set(&["kind"], to.kind.clone());
        Ok(object)
    }

    /// An object as it is stored when a webhook converts it; the stored bytes are then known to be this object.
    ///
    /// # Errors
    /// When it cannot be converted.
    pub(crate) async fn encode_by(
        &self,
        conversion: &Conversion,
        row: &Resource,
        object: Object,
    ) -> Result<Bytes, Status> {
        let version = row.stored_as.as_ref().map_or_else(|| row.api_version(), |gvr| gvr.api_version());
        let own = stored::encode(&object);
        if version == row.api_version() {
            return Ok(own);
        }
        let converted = conversion.convert(&self.network(), vec![object], &version, &row.kind).await?;
        let converted = converted.into_iter().next().unwrap_or_default();
        let value = stored::encode(&converted);
        conversion.known().insert(value.clone(), own);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_change_no_identity() {
        let original = |name: &str| {
            let tree = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": name, "uid": "u", "labels": {"a": "b"}, "finalizers": ["x/y"]}});
            Object::from_value(tree).unwrap()
        };
        let converted = |version: &str, name: &str| json!({"apiVersion": version, "kind": "K", "metadata": {"name": name, "uid": "u", "labels": {"c": "d"}}, "new": 1});
        let settled = settle(converted("g/v2", "n"), &original("n"), "g/v2").unwrap();
        assert_eq!(
            settled.0["metadata"],
            json!({"name": "n", "uid": "u", "labels": {"c": "d"}, "finalizers": ["x/y"]})
        );
        for (version, name, why) in [
            ("g/v3", "n", "invalid groupVersion (expected g/v2, received g/v3)"),
            ("g/v2", "m", "invalid name (expected n, received m)"),
        ] {
            assert_eq!(settle(converted(version, name), &original("n"), "g/v2").unwrap_err(), why);
        }
    }

    #[test]
    fn little_is_kept_of_much() {
        let mut known = Known::default();
        let big = |byte: u8| Bytes::from(vec![byte; MOST_BYTES / 3]);
        for byte in 0..3 {
            known.insert(big(byte), Bytes::from_static(b"x"));
        }
        assert_eq!((known.converted.len(), known.order.len()), (2, 2));
        assert!(known.converted.contains_key(&big(2)) && known.size <= MOST_BYTES);
        assert_eq!(version_of(b"{\"apiVersion\":\"g/v1\",\"kind\":\"K\"}"), b"g/v1");
    }
}
