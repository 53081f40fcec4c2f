//! `fetch`: reads a plain-HTTP URL and prints the body.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::process::duration;
use super::{fail, nslookup};
use crate::cli::outln;

/// `fetch [--every TIME] [--count N] [--timeout TIME] URL`: exit code 1 when the last request failed.
pub(super) fn fetch(arguments: &[String]) -> u8 {
    let (mut every, mut count, mut timeout, mut url) = (None, None, Duration::from_secs(5), None);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--every" => every = words.next().and_then(|t| duration(t)).flatten(),
            "--count" => count = words.next().and_then(|n| n.parse::<u64>().ok()),
            "--timeout" => timeout = words.next().and_then(|t| duration(t)).flatten().unwrap_or(timeout),
            _ => url = Some(word),
        }
    }
    let Some(url) = url else { return fail("fetch", "usage: fetch [--every TIME] [--count N] URL") };
    let rounds = count.unwrap_or(if every.is_some() { u64::MAX } else { 1 });
    let mut code = 0;
    for round in 0..rounds {
        if round > 0 {
            std::thread::sleep(every.unwrap_or_default());
        }
        code = match get(url, timeout) {
            Ok((200..=299, body)) => {
                outln(body.trim_end_matches('\n'));
                0
            }
            Ok((status, body)) => fail("fetch", format!("{url}: status {status}: {}", body.trim_end())),
            Err(error) => fail("fetch", format!("{url}: {error}")),
        };
    }
    code
}

/// `web`, `web:8080`, `[fd00::1]` or `[fd00::1]:8080`.
fn host_and_port(authority: &str) -> Result<(&str, u16), String> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Ok(80), |port| port.parse().map_err(|_| format!("invalid port {port:?}")))?;
    Ok((host, port))
}

/// Status code and body.
fn get(url: &str, timeout: Duration) -> Result<(u16, String), String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (host, port) = host_and_port(authority)?;
    let addresses = match host.parse::<std::net::IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => nslookup::lookup(host)?,
    };
    let address = (*addresses.first().ok_or("no address")?, port)
        .to_socket_addrs()
        .map_err(|e| e.to_string())?
        .next()
        .ok_or("no address")?;
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: fetch\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = exchange().map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no HTTP status")?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::host_and_port;

    #[test]
    fn addresses_of_ipv6_stand_in_brackets() {
        for (authority, expected) in [
            ("web", ("web", 80)),
            ("web:8080", ("web", 8080)),
            ("10.0.0.1:81", ("10.0.0.1", 81)),
            ("[fd00::1]", ("fd00::1", 80)),
            ("[fd00::1]:8080", ("fd00::1", 8080)),
        ] {
            assert_eq!(host_and_port(authority), Ok(expected));
        }
        assert!(host_and_port("web:x").is_err());
    }
}
