//! The proxies with a server on this machine as the pod, which lives in the machine's network.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::at;
use crate::wire::{ADMIN, Wire, body, request};

/// `/echo` gives the request's body back as it comes, `/page` a link, `/moved` a redirect; the rest tells what it got.
async fn pod(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let full = |text: String| Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let path = request.uri().path().to_owned();
    let secret = request.headers().contains_key(AUTHORIZATION);
    Ok(match path.as_str() {
        "/echo" => Response::new(request.into_body().boxed()),
        "/switch" => {
            let protocol = request.headers()["upgrade"].clone();
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(request).await.unwrap();
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            });
            let answer = Response::builder().status(101).header("connection", "upgrade");
            answer.header("upgrade", protocol).body(full(String::new())).unwrap()
        }
        "/page" => {
            let page = Response::builder().header(CONTENT_TYPE, "text/html; charset=utf-8");
            page.body(full("<a href=\"/next\">".into())).unwrap()
        }
        "/moved" => {
            Response::builder().status(302).header(LOCATION, "/away").body(full(String::new())).unwrap()
        }
        _ => {
            let (method, uri) = (request.method().to_string(), request.uri().to_string());
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            let sent = String::from_utf8_lossy(&sent).into_owned();
            let text = json!({"method": method, "uri": uri, "body": sent, "secret": secret});
            Response::builder().status(418).body(full(text.to_string())).unwrap()
        }
    })
}

async fn serve_pod() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service_fn(pod))
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    address
}

/// A server, and the path of the proxy to its one pod.
async fn setup() -> (Wire, String) {
    let (wire, address) = (Wire::new().await, serve_pod().await);
    let pods = at("", "pods", "default");
    wire.f.create(&at("", "serviceaccounts", "default"), json!({"metadata": {"name": "default"}})).await.ok();
    let node = json!({"metadata": {"name": "n1"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
    wire.f.create(&at("", "nodes", ""), node).await.unwrap();
    let spec = json!({"nodeName": "n1", "hostNetwork": true, "containers": [{"name": "a", "image": "a",
        "ports": [{"name": "web", "containerPort": address.port()}]}]});
    let mut object = wire.f.create(&pods, json!({"metadata": {"name": "p"}, "spec": spec})).await.unwrap();
    object["status"]["podIP"] = json!("127.0.0.1");
    wire.f.update_status(&pods, "p", &object).await.unwrap();
    (wire, "/api/v1/namespaces/default/pods".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_reaches_the_pod_with_query_and_body() {
    let (wire, pods) = setup().await;
    for alpn in ["h2", "http/1.1"] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let path = format!("{pods}/http:p:web/proxy/some%2Fpath//x/?a=1&watch=true&b=%20");
            let response = wire.send(alpn, ADMIN, request(method, &path, "not JSON")).await;
            assert_eq!(response.status(), StatusCode::IM_A_TEAPOT, "{alpn} {method}");
            let want = json!({"method": method, "uri": "/some%2Fpath//x/?a=1&watch=true&b=%20",
                "body": "not JSON", "secret": false});
            assert_eq!(body(response).await, want);
        }
        let head = wire.send(alpn, ADMIN, request("HEAD", &format!("{pods}/p/proxy/x"), "")).await;
        assert_eq!(head.status(), StatusCode::IM_A_TEAPOT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_redirects_and_links() {
    let (wire, pods) = setup().await;
    let bare = wire.send("h2", ADMIN, request("GET", &format!("{pods}/p/proxy?a=1"), "")).await;
    assert_eq!(bare.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(bare.headers()[LOCATION], format!("{pods}/p/proxy/?a=1"));
    let posted = wire.send("h2", ADMIN, request("POST", &format!("{pods}/p/proxy?a=1"), "")).await;
    assert_eq!(body(posted).await["uri"], "/?a=1");
    let moved = wire.send("h2", ADMIN, request("GET", &format!("{pods}/p/proxy/moved"), "")).await;
    assert_eq!((moved.status(), moved.headers()[LOCATION].as_bytes()), (StatusCode::FOUND, &b"/away"[..]));
    let page = wire.send("h2", ADMIN, request("GET", &format!("{pods}/p:web/proxy/page"), "")).await;
    let page = page.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(page, format!("<a href=\"{pods}/p:web/proxy/next\">"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_streamed_both_ways() {
    let (wire, pods) = setup().await;
    let io = TokioIo::new(wire.connect("h2", ADMIN).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let (pieces, received) = tokio::sync::mpsc::channel::<Bytes>(4);
    let stream = futures_util::stream::unfold(received, async |mut received| {
        let piece = received.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(piece)), received))
    });
    let uri = format!("https://localhost{pods}/p/proxy/echo");
    let request = Request::post(uri).body(StreamBody::new(stream.boxed())).unwrap();
    let mut response = sender.send_request(request).await.unwrap().into_body();
    for piece in ["one", "two"] {
        // The second is sent only after the first came back.
        pieces.send(piece.into()).await.unwrap();
        let got = tokio::time::timeout(Duration::from_secs(5), response.frame()).await;
        assert_eq!(got.expect("an echo in time").unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(pieces);
    let rest = response.collect().await.expect("an orderly end").to_bytes();
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals() {
    let (wire, pods) = setup().await;
    let code = async |identity, path: String| wire.send("h2", identity, request("GET", &path, "")).await;
    let jane: Option<(&str, &[&str])> = Some(("jane", &[]));
    let refused = code(jane, format!("{pods}/p/proxy/x")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let text = body(refused).await["message"].as_str().unwrap().to_owned();
    assert!(text.contains("cannot get resource \"pods/proxy\""), "{text}");
    assert_eq!(code(ADMIN, format!("{pods}/none/proxy/x")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(code(ADMIN, format!("{pods}/ftp:p:1/proxy/x")).await.status(), StatusCode::BAD_REQUEST);
    // Nobody listens on the port of "discard".
    assert_eq!(code(ADMIN, format!("{pods}/p:9/proxy/x")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let spec = json!({"ports": [{"port": 80}]});
    let services = at("", "services", "default");
    wire.f.create(&services, json!({"metadata": {"name": "s"}, "spec": spec})).await.unwrap();
    let nobody = code(ADMIN, "/api/v1/namespaces/default/services/s:80/proxy/".to_owned()).await;
    assert_eq!(nobody.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text: Value = body(nobody).await;
    assert_eq!(text["message"], "no endpoints available for service \"s\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgraded_connections_go_through() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (wire, pods) = setup().await;
    let io = TokioIo::new(wire.connect("http/1.1", ADMIN).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{pods}/p/proxy/switch")).header("host", "localhost");
    let request = request.header("connection", "Upgrade").header("upgrade", "my-protocol");
    let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["upgrade"]),
        (101, &"my-protocol".parse().unwrap())
    );
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut text = [0; 5];
    io.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_asked_for_their_own_pages() {
    let (wire, _) = setup().await;
    for (name, page) in [("n1", "/healthz"), ("n1:10250", "/stats/summary?only=cpu")] {
        let path = format!("/api/v1/nodes/{name}/proxy{page}");
        let answer = wire.send("h2", ADMIN, request("GET", &path, "")).await;
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, format!("n1 {page}"));
        assert_eq!(wire.send("h2", ADMIN, request("POST", &path, "")).await.status(), 405);
        let jane: Option<(&str, &[&str])> = Some(("jane", &[]));
        assert_eq!(wire.send("h2", jane, request("GET", &path, "")).await.status(), 403);
    }
}
