//! The HTTP servers. Anybody who reaches the node may connect, so what one client holds is bounded:
//! a [`Gate`] says how many connections there are, each ends some time after its last request, and
//! heads of requests are small.
//!
//! A crowd does not keep a probe out: to accept never stops, and when all connections are taken,
//! one of the crowd's goes.

pub mod debug;
mod gate;
pub mod health;
pub mod server;
pub mod syncs;
mod zpages;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

pub use gate::Gate;
use gate::Place;

/// How long after it was accepted, or after the head of its last request, a connection ends:
/// whether it is idle, sends slowly, or reads slowly. No multiple of the usual periods of those who
/// ask again and again, or both would often meet.
const PATIENCE: Duration = Duration::from_secs(9);
/// Bytes of the head of a request. Tokens and cookies have their place in it.
const HEAD_BYTES: usize = 16 * 1024;
/// Fields of the head of a request.
const HEAD_FIELDS: usize = 64;
/// Connections that wait to be accepted; the kernel's limit for it (net.core.somaxconn) is the same
/// by default.
const BACKLOG: u32 = 4096;
/// Between two tries to accept, when that fails: nearly always because there are too many open
/// files.
const PAUSE: Duration = Duration::from_millis(50);

/// Whose connections the IPv6 wildcard takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wildcard {
    /// Those of both families.
    Both,
    /// Only those of IPv6.
    Ipv6,
}

/// Listens.
pub fn listen(address: SocketAddr, wildcard: Wildcard) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &(wildcard == Wildcard::Ipv6))?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers whoever connects, until this is dropped; that ends its connections.
pub async fn serve(listener: TcpListener, gate: Gate, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Ok(own) = stream.local_addr()
                    && let Some((place, leave)) = gate.enter(peer.ip(), own.ip()).await
                {
                    connections.spawn(answer(Guest { stream, place }, leave, router.clone()));
                }
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                gate.make_room();
                sleep(PAUSE).await;
            }
        }
    }
}

/// A connection and its place, which is free when the connection is closed: fields are dropped in
/// their order.
struct Guest {
    stream: TcpStream,
    place: Place,
}

/// Answers requests of a connection until it ends, is slow, or has to leave.
async fn answer(guest: Guest, leave: oneshot::Receiver<()>, router: Router) {
    let Guest { stream, place } = guest;
    let pages = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        place.asked(Instant::now());
        pages.call(request)
    });
    // Small answers must not wait for more.
    let _ = stream.set_nodelay(true);
    let mut server = http1::Builder::new();
    server.max_headers(HEAD_FIELDS).max_buf_size(HEAD_BYTES);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let mut leave = pin!(leave);
    while let Some(last) = place.last().filter(|last| last.elapsed() < PATIENCE) {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    debug!(%error, "a connection broke off");
                }
                return;
            }
            _ = &mut leave => return,
            () = sleep_until(last + PATIENCE) => {}
        }
    }
}
