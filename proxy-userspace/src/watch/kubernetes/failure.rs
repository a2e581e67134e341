//! What can go wrong with a request, in the few kinds that ask for different answers.

use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use axum::http::StatusCode;
use serde::Deserialize;

/// The kind of a failure, as the metric `sluice_watch_errors_total` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The connection broke.
    Reset,
    /// The server said nothing for too long.
    Timeout,
    /// The server no longer, or not yet, knows the version asked for.
    Gone,
    /// The server asks to come back later.
    Throttled,
    /// The server failed.
    ServerError,
    /// The server does not know who asks.
    Unauthorized,
    /// The account may not do this.
    Forbidden,
    /// The server does not understand the request.
    Rejected,
    /// An answer, or a part of it, cannot be read.
    Malformed,
}

impl Reason {
    pub(super) fn label(self) -> &'static str {
        match self {
            Reason::Connect => "connect",
            Reason::Tls => "tls",
            Reason::Reset => "reset",
            Reason::Timeout => "timeout",
            Reason::Gone => "gone",
            Reason::Throttled => "throttled",
            Reason::ServerError => "server_error",
            Reason::Unauthorized => "unauthorized",
            Reason::Forbidden => "forbidden",
            Reason::Rejected => "rejected",
            Reason::Malformed => "malformed",
        }
    }
}

/// A failed request, or a stream that ended as it should not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) message: String,
    /// When the server wants to be asked again.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure { reason, message: message.into(), retry_after: None }
    }

    /// A request that got no answer.
    pub(super) fn unanswered(error: &kube::Error) -> Failure {
        let connecting = match error {
            kube::Error::Service(inner) => {
                inner.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect())
            }
            kube::Error::Auth(_) => return Failure::new(Reason::Unauthorized, without_secrets(error)),
            _ => false,
        };
        let reason = match (io_kind(error), connecting) {
            (Some(ErrorKind::InvalidData), true) => Reason::Tls,
            (_, true) => Reason::Connect,
            (Some(ErrorKind::TimedOut), false) => Reason::Timeout,
            _ => Reason::Reset,
        };
        let mut message = without_secrets(error);
        // What rustls makes of an answer that is no TLS.
        if reason == Reason::Tls && message.contains("InvalidContentType") {
            message += "; the server does not speak TLS: is it plain HTTP, or another port?";
        }
        Failure::new(reason, message)
    }

    /// A body that broke off.
    pub(super) fn broken(error: &(dyn Error + 'static)) -> Failure {
        Failure::new(Reason::Reset, chain(error))
    }

    /// An answer that is no success, or an ERROR event of a watch.
    pub(super) fn refused(code: u16, header_seconds: Option<u64>, body: &[u8]) -> Failure {
        let status: Status = serde_json::from_slice(body).unwrap_or_default();
        // A version that the server does not have yet: after a restore of etcd it never will.
        let too_large = status.details.causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge");
        let reason = match StatusCode::from_u16(code).unwrap_or_default() {
            StatusCode::GONE => Reason::Gone,
            _ if too_large => Reason::Gone,
            StatusCode::TOO_MANY_REQUESTS => Reason::Throttled,
            StatusCode::UNAUTHORIZED => Reason::Unauthorized,
            StatusCode::FORBIDDEN => Reason::Forbidden,
            status if status.is_client_error() => Reason::Rejected,
            _ => Reason::ServerError,
        };
        let seconds = header_seconds.or(status.details.retry_after_seconds);
        let message = if status.reason == status.message {
            format!("{code} {}", status.reason)
        } else {
            format!("{code} {} {}", status.reason, status.message)
        };
        Failure { reason, message, retry_after: seconds.map(Duration::from_secs) }
    }

    /// The failure that an ERROR event of a watch tells of.
    pub(super) fn told(object: &[u8]) -> Failure {
        let status: Status = serde_json::from_slice(object).unwrap_or_default();
        Failure::refused(status.code, None, object)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    reason: String,
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(rename = "retryAfterSeconds")]
    retry_after_seconds: Option<u64>,
    causes: Vec<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

/// What is wrong, without the output of a credential plugin, which may hold a token.
pub(super) fn without_secrets(error: &kube::Error) -> String {
    let auth = match error {
        kube::Error::Auth(auth) => Some(auth),
        // Of a refresh, inside a request.
        kube::Error::Service(inner) => inner.downcast_ref::<kube::client::AuthError>(),
        _ => None,
    };
    use kube::client::AuthError;
    match auth {
        // Not its command line, which shows its environment too.
        Some(AuthError::AuthExecRun { out, .. }) => {
            let said = String::from_utf8_lossy(&out.stderr);
            format!("exec: the plugin ended with {}: {}", out.status, said.lines().next().unwrap_or_default())
        }
        Some(AuthError::AuthExecParse(_)) => "exec: the plugin's output is not an ExecCredential".into(),
        Some(AuthError::ParseTokenKey(_)) => "exec: the plugin's output has no token".into(),
        Some(auth) => format!("exec: {auth}"),
        None => chain(error),
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        inner = error.source();
    }
    text
}

/// The kind of the innermost system error. One may wrap another, which `source` passes over.
fn io_kind(error: &(dyn Error + 'static)) -> Option<ErrorKind> {
    let mut next = Some(error);
    let mut found = None;
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        found = io.map(std::io::Error::kind).or(found);
        next = match io.and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_and_the_servers_wish_is_kept() {
        let reason = |code| Failure::refused(code, None, b"").reason;
        assert_eq!(reason(410), Reason::Gone);
        assert_eq!(reason(429), Reason::Throttled);
        assert_eq!(reason(500), Reason::ServerError);
        assert_eq!(reason(503), Reason::ServerError);
        assert_eq!(reason(401), Reason::Unauthorized);
        assert_eq!(reason(403), Reason::Forbidden);
        assert_eq!(reason(422), Reason::Rejected);
        assert_eq!(Failure::refused(429, Some(7), b"").retry_after, Some(Duration::from_secs(7)));
        let body = br#"{"details":{"retryAfterSeconds":3}}"#;
        assert_eq!(Failure::refused(429, None, body).retry_after, Some(Duration::from_secs(3)));
    }

    #[test]
    fn words_that_say_the_same_are_said_once() {
        let told = |body: &[u8]| Failure::refused(401, None, body).message;
        assert_eq!(told(br#"{"reason":"Unauthorized","message":"Unauthorized"}"#), "401 Unauthorized");
        assert_eq!(told(br#"{"reason":"Unauthorized","message":"no token"}"#), "401 Unauthorized no token");
    }

    #[test]
    fn the_innermost_system_error_counts() {
        let inner = std::io::Error::new(ErrorKind::InvalidData, "bad certificate");
        assert_eq!(io_kind(&std::io::Error::other(inner)), Some(ErrorKind::InvalidData));
        assert_eq!(io_kind(&std::fmt::Error), None);
    }

    #[test]
    fn a_version_from_the_future_is_not_waited_for() {
        let event =
            br#"{"kind":"Status","code":504,"reason":"Timeout","message":"Too large resource version",
            "details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}"#;
        assert_eq!(Failure::told(event).reason, Reason::Gone);
        assert_eq!(Failure::told(br#"{"code":410,"reason":"Expired"}"#).reason, Reason::Gone);
        assert_eq!(Failure::told(b"garbage").reason, Reason::ServerError);
    }
}
