//! The agent process: reads requests from stdin, serves each in its own thread, writes replies to stdout.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::hold::Held;
use super::protocol::{Reply, ReplyLine, Request, RequestLine};
use super::{dial, echo, hold, http, load, lock};

type Holds = Arc<Mutex<HashMap<String, Held>>>;

/// Serves until stdin ends, which it does when the runner is gone.
pub fn run() -> Result<()> {
    let holds = Holds::default();
    for line in std::io::stdin().lock().lines() {
        let RequestLine { id, request } = serde_json::from_str(&line?).context("reading a request")?;
        let holds = Arc::clone(&holds);
        std::thread::spawn(move || {
            let reply =
                serve(request, &holds).unwrap_or_else(|error| Reply::Failed { reason: format!("{error:#}") });
            if let Ok(mut text) = serde_json::to_string(&ReplyLine { id, reply }) {
                text.push('\n');
                let mut stdout = std::io::stdout().lock();
                // Fails when the runner is gone; then stdin ends too.
                drop(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
            }
        });
    }
    Ok(())
}

fn serve(request: Request, holds: &Holds) -> Result<Reply> {
    match request {
        Request::Sysctl { settings } => {
            for (path, value) in settings {
                std::fs::write(format!("/proc/sys/{path}"), &value)
                    .with_context(|| format!("setting {path} to {value}"))?;
            }
            Ok(Reply::Done)
        }
        Request::Listen { listen, name } => {
            echo::listen(listen, name).with_context(|| format!("listening on {listen}"))?;
            Ok(Reply::Done)
        }
        Request::Probe(request) => Ok(Reply::Probe { attempts: dial::probe(&request) }),
        Request::Hold { id, target, connected } => {
            let held = if connected { hold::connection(target)? } else { hold::datagrams(target)? };
            lock(holds).insert(id, held);
            Ok(Reply::Done)
        }
        Request::Held { id } => {
            let status = lock(holds).get(&id).map(Held::status);
            Ok(Reply::Held(status.ok_or_else(|| anyhow!("nothing is held as {id}"))?))
        }
        Request::Serve { service, port } => {
            load::serve(service, port).with_context(|| format!("listening on {port}"))?;
            Ok(Reply::Done)
        }
        Request::Load(request) => Ok(Reply::Load(load::run(&request))),
        Request::AwaitAnswer { target, pod, limit_ms } => {
            Ok(Reply::Moment(load::await_answer(target, &pod, Duration::from_millis(limit_ms))?))
        }
        Request::HttpGet { url } => Ok(Reply::Http(http::get(&url)?)),
    }
}
