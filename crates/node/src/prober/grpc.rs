//! The gRPC health check (grpc.health.v1): one call of `Check` over HTTP/2 without TLS.

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Value of `status` in the answer that is a success.
const SERVING: u8 = 1;

/// Asks a server for the health of a service; an empty name asks for the server's own.
pub(super) async fn check(stream: TcpStream, authority: &str, service: &str) -> Result<(), String> {
    let failed = |error: hyper::Error| format!("health rpc failed: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(failed)?;
    let request = http::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(question(service)))
        .map_err(|error| format!("health rpc failed: {error}"))?;
    let call = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let head = response.headers().clone();
        let answer = response.into_body().collect().await.map_err(failed)?;
        let trailers = answer.trailers().cloned().unwrap_or_default();
        // a server that refuses at once sends the status among the headers
        let code = trailers.get("grpc-status").or_else(|| head.get("grpc-status"));
        let message = trailers.get("grpc-message").or_else(|| head.get("grpc-message"));
        let text = |value: Option<&http::HeaderValue>| {
            value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
        };
        match text(code).as_str() {
            "0" => verdict(&answer.to_bytes()),
            code => Err(format!("health rpc failed: code {code}: {}", text(message))),
        }
    };
    // the connection is driven here, not in a task: it ends with the call
    tokio::select! {
        outcome = call => outcome,
        ended = connection => Err(ended.err().map_or("health rpc failed: EOF".into(), failed)),
    }
}

/// `HealthCheckRequest { string service = 1 }` in a frame: uncompressed, with its length.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.put_u8(u8::try_from(value).unwrap_or_default());
}

/// `HealthCheckResponse { ServingStatus status = 1 }` in a frame.
fn verdict(frame: &[u8]) -> Result<(), String> {
    let status = match frame.get(5..) {
        // an absent field is its zero
        Some([]) => 0,
        Some([0x08, status, ..]) if frame[0] == 0 => *status,
        _ => return Err("health rpc failed: malformed answer".into()),
    };
    let name = match status {
        SERVING => return Ok(()),
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    };
    Err(format!("service unhealthy (responded with {name:?})"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_question_carries_the_services_name() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "x".repeat(300);
        assert_eq!(&question(&long)[5..8], [0x0a, 0xac, 0x02]);
    }

    #[test]
    fn only_serving_is_healthy() {
        assert_eq!(verdict(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        assert_eq!(
            verdict(&[0, 0, 0, 0, 2, 8, 2]).unwrap_err(),
            "service unhealthy (responded with \"NOT_SERVING\")"
        );
        assert!(verdict(&[0, 0, 0, 0, 0]).unwrap_err().contains("UNKNOWN"));
        assert!(verdict(&[]).unwrap_err().contains("malformed"));
    }

    /// A server that answers every call with a frame and a status in the trailers.
    async fn serve(frame: &'static [u8], code: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let answer =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(body, question("me"));
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", code.parse().unwrap());
                    trailers.insert("grpc-message", "told".parse().unwrap());
                    let frames = [Frame::data(Bytes::from_static(frame)), Frame::trailers(trailers)];
                    let frames = frames.map(Ok::<_, Infallible>);
                    Ok::<_, Infallible>(http::Response::new(StreamBody::new(futures_util::stream::iter(
                        frames,
                    ))))
                });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.serve_connection(TokioIo::new(stream), answer).await
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let (outcome, _) = tokio::join!(check(stream, "pod:5000", "me"), server);
        outcome
    }

    #[tokio::test]
    async fn a_servers_answer_decides() {
        assert_eq!(serve(&[0, 0, 0, 0, 2, 8, 1], "0").await, Ok(()));
        assert!(serve(&[0, 0, 0, 0, 2, 8, 2], "0").await.unwrap_err().contains("NOT_SERVING"));
        assert_eq!(serve(&[], "5").await.unwrap_err(), "health rpc failed: code 5: told");
    }
}
