//! Samples by proxy, number of Services and metric; medians and spread; stable names for `--json`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// All samples of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Figures {
    /// The machine that it ran on
    pub(super) machine: Machine,
    /// The command line that printed these figures
    pub(super) command: String,
    /// The version of the API server and of kube-proxy; files of before there was a choice do not
    /// say it
    #[serde(default = "first_version")]
    pub(super) kubernetes: String,
    /// Endpoints of each Service
    pub(super) endpoints: usize,
    /// One for each proxy, number of Services and metric
    #[serde(with = "list")]
    pub(super) results: BTreeMap<Key, Vec<f64>>,
    /// Proxies that did not finish, and why
    pub(super) given_up: Vec<GivenUp>,
}

/// What a series of samples is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) metric: String,
    pub(super) services: usize,
    pub(super) proxy: String,
}

/// A proxy that was given up on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GivenUp {
    pub(super) proxy: String,
    pub(super) services: usize,
    pub(super) reason: String,
}

/// The machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
}

/// Median and range of some samples.
#[derive(Debug, Clone, Copy, Serialize)]
pub(in crate::bench) struct Spread {
    pub(in crate::bench) median: f64,
    pub(in crate::bench) min: f64,
    pub(in crate::bench) max: f64,
}

fn first_version() -> String {
    "1.36.3".to_owned()
}

impl Figures {
    pub(super) fn new(endpoints: usize, kubernetes: &str) -> Result<Self> {
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        Ok(Self {
            machine: Machine::here()?,
            command: format!("cargo xtask {command}"),
            kubernetes: kubernetes.to_owned(),
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

    /// Reads what an earlier run wrote.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: not written by --json", file.display()))
    }

    /// Writes every sample.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Median and range; none without samples.
pub(in crate::bench) fn spread(samples: &[f64]) -> Option<Spread> {
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

/// Series as a list of rows, each with its key, its median and range, and its samples.
mod list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Key, Spread, spread};

    #[derive(Serialize)]
    struct Row<'a> {
        #[serde(flatten)]
        key: &'a Key,
        #[serde(flatten)]
        spread: Option<Spread>,
        samples: &'a [f64],
    }

    #[derive(Deserialize)]
    struct Read {
        #[serde(flatten)]
        key: Key,
        samples: Vec<f64>,
    }

    pub(super) fn serialize<S: Serializer>(
        results: &BTreeMap<Key, Vec<f64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(results.iter().map(|(key, samples)| Row {
            key,
            spread: spread(samples),
            samples,
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Key, Vec<f64>>, D::Error> {
        let rows = Vec::<Read>::deserialize(deserializer)?;
        Ok(rows.into_iter().map(|row| (row.key, row.samples)).collect())
    }
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

    #[test]
    fn what_was_written_can_be_read() {
        let mut figures = Figures::new(10, "1.36.3").unwrap();
        figures.add("nftables", 1000, "change_seconds", 0.25);
        figures.add("nftables", 1000, "change_seconds", 0.5);
        figures.give_up("kube-proxy-iptables", 1000, "no patience");
        let file = std::env::temp_dir().join(format!("sluice-figures-{}.json", std::process::id()));
        figures.write(&file).unwrap();
        let read = Figures::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read.results, figures.results);
        assert_eq!((read.command, read.given_up.len()), (figures.command, 1));
    }
}
