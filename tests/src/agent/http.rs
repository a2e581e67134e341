//! A small HTTP GET: enough for health and metrics endpoints.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::protocol::HttpAnswer;

const PATIENCE: Duration = Duration::from_secs(3);
/// No answer of interest is larger.
const MOST: u64 = 8 << 20;

/// Fetches `url`.
pub fn get(url: &str) -> Result<HttpAnswer> {
    let rest = url.strip_prefix("http://").ok_or_else(|| anyhow!("{url} is not an http:// URL"))?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
    let addr = with_port.to_socket_addrs()?.next().ok_or_else(|| anyhow!("{host} has no address"))?;
    let mut stream =
        TcpStream::connect_timeout(&addr, PATIENCE).with_context(|| format!("connecting to {addr}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes).context("reading the answer")?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<HttpAnswer> {
    let end =
        bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(|| anyhow!("no HTTP answer"))?;
    let (head, body) = bytes.split_at(end);
    let body = body.get(4..).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let chunked = headers.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked")
    });
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    let status = status.ok_or_else(|| anyhow!("no HTTP status"))?;
    Ok(HttpAnswer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else {
            bail!("a chunk without a size")
        };
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        let start = end + 2;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(start..start + size).ok_or_else(|| anyhow!("a short chunk"))?);
        rest = rest.get(start + size + 2..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers() {
        let plain = parse(b"HTTP/1.1 503 No\r\nX-A: 1\r\n\r\nhello").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (503, "hello"));
        assert_eq!(plain.headers, [("X-A".to_owned(), "1".to_owned())]);
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, "abcde");
        assert!(parse(b"nonsense").is_err());
    }
}
