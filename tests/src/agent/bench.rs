//! Loads of benchmarks: servers that do as little as they can, and clients that keep them busy and
//! measure.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::dial::{self, PATIENCE};
use super::protocol::Outcome;
use crate::target::Target;

/// What is sent to and fro in [`Work::Requests`], in bytes.
const MESSAGE: usize = 64;
/// What is written at once in [`Work::Stream`], in bytes.
const BLOCK: usize = 128 << 10;

/// What a benchmark server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// Accept and close
    Greet,
    /// Send back what comes
    Echo,
    /// Read and forget
    Sink,
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// One connection after the other, each until the server closes it
    Connections,
    /// One message after the other, answered, in one connection
    Requests,
    /// As many bytes as go through
    Stream,
}

/// A client's order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchRequest {
    /// Where to
    pub target: Target,
    /// What to do
    pub work: Work,
    /// So many at a time
    pub workers: usize,
    /// For so long
    pub millis: u64,
    /// Between two connections or messages of a worker
    pub pause_micros: u64,
    /// How long a connection may take to be made, and each answer; the agent's own patience when
    /// not given
    pub patience: Option<Duration>,
}

/// What a client has done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Connections or messages done, or bytes sent
    pub done: u64,
    /// Those that failed
    pub failed: u64,
    /// Why the first one did
    pub first_failure: Option<String>,
    /// The time it took
    pub seconds: f64,
    /// Median of each one's time, seconds
    pub p50: f64,
    /// 99th percentile of each one's time, seconds
    pub p99: f64,
    /// The longest, seconds
    pub max: f64,
}

/// Keeps the calling thread, and those that it starts, on one of the first two CPUs. Where the
/// scheduler puts client and server, on one CPU or on two, would else decide over a factor of
/// three. A machine with one CPU has no choice anyway.
fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    let _ = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}

/// Starts a server; it runs as long as the process.
pub fn serve(service: Service, port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))?;
    thread::spawn(move || {
        stay_on(1);
        for stream in listener.incoming() {
            // A connection that went away before it was accepted is not the server's concern.
            let Ok(stream) = stream else { continue };
            match service {
                Service::Greet => drop(stream),
                Service::Echo => drop(thread::spawn(move || pump(stream, true))),
                Service::Sink => drop(thread::spawn(move || pump(stream, false))),
            }
        }
    });
    Ok(())
}

fn pump(mut stream: TcpStream, back: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BLOCK];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if back {
            stream.write_all(&buffer[..length])?;
        }
    }
}

/// Works for the time that was asked for.
#[must_use]
pub fn run(request: &BenchRequest) -> BenchReport {
    let started = Instant::now();
    let end = started + Duration::from_millis(request.millis);
    let reports: Vec<Worker> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..request.workers.max(1)).map(|_| scope.spawn(|| Worker::run(request, end))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    let mut all = Worker::default();
    for report in reports {
        all.done += report.done;
        all.failed += report.failed;
        all.first_failure = all.first_failure.or(report.first_failure);
        all.times.extend(report.times);
    }
    all.times.sort_unstable();
    let at = |share: f64| {
        let index = (all.times.len() as f64 * share) as usize;
        all.times.get(index.min(all.times.len().saturating_sub(1))).map_or(0.0, Duration::as_secs_f64)
    };
    BenchReport {
        done: all.done,
        failed: all.failed,
        seconds: started.elapsed().as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        max: at(1.0),
        first_failure: all.first_failure,
    }
}

#[derive(Debug, Default)]
struct Worker {
    done: u64,
    failed: u64,
    first_failure: Option<String>,
    times: Vec<Duration>,
}

impl Worker {
    fn run(request: &BenchRequest, end: Instant) -> Self {
        stay_on(0);
        let mut worker = Self::default();
        while Instant::now() < end {
            let worked = match request.work {
                Work::Connections => worker.connection(request),
                Work::Requests => worker.requests(request, end),
                Work::Stream => worker.stream(request, end),
            };
            if let Err(error) = worked {
                worker.failed += 1;
                worker.first_failure.get_or_insert_with(|| error.to_string());
            }
        }
        worker
    }

    fn time(&mut self, started: Instant, request: &BenchRequest) {
        self.done += 1;
        self.times.push(started.elapsed());
        if request.pause_micros > 0 {
            thread::sleep(Duration::from_micros(request.pause_micros));
        }
    }

    fn connection(&mut self, request: &BenchRequest) -> io::Result<()> {
        let started = Instant::now();
        let mut stream = open(request)?;
        let length = stream.read(&mut [0; 8])?;
        if length > 0 {
            return Err(io::Error::other("the answer is from another server"));
        }
        self.time(started, request);
        Ok(())
    }

    fn requests(&mut self, request: &BenchRequest, end: Instant) -> io::Result<()> {
        let mut stream = open(request)?;
        let (message, mut answer) = ([7; MESSAGE], [0; MESSAGE]);
        while Instant::now() < end {
            let started = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut answer)?;
            self.time(started, request);
        }
        Ok(())
    }

    fn stream(&mut self, request: &BenchRequest, end: Instant) -> io::Result<()> {
        let mut stream = open(request)?;
        let block = vec![7; BLOCK];
        while Instant::now() < end {
            self.done += stream.write(&block)? as u64;
        }
        Ok(())
    }
}

fn open(request: &BenchRequest) -> io::Result<TcpStream> {
    let patience = request.patience.unwrap_or(PATIENCE);
    let stream = TcpStream::connect_timeout(&request.target.socket(), patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// Opens connections, half a millisecond apart, until `pod` answers one. Returns the Unix time at
/// which that connection began.
pub fn await_answer(target: Target, pod: &str, limit: Duration) -> io::Result<f64> {
    let end = Instant::now() + limit;
    loop {
        let began = unix_now();
        if matches!(dial::attempt_within(target, Duration::from_millis(200)), Outcome::Answer(answer) if answer.pod == pod)
        {
            return Ok(began);
        }
        if Instant::now() > end {
            return Err(io::Error::other(format!("{pod} did not answer within {limit:?}")));
        }
        // A proxy that works meanwhile must not have to share its core with this.
        thread::sleep(Duration::from_micros(500));
    }
}

/// Now, as Unix seconds.
#[must_use]
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(port: u16, work: Work) -> BenchReport {
        let target = format!("tcp://127.0.0.1:{port}").parse().unwrap();
        run(&BenchRequest { target, work, workers: 2, millis: 50, pause_micros: 0, patience: None })
    }

    #[test]
    fn each_kind_of_work_is_counted_and_failures_too() {
        for (service, work, port) in [
            (Service::Greet, Work::Connections, 34_801),
            (Service::Echo, Work::Requests, 34_802),
            (Service::Sink, Work::Stream, 34_803),
        ] {
            serve(service, port).unwrap();
            let report = load(port, work);
            assert!(report.done > 0 && report.failed == 0, "{work:?}: {report:?}");
            assert!(work == Work::Stream || report.p50 > 0.0 && report.p50 <= report.p99);
        }
        let nobody = load(34_809, Work::Connections);
        assert!(nobody.done == 0 && nobody.failed > 0 && nobody.first_failure.is_some());
    }
}
