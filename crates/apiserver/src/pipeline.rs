//! How a request flows. HTTP decoding and authentication come before ([`crate::http`]); in-process callers enter here.

use api::{ApiRequest, ApiResponse, Reason, Status, Target, Verb};

use crate::authz::{self, Attributes};
use crate::registry::{self, codec};
use crate::resource::UserInfo;
use crate::server::ApiServer;
use crate::streams::{Session, Wish};
use crate::{aggregation, connect, documents, usage};

/// A decoded request.
pub(crate) struct Incoming {
    pub(crate) request: ApiRequest,
    /// Whom the caller wants to act as.
    pub(crate) impersonate: Option<UserInfo>,
    /// What the connection can become.
    pub(crate) upgrade: Option<Wish>,
}

/// What comes of a request.
pub(crate) enum Outcome {
    Response(ApiResponse),
    /// The connection becomes a session with a container.
    Session(Session),
}

/// The whole way of a request after decoding and authentication.
pub(crate) async fn handle(
    server: &ApiServer,
    caller: &UserInfo,
    incoming: Incoming,
) -> Result<Outcome, Status> {
    let Incoming { request, impersonate, upgrade } = incoming;
    let user = match impersonate {
        None => caller.clone(),
        Some(wanted) => authorize_impersonation(server, caller, wanted).await?,
    };
    authorize(server, &user, &request).await?;
    if let Some(answer) = aggregation::answer(server, &user, &request).await {
        return answer.map(Outcome::Response);
    }
    if let Target::Path(path) = &request.target {
        return documents::answer(server, path, &request).await.map(Outcome::Response);
    }
    if usage::is_wanted(&request.target) {
        return usage::answer(server, &request).await.map(Outcome::Response);
    }
    let resource = server.registry.settled_row(&request.target).await?;
    if registry::is_connect(&resource, subresource(&request)) {
        server.registry.admit_connect(&user, &request, &resource).await?;
        return connect::open(server, &request, upgrade.as_ref()).await;
    }
    server.registry.handle(&user, &request).await.map(Outcome::Response)
}

fn subresource(request: &ApiRequest) -> Option<&str> {
    match &request.target {
        Target::Resource { subresource, .. } => subresource.as_deref(),
        Target::Path(_) => None,
    }
}

/// Refuses what no rule allows.
pub(crate) async fn authorize(
    server: &ApiServer,
    user: &UserInfo,
    request: &ApiRequest,
) -> Result<(), Status> {
    let only = pinned(request, "metadata.name");
    let of_node = pinned(request, "spec.nodeName");
    let mut attributes = Attributes { verb: request.verb.as_str(), ..Attributes::default() };
    match &request.target {
        Target::Path(path) => attributes.path = path,
        Target::Resource { gvr, namespace, name, subresource } => {
            attributes.group = &gvr.group;
            attributes.resource = &gvr.resource;
            // What follows a subresource's name is its own business: roles know the name alone.
            let subresource = subresource.as_deref().unwrap_or_default();
            attributes.subresource = subresource.split('/').next().unwrap_or_default();
            attributes.name = name.as_deref().or(only.as_deref()).unwrap_or_default();
            // A namespace itself is addressed within itself, as far as roles are concerned.
            let own = gvr.group.is_empty() && gvr.resource == "namespaces";
            let of_namespace = if own { name.as_deref() } else { namespace.as_deref() };
            attributes.namespace = of_namespace.unwrap_or_default();
            attributes.of_node = of_node.as_deref().unwrap_or_default();
        }
    }
    check(server, user, &attributes).await?;
    // Opening a stream into a container changes something, whatever the method.
    if matches!(attributes.subresource, "exec" | "attach" | "portforward") && attributes.verb == "get" {
        attributes.verb = "create";
        check(server, user, &attributes).await?;
    }
    Ok(())
}

pub(crate) async fn check(
    server: &ApiServer,
    user: &UserInfo,
    attributes: &Attributes<'_>,
) -> Result<(), Status> {
    if authz::allows(&server.registry, user, attributes).await? {
        Ok(())
    } else {
        Err(authz::forbidden(user, attributes))
    }
}

/// The one value of a field that a field selector leaves of a collection.
fn pinned(request: &ApiRequest, field: &str) -> Option<String> {
    if !matches!(request.verb, Verb::List | Verb::Watch | Verb::DeleteCollection) {
        return None;
    }
    let fields = codec::field_selector(request.options.field_selector.as_deref()?).ok()?;
    let selection = crate::stored::Selection { fields, ..Default::default() };
    selection.pinned(field).map(str::to_owned)
}

/// Acting as somebody else needs the verb `impersonate` on each part of that identity.
pub(crate) async fn authorize_impersonation(
    server: &ApiServer,
    caller: &UserInfo,
    wanted: UserInfo,
) -> Result<UserInfo, Status> {
    let verb = "impersonate";
    let mut wanted = wanted;
    let account = wanted.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    if let Some((namespace, name)) = account {
        let attributes =
            Attributes { verb, resource: "serviceaccounts", namespace, name, ..Attributes::default() };
        check(server, caller, &attributes).await?;
    } else {
        let attributes = Attributes { verb, resource: "users", name: &wanted.name, ..Attributes::default() };
        check(server, caller, &attributes).await?;
    }
    for group in &wanted.groups {
        let attributes = Attributes { verb, resource: "groups", name: group, ..Attributes::default() };
        check(server, caller, &attributes).await?;
    }
    let authentication = "authentication.k8s.io";
    if !wanted.uid.is_empty() {
        let attributes = Attributes {
            verb,
            group: authentication,
            resource: "uids",
            name: &wanted.uid,
            ..Attributes::default()
        };
        check(server, caller, &attributes).await?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            let attributes = Attributes {
                verb,
                group: authentication,
                resource: "userextras",
                subresource: key,
                name: value,
                ..Attributes::default()
            };
            check(server, caller, &attributes).await?;
        }
    }
    complete_groups(&mut wanted);
    Ok(wanted)
}

/// Adds the groups that every such user is in.
fn complete_groups(user: &mut UserInfo) {
    let account = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    if let Some((namespace, _)) = account.filter(|_| user.groups.is_empty()) {
        user.groups =
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let last = if user.name == "system:anonymous" {
        crate::authn::UNAUTHENTICATED
    } else {
        crate::authn::AUTHENTICATED
    };
    if !user.in_group(last) {
        user.groups.push(last.to_owned());
    }
}

/// The answer to a path that leads nowhere.
pub(crate) fn no_such_path() -> Status {
    Status {
        message: "the server could not find the requested resource".into(),
        ..Status::new(Reason::NotFound, "")
    }
}
