//! Creations that are no creations of an object: binding, eviction, token, and the reviews.

use api::{ApiResponse, GroupVersionKind, GroupVersionResource, Object, ObjectKey, Status, TypeId};
use serde_json::{Value, json};

use super::delete::success;
use super::update::Mode;
use super::{Call, Registry, codec, meta};
use crate::admission::Operation;
use crate::authn::token::{BoundTo, TokenSpec};
use crate::authz::reviews;
use crate::resource::{Reader, Subresource};

const TOKEN_SECONDS_DEFAULT: i64 = 3600;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

impl Registry {
    /// POST to a subresource that takes another kind.
    pub(crate) async fn create_special(&self, call: &Call<'_>, name: &str) -> Result<ApiResponse, Status> {
        let Some(Subresource::Create { kind, .. }) = call.resource.subresource(name) else {
            return Err(call.not_found());
        };
        let schema = schema_of(call, kind)?;
        let mut warnings = Vec::new();
        let body = codec::decode_as(call, call.resource, kind, schema, &mut warnings)?;
        let admission = self.admission_context(call, Operation::Create);
        let body = self.admission.review(&admission, kind.clone(), body).await?;
        let what = (call.resource.gvr.group.as_str(), call.resource.gvr.resource.as_str(), name);
        let mut response = match what {
            ("", "pods", "binding") => self.bind(call, &body).await,
            ("", "pods", "eviction") => self.evict(call, &body).await,
            ("", "serviceaccounts", "token") => self.token(call, body).await,
            _ => Err(call.not_found()),
        }?;
        response.warnings = warnings;
        Ok(response)
    }

    /// POST of a kind that is answered instead of stored.
    pub(crate) async fn create_virtual(&self, call: &Call<'_>) -> Result<ApiResponse, Status> {
        let mut warnings = Vec::new();
        let mut object = codec::decode(call, call.resource, &mut warnings)?;
        meta::settle_namespace(call.resource, &mut object, call.namespace)?;
        let gvr = &call.resource.gvr;
        if (gvr.group.as_str(), gvr.resource.as_str()) == ("", "bindings") {
            let name = object.name().to_owned();
            let mut pods = call.request.clone();
            let target = GroupVersionResource::new("", "v1", "pods");
            let resource = self.resources.get(&target).ok_or_else(|| call.not_found())?;
            pods.target = api::Target::Resource {
                gvr: target,
                namespace: Some(call.namespace.to_owned()),
                name: Some(name.clone()),
                subresource: Some("binding".to_owned()),
            };
            let inner = Call {
                request: &pods,
                resource: &resource,
                name: &name,
                subresource: Some("binding"),
                ..*call
            };
            return self.bind(&inner, &object).await;
        }
        let status = reviews::answer(self, call, &object).await?;
        if let Some(status) = status {
            object.set(&["status"], status);
        }
        let mut response = call.form.tree(201, &object.into_value())?;
        response.warnings = warnings;
        Ok(response)
    }

    /// Assigns a pod to a node.
    async fn bind(&self, call: &Call<'_>, binding: &Object) -> Result<ApiResponse, Status> {
        let node = binding.str(&["target", "name"]).to_owned();
        let kind = binding.str(&["target", "kind"]);
        if node.is_empty() || !matches!(kind, "" | "Node") {
            let error = api::FieldError::required("target.name", "");
            return Err(Status::invalid("", "Binding", call.name, &[error]));
        }
        let annotations = binding.get(&["metadata", "annotations"]).and_then(Value::as_object).cloned();
        let uid = binding.uid().to_owned();
        let subject = Call { subresource: Some("binding"), ..*call };
        let conflict = |why: &str| Status::conflict("", "pods/binding", call.name, why);
        let mut mutate = |pod: &Object, _: &mut Vec<String>| {
            if !uid.is_empty() && uid != pod.uid() {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    pod.uid()
                );
                return Err(conflict(&why));
            }
            if pod.is_deleting() {
                return Err(conflict(&format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    pod.name()
                )));
            }
            let taken = pod.str(&["spec", "nodeName"]);
            if !taken.is_empty() {
                return Err(conflict(&format!("pod {} is already assigned to node {taken:?}", pod.name())));
            }
            if pod.get(&["spec", "schedulingGates"]).and_then(Value::as_array).is_some_and(|g| !g.is_empty())
            {
                return Err(conflict(&format!("pod {} has non-empty .spec.schedulingGates", pod.name())));
            }
            let mut new = pod.clone();
            new.set(&["spec", "nodeName"], node.as_str());
            for (key, value) in annotations.iter().flatten() {
                new.set(&["metadata", "annotations", key], value.clone());
            }
            set_scheduled(&mut new, call.now);
            Ok(new)
        };
        self.update_object(&subject, &call.key(), Mode::Server, &mut mutate, &mut Vec::new()).await?;
        call.form.tree(201, &success(Value::Null, 201))
    }

    /// Deletes a pod on behalf of somebody who drains a node.
    async fn evict(&self, call: &Call<'_>, eviction: &Object) -> Result<ApiResponse, Status> {
        let mut options = call.request.options.clone();
        if let Some(body) = eviction.get(&["deleteOptions"]) {
            crate::url::merge_delete_options(&mut options, body)?;
        }
        self.spend_budget(call).await?;
        if !call.dry_run() {
            self.say_why(call).await?;
        }
        self.delete_object(call, &call.key(), &options).await?;
        call.form.tree(201, &success(Value::Null, 201))
    }

    /// Notes on a pod that it did not end by itself: who counts its failures may leave this one out.
    async fn say_why(&self, call: &Call<'_>) -> Result<(), Status> {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null,
            "lastTransitionTime": meta::timestamp(call.now)});
        let mut mutate = |pod: &Object, _: &mut Vec<String>| {
            let mut new = pod.clone();
            if !pod.is_deleting() {
                set_condition(&mut new, condition.clone());
            }
            Ok(new)
        };
        self.update_object(call, &call.key(), Mode::Server, &mut mutate, &mut Vec::new()).await?;
        Ok(())
    }

    /// TokenRequest: a token for a service account, bound as asked.
    async fn token(&self, call: &Call<'_>, mut request: Object) -> Result<ApiResponse, Status> {
        let gvr = &call.resource.gvr;
        let account = Reader::get(self, gvr, &call.key()).await?.ok_or_else(|| call.not_found())?;
        let seconds = request.i64(&["spec", "expirationSeconds"]).unwrap_or(TOKEN_SECONDS_DEFAULT);
        if !(TOKEN_SECONDS_MIN..=TOKEN_SECONDS_MAX).contains(&seconds) {
            let detail = if seconds < TOKEN_SECONDS_MIN {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            let error = api::FieldError::invalid("spec.expirationSeconds", seconds, detail);
            return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
        }
        let wished = request.get(&["spec", "audiences"]).and_then(Value::as_array);
        let wished: Vec<String> =
            wished.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        let audiences = if wished.is_empty() { self.tokens.api_audiences() } else { wished };
        let bound = self.bound_to(call, &request).await?;
        if let Some(node) = crate::authz::node::name_of(call.user)
            && !bound.iter().any(|b| b.kind == "Node" && b.name == node)
        {
            let why = format!("node {node:?} may ask for tokens of pods that are bound to it only");
            return Err(Status::forbidden("", "serviceaccounts", call.name, &why));
        }
        let spec = TokenSpec {
            account: &account,
            audiences: audiences.clone(),
            seconds,
            bound,
            id: meta::uuid(),
            now: call.now,
        };
        let token = self.tokens.issue(&spec)?;
        let expires = jiff::Timestamp::from_second(call.now.as_second() + seconds).unwrap_or(call.now);
        request.set(&["metadata", "name"], call.name);
        request.set(&["metadata", "namespace"], call.namespace);
        request.set(&["metadata", "creationTimestamp"], meta::timestamp(call.now));
        request.set(&["spec", "audiences"], audiences);
        request.set(&["spec", "expirationSeconds"], seconds);
        request.set(&["status"], json!({"token": token, "expirationTimestamp": meta::timestamp(expires)}));
        call.form.tree(201, &request.into_value())
    }

    async fn bound_to(&self, call: &Call<'_>, request: &Object) -> Result<Vec<BoundTo>, Status> {
        let reference = |name: &str| request.str(&["spec", "boundObjectRef", name]);
        let kind = reference("kind");
        if kind.is_empty() {
            return Ok(Vec::new());
        }
        if !matches!(kind, "Pod" | "Secret" | "Node") {
            let what =
                format!("cannot bind token for serviceaccount {:?} to object of type {kind:?}", call.name);
            return Err(Status::bad_request(what));
        }
        let resource = format!("{}s", kind.to_lowercase());
        let gvr = GroupVersionResource::new("", "v1", &resource);
        let key = ObjectKey::new(if kind == "Node" { "" } else { call.namespace }, reference("name"));
        let object = Reader::get(self, &gvr, &key).await?;
        let object = object.ok_or_else(|| Status::not_found("", &resource, &key.name))?;
        let uid = reference("uid");
        if !uid.is_empty() && uid != object.uid() {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", &resource, &key.name, &why));
        }
        let mut bound = vec![BoundTo { kind: kind.to_owned(), name: key.name, uid: object.uid().to_owned() }];
        if kind == "Pod" {
            let account = object.str(&["spec", "serviceAccountName"]);
            if account != call.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name
                )));
            }
            let node = object.str(&["spec", "nodeName"]);
            let nodes = GroupVersionResource::new("", "v1", "nodes");
            if let Some(node) =
                Reader::get(self, &nodes, &ObjectKey::new("", node)).await?.filter(|_| !node.is_empty())
            {
                bound.push(BoundTo {
                    kind: "Node".into(),
                    name: node.name().to_owned(),
                    uid: node.uid().to_owned(),
                });
            }
        }
        Ok(bound)
    }
}

fn schema_of(call: &Call<'_>, kind: &GroupVersionKind) -> Result<TypeId, Status> {
    let found = call.resource.table.kind(&kind.group, &kind.version, &kind.kind);
    found.ok_or_else(|| Status::internal(format!("the schema table has no {}", kind.kind)))
}

/// Sets the condition PodScheduled.
fn set_scheduled(pod: &mut Object, now: jiff::Timestamp) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": meta::timestamp(now)});
    set_condition(pod, condition);
}

/// Puts a condition in the place of the one of its type.
fn set_condition(pod: &mut Object, condition: Value) {
    let conditions = pod.get(&["status", "conditions"]).and_then(Value::as_array);
    let mut conditions: Vec<Value> = conditions.cloned().unwrap_or_default();
    conditions.retain(|known| known["type"] != condition["type"]);
    conditions.push(condition);
    pod.set(&["status", "conditions"], conditions);
}
