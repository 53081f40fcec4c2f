//! The reviews: questions about identity and permission, answered as objects.

use api::{FieldError, Object, Status};
use serde_json::{Value, json};

use super::Attributes;
use super::rbac::Rule;
use crate::registry::{Call, Registry};
use crate::resource::UserInfo;

/// The status of a review, or an error for a kind that is no review.
pub(crate) async fn answer(
    registry: &Registry,
    call: &Call<'_>,
    review: &Object,
) -> Result<Option<Value>, Status> {
    let gvr = &call.resource.gvr;
    Ok(Some(match (gvr.group.as_str(), gvr.resource.as_str()) {
        ("authentication.k8s.io", "tokenreviews") => token_review(registry, call, review).await?,
        ("authentication.k8s.io", "selfsubjectreviews") => json!({"userInfo": user_info(call.user)}),
        ("authorization.k8s.io", "subjectaccessreviews") => {
            let user = subject(call, review)?;
            access(registry, call, review, &user, None).await?
        }
        ("authorization.k8s.io", "localsubjectaccessreviews") => {
            let user = subject(call, review)?;
            access(registry, call, review, &user, Some(call.namespace)).await?
        }
        ("authorization.k8s.io", "selfsubjectaccessreviews") => {
            access(registry, call, review, call.user, None).await?
        }
        ("authorization.k8s.io", "selfsubjectrulesreviews") => {
            let namespace = review.str(&["spec", "namespace"]);
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            rules(&registry.rbac.rules(call.user, namespace).await?)
        }
        _ => return Err(call.not_found()),
    }))
}

fn user_info(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

async fn token_review(registry: &Registry, call: &Call<'_>, review: &Object) -> Result<Value, Status> {
    let token = review.str(&["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let wished = strings(review.get(&["spec", "audiences"]));
    let audiences = if wished.is_empty() { registry.tokens.api_audiences() } else { wished };
    match registry.tokens.authenticate(token, &audiences, registry, call.now).await {
        Ok((user, shared)) => {
            Ok(json!({"authenticated": true, "user": user_info(&user), "audiences": shared}))
        }
        Err(status) if status.reason == api::Reason::Unauthorized => {
            Ok(json!({"user": {}, "error": "invalid bearer token"}))
        }
        Err(status) => Err(status),
    }
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// The user that a SubjectAccessReview asks about.
fn subject(call: &Call<'_>, review: &Object) -> Result<UserInfo, Status> {
    let user = UserInfo {
        name: review.str(&["spec", "user"]).to_owned(),
        uid: review.str(&["spec", "uid"]).to_owned(),
        groups: strings(review.get(&["spec", "groups"])),
        ..UserInfo::default()
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let error = FieldError::invalid("spec.user", "", "at least one of user or group must be specified");
        return Err(Status::invalid("authorization.k8s.io", &call.resource.kind, "", &[error]));
    }
    Ok(user)
}

async fn access(
    registry: &Registry,
    call: &Call<'_>,
    review: &Object,
    user: &UserInfo,
    namespace: Option<&str>,
) -> Result<Value, Status> {
    let has = |name: &str| review.get(&["spec", name]).is_some_and(Value::is_object);
    let invalid = |field: &str, detail: &str| {
        let error = FieldError::invalid(field, Value::Null, detail);
        Status::invalid("authorization.k8s.io", &call.resource.kind, "", &[error])
    };
    let resource = |name: &str| review.str(&["spec", "resourceAttributes", name]);
    let path = |name: &str| review.str(&["spec", "nonResourceAttributes", name]);
    if has("resourceAttributes") == has("nonResourceAttributes") {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        return Err(invalid("spec.resourceAttributes", detail));
    }
    if namespace.is_some_and(|namespace| namespace != resource("namespace")) {
        let detail = "must match metadata.namespace";
        return Err(invalid("spec.resourceAttributes.namespace", detail));
    }
    let attributes = if has("resourceAttributes") {
        Attributes {
            verb: resource("verb"),
            group: resource("group"),
            resource: resource("resource"),
            subresource: resource("subresource"),
            namespace: resource("namespace"),
            name: resource("name"),
            ..Attributes::default()
        }
    } else {
        Attributes { verb: path("verb"), path: path("path"), ..Attributes::default() }
    };
    Ok(json!({"allowed": super::allows(registry, user, &attributes).await?}))
}

fn rules(rules: &[Rule]) -> Value {
    let resources = rules.iter().filter(|rule| !rule.resources.is_empty()).map(|rule| {
        let mut value =
            json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
        if !rule.resource_names.is_empty() {
            value["resourceNames"] = json!(rule.resource_names);
        }
        value
    });
    let paths = rules.iter().filter(|rule| !rule.non_resource_urls.is_empty());
    let paths = paths.map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
    json!({
        "resourceRules": resources.collect::<Vec<_>>(), "nonResourceRules": paths.collect::<Vec<_>>(),
        "incomplete": false,
    })
}
