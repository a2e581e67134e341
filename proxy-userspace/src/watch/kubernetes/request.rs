//! One request to the API server, with its limits and metrics.

use std::time::{Duration, Instant};

use axum::http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, Method, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;

use super::access::{Access, Current};
use super::failure::{Failure, Reason};
use crate::observe::metrics::Metrics;

/// How long to wait for the text of a refusal, and how much of it is read.
const REFUSAL_TIME: Duration = Duration::from_secs(5);
const REFUSAL_BYTES: usize = 64 << 10;

/// Makes requests. Clones share the client.
#[derive(Clone)]
pub(crate) struct Requests {
    access: Access,
    metrics: Metrics,
    /// How long to wait for the head of an answer.
    answer: Duration,
}

/// An answer that is a success; its body is read as it comes.
pub(super) struct Answer {
    body: Body,
}

impl Answer {
    /// The next bytes, none at the end.
    pub(super) async fn next(&mut self, idle: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let silent = |_| Failure::new(Reason::Timeout, format!("nothing was received for {idle:?}"));
            match tokio::time::timeout(idle, self.body.frame()).await.map_err(silent)? {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::broken(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

impl Requests {
    pub(crate) fn new(access: Access, metrics: Metrics, answer: Duration) -> Requests {
        Requests { access, metrics, answer }
    }

    /// The server, for the log.
    pub(super) fn server(&self) -> String {
        self.access.current().server
    }

    /// Gets a resource.
    pub(super) async fn get(&self, path_and_query: &str) -> Result<Answer, Failure> {
        self.send(Method::GET, path_and_query, None).await
    }

    /// Posts an object; what is wrong when that fails.
    pub(crate) async fn post(&self, path: &str, object: &serde_json::Value) -> Result<(), String> {
        let sent = self.send(Method::POST, path, Some(object.to_string().into_bytes())).await;
        sent.map(drop).map_err(|failure| failure.message)
    }

    async fn send(&self, method: Method, url: &str, body: Option<Vec<u8>>) -> Result<Answer, Failure> {
        let current = self.access.current();
        let begun = Instant::now();
        let result = self.exchange(&current, method.clone(), url, body).await;
        let code = match &result {
            Ok(response) => response.status().as_str().to_owned(),
            Err(_) => "<error>".to_owned(),
        };
        let host = || current.host.to_string();
        let counted = [("code", code), ("method", method.to_string()), ("host", host())];
        self.metrics.rest_requests.get_or_create(&counted).inc();
        let timed = [("verb", method.to_string()), ("host", host())];
        self.metrics.rest_duration.get_or_create(&timed).observe(begun.elapsed().as_secs_f64());
        match result {
            Ok(response) if response.status().is_success() => Ok(Answer { body: response.into_body() }),
            Ok(response) => Err(self.refused(&current, response).await),
            Err(failure) => {
                // The CA or the means to get credentials may have changed on disk.
                if matches!(failure.reason, Reason::Tls | Reason::Unauthorized) {
                    self.access.renew(current.generation).await;
                }
                Err(failure)
            }
        }
    }

    async fn exchange(
        &self,
        current: &Current,
        method: Method,
        url: &str,
        body: Option<Vec<u8>>,
    ) -> Result<axum::http::Response<Body>, Failure> {
        let unread = |reason: String| Failure::new(Reason::Unauthorized, format!("tokenFile: {reason}"));
        let authorization = current.authorization.header().map_err(unread)?;
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body.unwrap_or_default()))
            .map_err(|error| Failure::new(Reason::Rejected, error.to_string()))?;
        if let Some(value) = authorization {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let silent = |_| Failure::new(Reason::Timeout, format!("no answer for {:?}", self.answer));
        let answer = tokio::time::timeout(self.answer, current.client.send(request)).await.map_err(silent)?;
        answer.map_err(|error| Failure::unanswered(&error))
    }

    async fn refused(&self, current: &Current, response: axum::http::Response<Body>) -> Failure {
        let (head, body) = response.into_parts();
        let read = tokio::time::timeout(REFUSAL_TIME, Limited::new(body, REFUSAL_BYTES).collect()).await;
        let text = read.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let failure = Failure::refused(head.status.as_u16(), retry_after(&head.headers), &text);
        if failure.reason == Reason::Unauthorized {
            self.access.renew(current.generation).await;
        }
        failure
    }
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()
}
