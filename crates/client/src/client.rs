//! The client: requests as data over a transport.

use std::sync::Arc;

use api::metrics::Metrics;
use api::{
    ApiRequest, ApiResponse, Body, ContentType, GroupVersionResource, Object, ObjectKey, PatchType,
    RequestOptions, ResponseBody, Status, Verb, WatchStream,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;

use crate::clock::{Clock, SystemClock};
use crate::kind::{Kind, List, decode_error, decode_list};
use crate::meter::RequestMeter;

/// Carries one request to an API server: in process, over HTTP, or through a simulator.
pub trait Transport: Send + Sync + 'static {
    fn call(&self, request: ApiRequest) -> BoxFuture<'_, Result<ApiResponse, Status>>;

    /// The server's host and port, for metrics; the word for none when it is in this process.
    fn host(&self) -> &str {
        "in-process"
    }
}

/// Speaks to the API under one identity (that of its transport). Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: Arc<str>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    requests: RequestMeter,
}

impl Client {
    /// A client on the machine's clock.
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Client {
        Self::with_clock(transport, user_agent, Arc::new(SystemClock::default()))
    }

    /// A client whose informers and runners take their time from `clock`.
    pub fn with_clock(transport: Arc<dyn Transport>, user_agent: &str, clock: Arc<dyn Clock>) -> Client {
        let metrics = Metrics::default();
        let requests = RequestMeter::new(&metrics);
        Self { transport, user_agent: user_agent.into(), clock, metrics, requests }
    }

    /// The same client, which counts on that page, as everything built on it.
    #[must_use]
    pub fn with_metrics(self, metrics: &Metrics) -> Client {
        Self { requests: RequestMeter::new(metrics), metrics: Arc::clone(metrics), ..self }
    }

    /// Where everything built on this client counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The clock of everything built on this client.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Sends any request.
    pub async fn call(&self, mut request: ApiRequest) -> Result<ApiResponse, Status> {
        if request.user_agent.is_empty() {
            request.user_agent = self.user_agent.to_string();
        }
        let (verb, begun) = (request.verb, self.clock.monotonic());
        let answer = self.transport.call(request).await;
        let took = self.clock.monotonic().saturating_sub(begun);
        self.requests.note(verb, self.transport.host(), took, &answer);
        answer
    }

    /// Reads one object.
    pub async fn get<T: Kind>(&self, key: &ObjectKey) -> Result<T, Status> {
        decode(&self.bytes(request(Verb::Get, &T::gvr(), key, None)).await?)
    }

    /// Reads one page of objects (all of them without `options.limit`).
    pub async fn list<T: Kind>(
        &self,
        namespace: Option<&str>,
        options: RequestOptions,
    ) -> Result<List<T>, Status> {
        let mut request = ApiRequest::resource(Verb::List, T::gvr(), namespace, None, None);
        request.options = options;
        decode_list(&self.bytes(request).await?, decode)
    }

    /// Creates an object and returns it as stored.
    pub async fn create<T: Kind + Serialize>(
        &self,
        namespace: Option<&str>,
        object: &T,
    ) -> Result<T, Status> {
        let request = ApiRequest::resource(Verb::Create, T::gvr(), namespace, None, None);
        decode(&self.bytes(request.with_json(encode_typed(object)?)).await?)
    }

    /// Replaces an object; its `resourceVersion`, when set, must be the current one.
    pub async fn update<T: Kind + Serialize>(&self, key: &ObjectKey, object: &T) -> Result<T, Status> {
        let request = request(Verb::Update, &T::gvr(), key, None);
        decode(&self.bytes(request.with_json(encode_typed(object)?)).await?)
    }

    /// Replaces an object's status.
    pub async fn update_status<T: Kind + Serialize>(&self, key: &ObjectKey, object: &T) -> Result<T, Status> {
        let request = request(Verb::Update, &T::gvr(), key, Some("status"));
        decode(&self.bytes(request.with_json(encode_typed(object)?)).await?)
    }

    /// Patches an object or one of its subresources.
    pub async fn patch(
        &self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
        subresource: Option<&str>,
        kind: PatchType,
        patch: &Value,
        options: RequestOptions,
    ) -> Result<Object, Status> {
        let mut request = request(Verb::Patch, gvr, key, subresource);
        request.options = options;
        request.body = Some(Body { content_type: ContentType::Patch(kind), bytes: encode(patch)? });
        self.object(request).await
    }

    /// Deletes an object, or begins its graceful deletion.
    pub async fn delete(
        &self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
        options: RequestOptions,
    ) -> Result<(), Status> {
        let mut request = request(Verb::Delete, gvr, key, None);
        request.options = options;
        self.bytes(request).await?;
        Ok(())
    }

    /// POST to a subresource: binding, token, eviction.
    pub async fn create_subresource(
        &self,
        gvr: &GroupVersionResource,
        key: &ObjectKey,
        subresource: &str,
        body: &Value,
    ) -> Result<Object, Status> {
        let request = request(Verb::Create, gvr, key, Some(subresource));
        self.object(request.with_json(encode(body)?)).await
    }

    /// Opens a watch.
    pub async fn watch(
        &self,
        gvr: &GroupVersionResource,
        namespace: Option<&str>,
        options: RequestOptions,
    ) -> Result<WatchStream, Status> {
        let mut request = ApiRequest::resource(Verb::Watch, gvr.clone(), namespace, None, None);
        request.options = options;
        match self.call(request).await?.body {
            ResponseBody::Watch(stream) => Ok(stream),
            ResponseBody::Bytes(_) | ResponseBody::Stream(_) => {
                Err(Status::internal("the answer to a watch is no watch"))
            }
        }
    }

    /// GET of a path outside the resources, as JSON.
    pub async fn get_path(&self, path: &str) -> Result<Value, Status> {
        decode(&self.bytes(ApiRequest::path(path)).await?)
    }

    /// Sends a request and reads the whole answer as an object tree.
    pub async fn object(&self, request: ApiRequest) -> Result<Object, Status> {
        let value: Value = decode(&self.bytes(request).await?)?;
        Object::from_value(value).ok_or_else(|| Status::internal("the answer is no JSON object"))
    }

    pub(crate) async fn bytes(&self, request: ApiRequest) -> Result<Bytes, Status> {
        self.call(request).await?.into_bytes()
    }
}

pub(crate) fn request(
    verb: Verb,
    gvr: &GroupVersionResource,
    key: &ObjectKey,
    subresource: Option<&str>,
) -> ApiRequest {
    ApiRequest::resource(verb, gvr.clone(), Some(&key.namespace), Some(&key.name), subresource)
}

pub(crate) fn encode(value: &Value) -> Result<Bytes, Status> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| Status::internal(format!("cannot encode: {e}")))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(decode_error)
}

fn encode_typed<T: Kind + Serialize>(object: &T) -> Result<Bytes, Status> {
    let mut value =
        serde_json::to_value(object).map_err(|e| Status::internal(format!("cannot encode: {e}")))?;
    let (api_version, kind) = T::api_version_kind();
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    encode(&value)
}
