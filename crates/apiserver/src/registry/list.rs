//! LIST: pages, selectors and the meaning of resourceVersion (Kubernetes, "API Concepts", semantics for get and list).

use api::{ApiResponse, Status};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use store::Entry;

use super::negotiate::{self, ListMeta, Versioned};
use super::{Call, Registry, codec, store_error, too_large};
use crate::resource::Resource;
use crate::stored::{MetaReader, Selection};

/// How many objects are looked at a time when selectors thin them out.
const CHUNK: usize = 500;

const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
    created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// Where the next page begins: the state it belongs to and the last key of the page before.
#[derive(Serialize, Deserialize)]
struct Continue {
    /// 0 goes on with the state as it is then: what a list that lost its own gets.
    rv: u64,
    start: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("numbers and text are JSON"))
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok();
        let parsed = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        parsed.ok_or_else(|| Status::bad_request("continue key is not valid: the token cannot be read"))
    }
}

/// What was found: objects, the state they belong to, what follows.
pub(crate) struct Found {
    pub(crate) items: Vec<Entry>,
    pub(crate) meta: ListMeta,
}

/// Store key prefix of a row, or of one namespace of it.
pub(crate) fn prefix(resource: &Resource, namespace: &str) -> String {
    let mut prefix = resource.store_prefix();
    if resource.namespaced && !namespace.is_empty() {
        prefix.push_str(namespace);
        prefix.push('/');
    }
    prefix
}

impl Registry {
    pub(crate) async fn list(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let found = self.find(call).await?;
        let items: Vec<Versioned> = found
            .items
            .into_iter()
            .map(|entry| Versioned { value: entry.value, revision: entry.mod_revision })
            .collect();
        negotiate::list(call.resource, call.form, Some(&self.messages), &items, &found.meta)
    }

    /// The selectors of a request, checked against the row.
    pub(crate) fn selection(&self, call: &Call<'_>) -> Result<Selection, Status> {
        let options = &call.request.options;
        let labels = options.label_selector.as_deref().map(codec::label_selector).transpose()?;
        let fields = options.field_selector.as_deref().map(codec::field_selector).transpose()?;
        let selection = Selection { labels: labels.unwrap_or_default(), fields: fields.unwrap_or_default() };
        for (path, _, _) in &selection.fields.terms {
            let known = path == "metadata.name"
                || (path == "metadata.namespace")
                || call.resource.field_paths().any(|(name, _)| name == path);
            if !known {
                return Err(Status::bad_request(format!("field label not supported: {path}")));
            }
        }
        Ok(selection)
    }

    /// The objects that a list selects.
    pub(crate) async fn find(&self, call: &Call<'_>) -> Result<Found, Status> {
        let options = &call.request.options;
        let selection = self.selection(call)?;
        let limit = options.limit.and_then(|limit| usize::try_from(limit).ok());
        let (mut at, mut after) = (self.list_revision(call).await?, None);
        if let Some(token) = &options.continue_token {
            let from = Continue::decode(token)?;
            at = Some(from.rv).filter(|rv| *rv > 0);
            after = Some(from.start);
        }
        let prefix = prefix(call.resource, call.namespace);
        let asked: Option<String> = after.clone();
        let expired = |error| match error {
            store::StoreError::Compacted { .. } if options.continue_token.is_some() => {
                let start = asked.clone().unwrap_or_default();
                let continue_token = Continue { rv: 0, start }.encode();
                Status { continue_token, ..Status::expired(EXPIRED_CONTINUE) }
            }
            other => store_error(other),
        };
        if selection.is_everything() {
            let page = self.store.range(&prefix, after.as_deref(), limit, at).await.map_err(expired)?;
            self.make_readable(call.resource, page.entries.iter().map(|entry| &entry.value)).await?;
            let last = page.entries.last().map(|entry| entry.key.to_string());
            let next = last.filter(|_| page.more).map(|start| Continue { rv: page.revision, start }.encode());
            let remaining = next.is_some().then_some(page.remaining);
            let meta = ListMeta { revision: page.revision, continue_token: next, remaining };
            return Ok(Found { items: page.entries, meta });
        }
        let filter = Filter { resource: call.resource, selection, reader: MetaReader::new(call.resource) };
        let chunk = limit.map(|limit| limit.max(CHUNK));
        let (mut items, mut next) = (Vec::new(), None);
        loop {
            let page = self.store.range(&prefix, after.as_deref(), chunk, at).await.map_err(expired)?;
            self.make_readable(call.resource, page.entries.iter().map(|entry| &entry.value)).await?;
            at = Some(page.revision);
            let more = page.more;
            let count = page.entries.len();
            for (index, entry) in page.entries.into_iter().enumerate() {
                let last = index + 1 == count;
                after = Some(entry.key.to_string());
                if self.selects(&filter, &entry) {
                    items.push(entry);
                }
                if limit == Some(items.len()) && (more || !last) {
                    let start = after.clone().unwrap_or_default();
                    next = Some(Continue { rv: page.revision, start }.encode());
                    break;
                }
            }
            if next.is_some() || !more || count == 0 {
                let meta = ListMeta { revision: page.revision, continue_token: next, remaining: None };
                return Ok(Found { items, meta });
            }
        }
    }

    /// The state that a list asks for; `None` is the newest one.
    async fn list_revision(&self, call: &Call<'_>) -> Result<Option<u64>, Status> {
        let options = &call.request.options;
        let version = options.resource_version.as_deref().unwrap_or_default();
        let matching = options.resource_version_match.as_deref().unwrap_or_default();
        let invalid =
            |error: api::FieldError| Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
        if !matching.is_empty() {
            if options.continue_token.is_some() {
                let detail = "resourceVersionMatch is forbidden when continue is provided";
                return invalid(api::FieldError::forbidden("resourceVersionMatch", detail));
            }
            if version.is_empty() {
                let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return invalid(api::FieldError::forbidden("resourceVersionMatch", detail));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                let supported = ["Exact", "NotOlderThan"];
                return invalid(api::FieldError::not_supported("resourceVersionMatch", matching, &supported));
            }
            if matching == "Exact" && version == "0" {
                let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return invalid(api::FieldError::forbidden("resourceVersionMatch", detail));
            }
        }
        if version.is_empty() || version == "0" {
            return Ok(None);
        }
        if options.continue_token.is_some() {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let revision = parse_revision(version)?;
        let current = self.store.current_revision().await.map_err(store_error)?;
        if revision > current {
            return Err(too_large(revision, current));
        }
        let exact = matching == "Exact" || (matching.is_empty() && options.limit.is_some());
        Ok(exact.then_some(revision))
    }

    fn selects(&self, filter: &Filter<'_>, entry: &Entry) -> bool {
        let cache =
            if filter.resource.stored_as.is_none() { self.caches.existing(filter.resource) } else { None };
        match cache.and_then(|cache| cache.at_revision(&entry.key, entry.mod_revision)) {
            Some(object) => {
                filter.selection.matches(filter.resource, &filter.reader, &entry.key, &object.meta)
            }
            None => {
                let value = filter.value(entry);
                let meta = filter.reader.read(&value);
                filter.selection.matches(filter.resource, &filter.reader, &entry.key, &meta)
            }
        }
    }
}

struct Filter<'a> {
    resource: &'a std::sync::Arc<Resource>,
    selection: Selection,
    reader: MetaReader,
}

impl Filter<'_> {
    /// The bytes as this row shows them: selectable fields may differ between versions.
    fn value(&self, entry: &Entry) -> bytes::Bytes {
        if self.resource.stored_as.is_none() {
            return entry.value.clone();
        }
        let stored = Versioned { value: entry.value.clone(), revision: entry.mod_revision };
        negotiate::bytes(self.resource, &stored).unwrap_or_default()
    }
}

/// A resourceVersion that the client gave.
pub(crate) fn parse_revision(version: &str) -> Result<u64, Status> {
    version.parse().map_err(|_| {
        Status::bad_request(format!("resourceVersion: Invalid value: {version:?}: must be a decimal number"))
    })
}
