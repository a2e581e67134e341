//! Samples by proxy, number of Services and metric; medians and spread; stable names for `--json`.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

/// All samples of a run.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// The machine that it ran on
    pub(super) machine: Machine,
    /// The command line that printed these figures
    pub(super) command: String,
    /// Endpoints of each Service
    pub(super) endpoints: usize,
    /// One for each proxy, number of Services and metric
    #[serde(serialize_with = "as_list")]
    pub(super) results: BTreeMap<Key, Vec<f64>>,
    /// Proxies that did not finish, and why
    pub(super) given_up: Vec<GivenUp>,
}

/// What a series of samples is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Key {
    pub(super) metric: String,
    pub(super) services: usize,
    pub(super) proxy: String,
}

/// A proxy that was given up on.
#[derive(Debug, Serialize)]
pub(super) struct GivenUp {
    pub(super) proxy: String,
    pub(super) services: usize,
    pub(super) reason: String,
}

/// The machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
}

/// Median and range of some samples.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Figures {
    pub(super) fn new(endpoints: usize) -> Result<Self> {
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        Ok(Self {
            machine: Machine::here()?,
            command: format!("cargo xtask {command}"),
            endpoints,
            results: BTreeMap::new(),
            given_up: Vec::new(),
        })
    }

    /// Adds a sample and prints it.
    pub(super) fn add(&mut self, proxy: &str, services: usize, metric: &str, value: f64) {
        println!("  {metric:<34} {value:.6}");
        let key = Key { metric: metric.to_owned(), services, proxy: proxy.to_owned() };
        self.results.entry(key).or_default().push(value);
    }

    pub(super) fn give_up(&mut self, proxy: &str, services: usize, reason: &str) {
        self.given_up.push(GivenUp { proxy: proxy.to_owned(), services, reason: reason.to_owned() });
    }

    /// Median and range of a series.
    pub(super) fn spread(&self, proxy: &str, services: usize, metric: &str) -> Option<Spread> {
        let key = Key { metric: metric.to_owned(), services, proxy: proxy.to_owned() };
        self.results.get(&key).and_then(|samples| spread(samples))
    }

    /// The proxies with results, ours first.
    pub(super) fn proxies(&self) -> Vec<String> {
        let mut proxies: Vec<String> = self.results.keys().map(|key| key.proxy.clone()).collect();
        proxies.sort_by_key(|proxy| (proxy.starts_with("kube-proxy"), std::cmp::Reverse(proxy.clone())));
        proxies.dedup();
        proxies
    }

    /// The numbers of Services with results.
    pub(super) fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.results.keys().map(|key| key.services).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

/// Median and range; none without samples.
pub(super) fn spread(samples: &[f64]) -> Option<Spread> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some(Spread { median, min, max })
}

fn as_list<S: serde::Serializer>(
    results: &BTreeMap<Key, Vec<f64>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row<'a> {
        #[serde(flatten)]
        key: &'a Key,
        #[serde(flatten)]
        spread: Option<Spread>,
        samples: &'a [f64],
    }
    serializer.collect_seq(results.iter().map(|(key, samples)| Row { key, spread: spread(samples), samples }))
}

impl Machine {
    fn here() -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path);
        let cpus = read("/proc/cpuinfo")?;
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        let kilobytes: u64 =
            memory.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        Ok(Self {
            cpu: field(&cpus, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: kilobytes * 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |samples: &[f64]| spread(samples).map(|spread| (spread.median, spread.min, spread.max));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(of(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(of(&[]), None);
    }
}
