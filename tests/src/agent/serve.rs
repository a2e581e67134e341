//! The agent process: reads requests from stdin, serves each in its own thread, writes replies to
//! stdout.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::hold::Held;
use super::load::Load;
use super::protocol::{Reply, ReplyLine, Request, RequestLine};
use super::{bench, dial, echo, hold, http, lock, trial};

/// What runs until the agent ends, by name.
#[derive(Default)]
struct Running {
    holds: Mutex<HashMap<String, Held>>,
    loads: Mutex<HashMap<String, Load>>,
}

/// Serves until stdin ends, which it does when the runner is gone.
pub fn run() -> Result<()> {
    let running = Arc::new(Running::default());
    for line in std::io::stdin().lock().lines() {
        let RequestLine { id, request } = serde_json::from_str(&line?).context("reading a request")?;
        let running = Arc::clone(&running);
        std::thread::spawn(move || {
            let reply = serve(request, &running)
                .unwrap_or_else(|error| Reply::Failed { reason: format!("{error:#}") });
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

fn serve(request: Request, running: &Running) -> Result<Reply> {
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
        Request::Trial(trial) => Ok(Reply::Trial(trial::run(&trial))),
        Request::Hold { id, target, connected } => {
            let held = if connected { hold::connection(target)? } else { hold::datagrams(target)? };
            lock(&running.holds).insert(id, held);
            Ok(Reply::Done)
        }
        Request::Held { id } => {
            let status = lock(&running.holds).get(&id).map(Held::status);
            Ok(Reply::Held(status.ok_or_else(|| anyhow!("no connection is held with the id {id}"))?))
        }
        Request::EndHeld { id } => {
            let held = lock(&running.holds).remove(&id);
            held.ok_or_else(|| anyhow!("no connection is held with the id {id}"))?.end();
            Ok(Reply::Done)
        }
        Request::Load { id, load } => {
            lock(&running.loads).insert(id, Load::start(load));
            Ok(Reply::Done)
        }
        Request::Loaded { id, stop } => {
            let load = lock(&running.loads).get(&id).cloned();
            let load = load.ok_or_else(|| anyhow!("there is no load {id}"))?;
            if stop {
                load.stop();
            }
            Ok(Reply::Load(load.status()))
        }
        Request::Serve { service, port } => {
            bench::serve(service, port).with_context(|| format!("listening on {port}"))?;
            Ok(Reply::Done)
        }
        Request::Bench(request) => Ok(Reply::Bench(bench::run(&request))),
        Request::AwaitAnswer { target, pod, limit_ms } => {
            Ok(Reply::Moment(bench::await_answer(target, &pod, Duration::from_millis(limit_ms))?))
        }
        Request::HttpGet { url } => Ok(Reply::Http(http::get(&url)?)),
    }
}
