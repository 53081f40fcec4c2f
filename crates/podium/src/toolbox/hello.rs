//! `hello`: a web server that answers its host name.
//!
//! | path | answer |
//! |---|---|
//! | `/` | `$GREETING` if set, and the host name |
//! | `/healthz` | 200 `ok`, or 500 after `/healthz/fail`, until `/healthz/ok` |
//! | `/headers` | the request as it came |
//! | `/exit` | ends the server with exit code 3 |

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{fail, signal};
use crate::cli::outln;

/// Most header lines of a request that are read.
const MAX_HEADERS: usize = 100;

struct Server {
    host_name: String,
    greeting: Option<String>,
    failing: AtomicBool,
}

/// `hello [--port N]` (default 8080)
pub(super) fn hello(arguments: &[String]) -> u8 {
    signal::exit_on_termination(|_| 0);
    let port = match arguments {
        [] => 8080,
        [flag, port] if flag == "--port" => match port.parse() {
            Ok(port) => port,
            Err(_) => return fail("hello", format!("invalid port {port:?}")),
        },
        _ => return fail("hello", "usage: hello [--port N]"),
    };
    // The first listens for IPv4 too; a kernel without IPv6 has the second alone.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return fail("hello", format!("port {port}: {error}")),
    };
    let server = Arc::new(Server {
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        greeting: std::env::var("GREETING").ok(),
        failing: AtomicBool::new(false),
    });
    outln(&format!("hello: {} serves port {port}", server.host_name));
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let server = Arc::clone(&server);
                std::thread::spawn(move || {
                    if let Err(error) = serve(&server, stream) {
                        outln(&format!("hello: {error}"));
                    }
                });
            }
            Err(error) => outln(&format!("hello: accept: {error}")),
        }
    }
    0
}

/// One request per connection.
fn serve(server: &Server, stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut peer = stream.peer_addr()?;
    peer.set_ip(peer.ip().to_canonical());
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut headers = Vec::new();
    for line in lines.take(MAX_HEADERS) {
        let line = line?;
        if line.is_empty() {
            break;
        }
        headers.push(line);
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (status, body) = server.answer(path, &request, &headers);
    if path != "/healthz" {
        outln(&format!("{} {peer} {request:?} {status}", jiff::Timestamp::now()));
    }
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.flush()?;
    if path == "/exit" {
        std::process::exit(3);
    }
    Ok(())
}

impl Server {
    fn answer(&self, path: &str, request: &str, headers: &[String]) -> (&'static str, String) {
        match path.split('?').next().unwrap_or(path) {
            "/" => {
                let greeting = self.greeting.as_ref().map(|g| format!("{g} ")).unwrap_or_default();
                ("200 OK", format!("{greeting}{}\n", self.host_name))
            }
            "/healthz" if self.failing.load(Ordering::Relaxed) => {
                ("500 Internal Server Error", "told to fail\n".to_owned())
            }
            "/healthz" => ("200 OK", "ok\n".to_owned()),
            "/healthz/fail" => self.tell(true),
            "/healthz/ok" => self.tell(false),
            "/headers" => ("200 OK", format!("{request}\n{}\n", headers.join("\n"))),
            "/exit" => ("200 OK", "bye\n".to_owned()),
            _ => ("404 Not Found", "not found\n".to_owned()),
        }
    }

    fn tell(&self, failing: bool) -> (&'static str, String) {
        self.failing.store(failing, Ordering::Relaxed);
        ("200 OK", format!("{} {}\n", self.host_name, if failing { "will fail" } else { "is well" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_can_be_told_to_fail_and_to_recover() {
        let server = Server {
            host_name: "web-1".into(),
            greeting: Some("hi".into()),
            failing: AtomicBool::new(false),
        };
        let ask = |path: &str| {
            let (status, body) = server.answer(path, "", &[]);
            format!("{path}: {status}: {}", body.trim_end())
        };
        let seen: Vec<String> =
            ["/", "/healthz", "/healthz/fail", "/healthz", "/healthz/ok", "/healthz", "/x"].map(ask).to_vec();
        expect_test::expect![[r#"
            /: 200 OK: hi web-1
            /healthz: 200 OK: ok
            /healthz/fail: 200 OK: web-1 will fail
            /healthz: 500 Internal Server Error: told to fail
            /healthz/ok: 200 OK: web-1 is well
            /healthz: 200 OK: ok
            /x: 404 Not Found: not found"#]]
        .assert_eq(&seen.join("\n"));
    }
}
