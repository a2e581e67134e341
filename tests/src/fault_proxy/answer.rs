//! The body of an answer on its way through the fault proxy.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::watch;

use super::{Fault, Faults, Signal};

pub(super) type AnswerBody = UnsyncBoxBody<Bytes, std::io::Error>;

pub(super) fn frozen(faults: &Faults, request: &str) -> bool {
    faults.first(request, |fault| (*fault == Fault::Freeze).then_some(())).is_some()
}

/// The Status object of a refusal.
pub(super) fn refusal(code: u16) -> String {
    let reason = if code == 410 { "Expired" } else { "Fault" };
    serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "made by the fault proxy", "reason": reason, "code": code})
    .to_string()
}

/// An answer in progress. Watches pass line by line, other answers as they come.
pub(super) struct Answer {
    upstream: kube::client::Body,
    request: String,
    is_watch: bool,
    faults: Arc<Faults>,
    signal: watch::Receiver<Signal>,
    lines: BytesMut,
    pending: Bytes,
    /// Bytes passed since the rules were changed last.
    passed: usize,
    over: bool,
}

impl Answer {
    pub(super) fn new(
        upstream: kube::client::Body,
        request: String,
        faults: Arc<Faults>,
        signal: watch::Receiver<Signal>,
    ) -> Answer {
        let is_watch = request.contains("watch=");
        let (lines, pending) = (BytesMut::new(), Bytes::new());
        Answer { upstream, request, is_watch, faults, signal, lines, pending, passed: 0, over: false }
    }

    pub(super) fn into_body(self) -> AnswerBody {
        let stream = futures::stream::unfold(self, |mut answer| async move {
            let piece = answer.next().await?;
            Some((piece.map(Frame::data), answer))
        });
        StreamBody::new(stream).boxed_unsync()
    }

    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            if frozen(&self.faults, &self.request) {
                return std::future::pending().await;
            }
            if !self.pending.is_empty() {
                return Some(self.piece().await);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                changed = self.signal.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    self.passed = 0;
                }
                frame = self.upstream.frame() => match frame {
                    None => {
                        self.over = true;
                        self.pending = self.lines.split().freeze();
                    }
                    Some(Err(error)) => return Some(Err(std::io::Error::other(error))),
                    Some(Ok(frame)) => self.take(frame.into_data().unwrap_or_default()),
                },
            }
        }
    }

    fn take(&mut self, data: Bytes) {
        if !self.is_watch {
            self.pending = data;
            return;
        }
        self.lines.extend_from_slice(&data);
        let mut out = BytesMut::new();
        while let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
            let line = self.lines.split_to(end + 1);
            out.extend_from_slice(&self.event(&line));
        }
        self.pending = out.freeze();
    }

    /// What becomes of an event.
    fn event(&self, line: &[u8]) -> Vec<u8> {
        let is_bookmark = line.windows(10).any(|part| part == b"\"BOOKMARK\"");
        let changed = self.faults.first(&self.request, |fault| match fault {
            Fault::OnlyBookmarks if !is_bookmark => Some(Vec::new()),
            Fault::Truncate { events: 0, .. } | Fault::Corrupt { events: 0, .. } => None,
            Fault::Truncate { .. } | Fault::Corrupt { .. } if is_bookmark => None,
            Fault::Truncate { after, .. } | Fault::Corrupt { after, .. } if *after > 0 => {
                *after -= 1;
                None
            }
            Fault::Truncate { events, .. } => {
                *events -= 1;
                Some([&line[..line.len() / 2], b"\n"].concat())
            }
            Fault::Corrupt { events, .. } => {
                *events -= 1;
                Some(b"\x00{]\"\n".to_vec())
            }
            _ => None,
        });
        changed.unwrap_or_else(|| line.to_vec())
    }

    /// The next piece of what is there, as large and as soon as the faults let it.
    async fn piece(&mut self) -> std::io::Result<Bytes> {
        let slow = self.faults.first(&self.request, |fault| match fault {
            Fault::Slow { bytes, pause } => Some((*bytes, *pause)),
            _ => None,
        });
        let (most, pause) = slow.unwrap_or((usize::MAX, Duration::ZERO));
        tokio::time::sleep(pause).await;
        let limit = self.faults.first(&self.request, |fault| match fault {
            Fault::ResetAfter(bytes) => Some(*bytes),
            _ => None,
        });
        let left = limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.passed));
        if left == 0 {
            return Err(std::io::Error::other("reset by the fault proxy"));
        }
        let piece = self.pending.split_to(self.pending.len().min(most).min(left));
        self.passed += piece.len();
        Ok(piece)
    }
}
