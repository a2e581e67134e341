//! Connections of the fault proxy.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kube::Client;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::answer::{Answer, AnswerBody, frozen, refusal};
use super::{Fault, Faults, Options, Signal, Started};

#[derive(Clone)]
struct Proxy {
    upstream: Client,
    faults: Arc<Faults>,
    signal: watch::Receiver<Signal>,
}

/// Serves until told to end.
pub(super) async fn serve(
    options: &Options,
    faults: Arc<Faults>,
    mut signal: watch::Receiver<Signal>,
    ready: Started,
) -> anyhow::Result<()> {
    let mut config = kube::Config::new(options.upstream.parse().context("the upstream's URL")?);
    config.accept_invalid_certs = true;
    config.read_timeout = None;
    config.default_retry = false;
    let upstream = Client::try_from(config)?;
    let proxy = Proxy { upstream, faults: faults.clone(), signal: signal.clone() };
    let tls = acceptor()?;
    let mut listener = Some(TcpListener::bind(options.listen).await?);
    let address = listener.as_ref().context("no listener")?.local_addr()?;
    let _ = ready.send(Ok(address));
    let mut connections = JoinSet::new();
    let mut resets = 0;
    loop {
        tokio::select! {
            accepted = accept(listener.as_ref()) => {
                connections.spawn(connection(accepted?, tls.clone(), proxy.clone()));
            }
            changed = signal.changed() => {
                changed?;
                let now = *signal.borrow_and_update();
                if now.end {
                    return Ok(());
                }
                // The listener goes first: who sees its connection break must not get another.
                listener = match (faults.refuses(), listener) {
                    (true, _) => None,
                    (false, Some(listener)) => Some(listener),
                    (false, None) => Some(TcpListener::bind(address).await?),
                };
                if now.resets != resets || listener.is_none() {
                    resets = now.resets;
                    connections.shutdown().await;
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// TLS with a certificate of nobody in particular.
fn acceptor() -> anyhow::Result<TlsAcceptor> {
    let signed = rcgen::generate_simple_self_signed(["fault-proxy.example".to_owned()])?;
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 22;

async fn connection(stream: TcpStream, tls: TlsAcceptor, proxy: Proxy) {
    // A closed connection is a reset one, as when the other end dies.
    let _ = stream.set_zero_linger();
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(_) if first == [HANDSHAKE] => {
            if let Ok(stream) = tls.accept(stream).await {
                requests(stream, proxy).await;
            }
        }
        _ => requests(stream, proxy).await,
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, proxy: Proxy) {
    let service = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(answer(request, proxy).await) }
    });
    // Broken connections are what this is for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, proxy: Proxy) -> Response<AnswerBody> {
    let name = request.uri().to_string();
    let status = proxy.faults.first(&name, |fault| match fault {
        Fault::Status { code, retry_after, requests } if *requests > 0 => {
            *requests -= 1;
            Some((*code, *retry_after))
        }
        _ => None,
    });
    if let Some((code, retry_after)) = status {
        return refused(code, retry_after);
    }
    if frozen(&proxy.faults, &name) {
        return std::future::pending().await;
    }
    match forward(request, &proxy.upstream).await {
        Ok(response) => {
            let (head, body) = response.into_parts();
            Response::from_parts(head, Answer::new(body, name, proxy.faults, proxy.signal).into_body())
        }
        Err(error) => {
            let mut response = refused(502, None);
            *response.body_mut() = text(format!("{error:#}"));
            response
        }
    }
}

fn refused(code: u16, retry_after: Option<u64>) -> Response<AnswerBody> {
    let mut response = Response::new(text(refusal(code)));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn text(text: String) -> AnswerBody {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

async fn forward(
    request: Request<Incoming>,
    upstream: &Client,
) -> anyhow::Result<Response<kube::client::Body>> {
    let (mut head, body) = request.into_parts();
    head.headers.remove(HOST);
    let body = body.collect().await?.to_bytes();
    Ok(upstream.send(Request::from_parts(head, kube::client::Body::from(body.to_vec()))).await?)
}

/// For the tests of the proxy itself.
#[cfg(test)]
pub(super) async fn listen_anywhere() -> std::io::Result<(TcpListener, std::net::SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
