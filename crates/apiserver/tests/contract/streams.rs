//! Sessions over WebSocket in the dialects of old clients: exec, logs, port-forward.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::common::at;
use crate::wire::{ADMIN, Wire, wire_with_pod};

/// Opens a WebSocket below the pod; returns the protocol that the server chose.
async fn socket(
    wire: &Wire,
    path: &str,
    protocol: &str,
) -> (
    tokio_tungstenite::WebSocketStream<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + use<>>,
    String,
) {
    let url = format!("wss://localhost/api/v1/namespaces/default/pods/p/{path}");
    let mut request = url.into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let stream = wire.connect("http/1.1", ADMIN).await;
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let chosen = response.headers().get("sec-websocket-protocol");
    (socket, chosen.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default())
}

fn text(message: &Message) -> String {
    String::from_utf8(message.clone().into_data().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_speaks_old_dialects() {
    let wire = wire_with_pod().await;
    let failed = "command terminated with non-zero exit code: exit status 3";
    for (protocol, want) in [
        ("", ["\u{1}", "\u{1}say", &format!("\u{3}{failed}")]),
        ("channel.k8s.io", ["\u{1}", "\u{1}say", &format!("\u{3}{failed}")]),
        (
            "base64.channel.k8s.io",
            ["1", "1c2F5", "3Y29tbWFuZCB0ZXJtaW5hdGVkIHdpdGggbm9uLXplcm8gZXhpdCBjb2RlOiBleGl0IHN0YXR1cyAz"],
        ),
    ] {
        let (mut socket, chosen) = socket(&wire, "exec?command=say&stdout=1&stdin=0", protocol).await;
        assert_eq!(chosen, protocol);
        for want in want {
            assert_eq!(text(&socket.next().await.unwrap().unwrap()), want, "{protocol}");
        }
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_comes_in_messages() {
    let wire = wire_with_pod().await;
    let pods = at("", "pods", "default");
    let mut pod = wire.f.get(&pods, "p").await.unwrap();
    pod["status"] = json!({"phase": "Running", "containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
    wire.f.update_status(&pods, "p", &pod).await.unwrap();
    for (protocol, want) in [
        ("", "n1 p c tail=Some(3)\n"),
        ("binary.k8s.io", "n1 p c tail=Some(3)\n"),
        ("base64.binary.k8s.io", "bjEgcCBjIHRhaWw9U29tZSgzKQo="),
    ] {
        let (mut socket, chosen) = socket(&wire, "log?tailLines=3", protocol).await;
        assert_eq!(chosen, protocol);
        assert_eq!(text(&socket.next().await.unwrap().unwrap()), want);
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_pairs_of_channels() {
    let wire = wire_with_pod().await;
    let (mut socket, chosen) = socket(&wire, "portforward?ports=7,8", "v4.channel.k8s.io").await;
    assert_eq!(chosen, "v4.channel.k8s.io");
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.push(socket.next().await.unwrap().unwrap().into_data().to_vec());
    }
    seen.sort();
    let refused = b"\x03error forwarding port 8 to pod p, uid ".to_vec();
    assert_eq!(seen[..3], [b"\0\x07\0".to_vec(), b"\0hello".to_vec(), b"\x01\x07\0".to_vec()]);
    assert_eq!(seen[3..5], [b"\x02\x08\0".to_vec(), b"\x03\x08\0".to_vec()]);
    assert!(seen[5].starts_with(&refused), "{:?}", String::from_utf8_lossy(&seen[5]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_dialect_is_refused_before_anything_is_opened() {
    let wire = wire_with_pod().await;
    let url = "wss://localhost/api/v1/namespaces/default/pods/p/exec?command=say&stdout=1";
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    let stream = wire.connect("http/1.1", ADMIN).await;
    let error = tokio_tungstenite::client_async(request, stream).await.unwrap_err();
    let tokio_tungstenite::tungstenite::Error::Http(response) = error else { panic!("{error}") };
    assert_eq!(response.status(), 400);
}
