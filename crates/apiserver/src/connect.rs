//! `pods/log`, `exec`, `attach` and `portforward`: which container, may it, and then over to its node.

use std::sync::Arc;

use api::stream::{ByteStream, ExecOptions, ExecSession, LogOptions};
use api::{ApiRequest, ApiResponse, FieldError, Object, ObjectKey, ResponseBody, Status, Target};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::pipeline::{Outcome, no_such_path};
use crate::resource::Reader;
use crate::server::ApiServer;
use crate::streams::{Dial, Session, What, Wish};

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Ports that one WebSocket can carry: a channel is one byte, and each port has two.
const MOST_PORTS: usize = 127;

/// Opens a stream to a container.
pub(crate) async fn open(
    server: &ApiServer,
    request: &ApiRequest,
    wish: Option<&Wish>,
) -> Result<Outcome, Status> {
    let Target::Resource { gvr, namespace, name, subresource } = &request.target else {
        return Err(no_such_path());
    };
    let namespace = namespace.as_deref().unwrap_or_default();
    let name = name.as_deref().unwrap_or_default();
    let pod = Reader::get(&server.registry, gvr, &ObjectKey::new(namespace, name)).await?;
    let pod = pod.ok_or_else(|| Status::not_found(&gvr.group, &gvr.resource, name))?;
    let wish_or = || wish.ok_or_else(|| Status::bad_request("Upgrade request required"));
    match (gvr.group.as_str(), gvr.resource.as_str(), subresource.as_deref().unwrap_or_default()) {
        ("", "pods", "log") => logs(server, request, &pod, wish).await,
        ("", "pods", what @ ("exec" | "attach")) => {
            // What is wrong with the request comes first: clients ask a second time without WebSocket after any refusal.
            let options = session_options(request, &pod, what)?;
            let dialect = wish_or()?.for_command()?;
            let streams = session(server, &pod, what, &options).await;
            Ok(Outcome::Session(Session { dialect, what: What::Command { streams, options } }))
        }
        ("", "pods", "portforward") => {
            assigned(&pod)?;
            let dialect = wish_or()?.for_forward()?;
            let ports = if dialect.names_ports_first() { ports(request)? } else { Vec::new() };
            let uid = pod.str(&["metadata", "uid"]);
            let what = What::Forward { pod: format!("{name}, uid {uid}"), ports, dial: dial(server, &pod) };
            Ok(Outcome::Session(Session { dialect, what }))
        }
        _ => Err(no_such_path()),
    }
}

fn dial(server: &ApiServer, pod: &Object) -> Dial {
    let gateway = Arc::clone(&server.config.gateway);
    let [node, namespace, name] =
        [pod.str(&["spec", "nodeName"]), pod.namespace(), pod.name()].map(str::to_owned);
    Arc::new(move |port| {
        let (gateway, node) = (Arc::clone(&gateway), node.clone());
        let (namespace, name) = (namespace.clone(), name.clone());
        Box::pin(async move { gateway.connect(&node, &namespace, &name, port).await })
    })
}

/// The ports that a request names: `ports=80,81&ports=82`.
fn ports(request: &ApiRequest) -> Result<Vec<u16>, Status> {
    let values = request.options.extra.iter().filter(|(name, _)| name == "ports").map(|(_, value)| value);
    let ports = values.flat_map(|value| value.split(',')).map(|text| {
        let port = text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        port.ok_or_else(|| Status::bad_request(format!("unable to parse {text:?} as a port")))
    });
    let ports = ports.collect::<Result<Vec<u16>, _>>()?;
    match ports.len() {
        0 => Err(Status::bad_request("query parameter \"ports\" is required")),
        1..=MOST_PORTS => Ok(ports),
        _ => Err(Status::bad_request(format!("no more than {MOST_PORTS} ports can be forwarded"))),
    }
}

async fn logs(
    server: &ApiServer,
    request: &ApiRequest,
    pod: &Object,
    wish: Option<&Wish>,
) -> Result<Outcome, Status> {
    let mut options = log_options(request)?;
    options.container = container(pod, &options.container)?;
    let dialect = wish.map(Wish::for_log).transpose()?.flatten();
    let node = pod.str(&["spec", "nodeName"]);
    let log: ByteStream = if node.is_empty() {
        Box::pin(futures_util::stream::empty())
    } else {
        check_log(pod, &options)?;
        server.config.gateway.logs(node, pod.namespace(), pod.name(), options).await?
    };
    Ok(match dialect {
        Some(dialect) => Outcome::Session(Session { dialect, what: What::Log(log) }),
        None => Outcome::Response(ApiResponse {
            code: 200,
            content_type: "text/plain".into(),
            body: ResponseBody::Stream(log),
            warnings: Vec::new(),
        }),
    })
}

fn log_options(request: &ApiRequest) -> Result<LogOptions, Status> {
    let text = |name: &str| request.options.extra(name).filter(|value| !value.is_empty());
    let flag = |name: &str| matches!(text(name), Some("true" | "1"));
    let mut errors = Vec::new();
    let mut number = |name: &str, least: i64| {
        let value = text(name)?;
        match value.parse::<i64>() {
            Ok(number) if number >= least => u64::try_from(number).ok(),
            _ => {
                errors.push(FieldError::invalid(
                    name,
                    value,
                    &format!("must be greater than or equal to {least}"),
                ));
                None
            }
        }
    };
    let mut options = LogOptions {
        tail_lines: number("tailLines", 0),
        limit_bytes: number("limitBytes", 1),
        since_seconds: number("sinceSeconds", 1),
        ..LogOptions::default()
    };
    options.container = text("container").unwrap_or_default().to_owned();
    options.follow = flag("follow");
    options.previous = flag("previous");
    options.timestamps = flag("timestamps");
    options.since_time = text("sinceTime").map(str::to_owned);
    if options.since_time.is_some() && options.since_seconds.is_some() {
        errors.push(FieldError::forbidden(
            "sinceSeconds",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() { Ok(options) } else { Err(Status::invalid("", "PodLogOptions", "", &errors)) }
}

fn names<'a>(pod: &'a Object, list: &str) -> Vec<&'a str> {
    let list = pod.get(&["spec", list]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
}

/// The container that is meant: the named one, the only one, or the one that an annotation names.
fn container(pod: &Object, wanted: &str) -> Result<String, Status> {
    let own = names(pod, "containers");
    let init = names(pod, "initContainers");
    let ephemeral = names(pod, "ephemeralContainers");
    if !wanted.is_empty() {
        if [&own, &init, &ephemeral].iter().any(|list| list.contains(&wanted)) {
            return Ok(wanted.to_owned());
        }
        return Err(Status::bad_request(format!("container {wanted} is not valid for pod {}", pod.name())));
    }
    let annotated = pod.str(&["metadata", "annotations", DEFAULT_CONTAINER]);
    match own.as_slice() {
        [only] => Ok((*only).to_owned()),
        list if list.contains(&annotated) => Ok(annotated.to_owned()),
        list => {
            let mut text = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                list.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

/// Refuses the log of a container that has not run yet.
fn check_log(pod: &Object, options: &LogOptions) -> Result<(), Status> {
    let name = &options.container;
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let statuses = lists.iter().filter_map(|list| pod.get(&["status", list])).filter_map(Value::as_array);
    let status = statuses.flatten().find(|status| status["name"] == name.as_str());
    let waiting = |reason: &str| {
        let pod = pod.name();
        Err(Status::bad_request(format!("container {name:?} in pod {pod:?} is waiting to start: {reason}")))
    };
    let Some(status) = status else { return waiting("ContainerCreating") };
    let ended_before = status["lastState"]["terminated"].is_object();
    if options.previous {
        if ended_before {
            return Ok(());
        }
        let pod = pod.name();
        return Err(Status::bad_request(format!(
            "previous terminated container {name:?} in pod {pod:?} not found"
        )));
    }
    let state = &status["state"];
    if state["running"].is_object() || state["terminated"].is_object() || ended_before {
        return Ok(());
    }
    match state["waiting"]["reason"].as_str().unwrap_or("ContainerCreating") {
        "ErrImagePull" | "ImagePullBackOff" => waiting("trying and failing to pull image"),
        reason => waiting(reason),
    }
}

/// What a request for a session asks for, checked against the pod.
fn session_options(request: &ApiRequest, pod: &Object, what: &str) -> Result<ExecOptions, Status> {
    let text = |name: &str| request.options.extra(name);
    let flag = |name: &str| matches!(text(name), Some("true" | "1"));
    let commands = request.options.extra.iter().filter(|(name, _)| name == "command");
    let mut options = ExecOptions {
        container: text("container").unwrap_or_default().to_owned(),
        command: commands.map(|(_, value)| value.clone()).collect(),
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        stderr: flag("stderr"),
        tty: flag("tty"),
    };
    if what == "exec" && options.command.is_empty() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    if !(options.stdin || options.stdout || options.stderr) {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    // A terminal has one output.
    options.stderr &= !options.tty;
    options.container = container(pod, &options.container)?;
    let phase = pod.str(&["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") {
        let text =
            format!("cannot exec or attach to a container in a completed pod; current phase is {phase}");
        return Err(Status::bad_request(text));
    }
    assigned(pod)?;
    Ok(options)
}

fn assigned(pod: &Object) -> Result<(), Status> {
    if pod.str(&["spec", "nodeName"]).is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    Ok(())
}

/// Opens the session on the pod's node. A failure there is told within the session, as its outcome: a client that is
/// refused the WebSocket would try another protocol and show that one's refusal.
async fn session(server: &ApiServer, pod: &Object, what: &str, options: &ExecOptions) -> ExecSession {
    let node = pod.str(&["spec", "nodeName"]);
    let gateway = &server.config.gateway;
    let (namespace, name) = (pod.namespace(), pod.name());
    let streams = match what {
        "exec" => gateway.exec(node, namespace, name, options.clone()).await,
        _ => gateway.attach(node, namespace, name, options.clone()).await,
    };
    streams.unwrap_or_else(failed)
}

/// A session that has ended before it began.
fn failed(status: Status) -> ExecSession {
    let (_, output) = mpsc::channel(1);
    let (resize, _) = mpsc::channel(1);
    let (ended, exit) = oneshot::channel();
    ended.send(Err(status)).expect("the receiver is at hand");
    ExecSession { stdin: None, output, resize, exit }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_is_chosen_as_documented() {
        let pod = |value| Object::from_value(value).unwrap();
        let one = pod(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}}));
        let two =
            pod(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}}));
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(container(&two, "b").unwrap(), "b");
        assert_eq!(container(&one, "x").unwrap_err().message, "container x is not valid for pod p");
        assert_eq!(
            container(&two, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn logs_need_a_container_that_ran() {
        let check = |status: Value, previous| {
            let pod = Object::from_value(
                json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [status]}}),
            );
            let options = LogOptions { container: "a".into(), previous, ..LogOptions::default() };
            check_log(&pod.unwrap(), &options).map_err(|status| status.message)
        };
        let waiting =
            |reason: &str| Err(format!("container \"a\" in pod \"p\" is waiting to start: {reason}"));
        let state = |state: Value| json!({"name": "a", "state": state});
        assert_eq!(check(json!({"name": "b"}), false), waiting("ContainerCreating"));
        assert_eq!(
            check(state(json!({"waiting": {"reason": "PodInitializing"}})), false),
            waiting("PodInitializing")
        );
        assert_eq!(
            check(state(json!({"waiting": {"reason": "ImagePullBackOff"}})), false),
            waiting("trying and failing to pull image")
        );
        assert_eq!(check(state(json!({"running": {}})), false), Ok(()));
        assert!(check(state(json!({"running": {}})), true).is_err());
        let crashed = json!({"name": "a", "state": {"waiting": {}}, "lastState": {"terminated": {}}});
        assert_eq!(check(crashed, false), Ok(()));
    }
}
