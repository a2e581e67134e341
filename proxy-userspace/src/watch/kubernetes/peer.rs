//! By which addresses this process reaches the API: no Service may have them, or it would never
//! hear again that it must not.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::http::Uri;
use tokio::sync::watch;
use tracing::debug;

use super::Access;

/// A name may come to mean other addresses.
const PERIOD: Duration = Duration::from_secs(5);

/// Addresses with TCP ports.
pub type Peers = BTreeSet<(IpAddr, u16)>;

/// Host and port of a URL.
pub(super) fn place(url: &Uri) -> (String, u16) {
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let host = url.host().unwrap_or_default();
    (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
}

/// Tells the addresses of the server, or of the proxy before it, until nobody listens any more.
pub async fn follow(access: Access, known: watch::Sender<Peers>) {
    while !known.is_closed() {
        let (host, port) = access.current().peer;
        match tokio::net::lookup_host((host.as_str(), port)).await {
            Ok(found) => {
                let found: Peers = found.map(|at: SocketAddr| (at.ip().to_canonical(), at.port())).collect();
                known.send_if_modified(|before| std::mem::replace(before, found.clone()) != found);
            }
            Err(error) => {
                debug!(host, %error, "cannot resolve the API server's name; keeping its last addresses")
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_port_has_its_schemes() {
        let at = |url: &'static str| place(&Uri::from_static(url));
        assert_eq!(at("https://api.example"), ("api.example".to_owned(), 443));
        assert_eq!(at("http://192.0.2.1/base"), ("192.0.2.1".to_owned(), 80));
        assert_eq!(at("https://[2001:db8::1]:6443"), ("2001:db8::1".to_owned(), 6443));
    }
}
