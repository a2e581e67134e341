//! Sources given anything: files of manifests, and objects on their way to operations of all
//! backends. `cargo xtask fuzz`

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use sluice_core::event::Event;
use sluice_core::index::Index;
use sluice_core::ipvs::{self, IpvsConfig, SchedulerName};
use sluice_core::plan::{Detector, PlanChange, PlanConfig, Planner, Scheduler};
use sluice_core::{ebpf, nft};
use sluice_fuzz::{Bytes, Rng, Trees, fuzz};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::decode::decode;
use super::manifests::Manifests;
use super::{Received, yaml};
use crate::observe::metrics::Metrics;

/// Directories of files with objects in them.
const FILES: [&str; 3] = ["tests/cases", "examples", "proxy-userspace/tests/inputs/manifests"];
/// What readers of YAML and of objects know.
const WORDS: [&str; 40] = [
    "---\n",
    "\n---\n",
    "...\n",
    "--- ",
    "# ",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!!binary ",
    "|\n ",
    ">-\n  ",
    "? ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "%YAML 1.2\n---\n",
    "\u{feff}",
    "\r\n",
    "\t",
    "apiVersion: v1\n",
    "kind: Service\n",
    "kind: List\nitems:\n",
    "metadata: {name: a}\n",
    "discovery.k8s.io/v1",
    "EndpointSlice",
    "0x10",
    "0o17",
    "1_000",
    ".inf",
    "192.0.2.1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "10.0.0.0/33",
    "30080",
];
/// After so many inputs everything begins anew.
const LIFE: u64 = 500;

/// All objects of the repository's files.
pub(super) fn objects() -> Vec<Value> {
    let texts = sluice_fuzz::corpus(&FILES);
    let texts = texts.iter().filter_map(|bytes| std::str::from_utf8(bytes).ok());
    let read = |text: &str| -> Vec<Value> {
        super::split::documents(text).iter().filter_map(|piece| yaml::value(piece.text).ok()).collect()
    };
    let objects: Vec<Value> =
        texts.flat_map(read).flat_map(|value| sluice_fuzz::objects(&value, &read)).collect();
    assert!(objects.len() > 100, "{}", objects.len());
    objects
}

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A manifest source that reads two files, and forgets them at its end.
struct Source {
    manifests: Manifests,
    events: mpsc::Receiver<Received>,
}

impl Source {
    fn new(directory: &Path) -> Self {
        let (sender, events) = mpsc::channel(1 << 20);
        Source {
            manifests: Manifests::new(directory.to_owned(), sender, Metrics::default()).unwrap(),
            events,
        }
    }

    async fn read(&mut self, file: &Path, bytes: &[u8]) {
        std::fs::write(file, bytes).unwrap();
        self.manifests.look_at(file).await;
        while self.events.try_recv().is_ok() {}
    }

    /// What is in no file must be in force no longer.
    async fn end(&mut self, files: [&Path; 2]) {
        for file in files {
            if std::fs::remove_file(file).is_ok() {
                self.manifests.look_at(file).await;
            }
        }
        assert!(self.manifests.is_forgotten(), "objects stay without a file");
        while self.events.try_recv().is_ok() {}
    }
}

#[test]
fn fuzz_manifests() {
    let directory = std::env::temp_dir().join(format!("sluice-fuzz-manifests-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let files = ["a.yaml", "z.json"].map(|name| directory.join(name));
    let mut corpus: Vec<Vec<u8>> =
        objects().iter().map(|object| serde_saphyr::to_string(object).unwrap().into_bytes()).collect();
    corpus.extend(sluice_fuzz::corpus(&FILES[1..]));
    let bytes = Bytes::new(corpus, &WORDS);
    let (runtime, mut source, mut read) = (runtime(), Source::new(&directory), 0);
    fuzz(
        "manifests",
        |rng| bytes.next(rng),
        |input| {
            read += 1;
            runtime.block_on(async {
                source.read(&files[input.len() % 2], input).await;
                if read % LIFE == 0 {
                    source.end([&files[0], &files[1]]).await;
                }
            });
        },
    );
    runtime.block_on(source.end([&files[0], &files[1]]));
    std::fs::remove_dir_all(&directory).unwrap();
}

/// From events to operations of all backends.
struct Node {
    index: Index,
    planner: Planner,
    nft: nft::Ledger,
    ebpf: ebpf::Ledger,
    ipvs: ipvs::Ledger,
}

impl Node {
    fn new() -> Self {
        let node_name = "node-a".to_owned();
        let detector = |network: &str| Detector::Cidr(network.parse().unwrap());
        let config = nft::NftConfig {
            detectors: [detector("10.244.1.0/24"), Detector::None],
            match_all_node_addresses: [true, true],
            ..nft::NftConfig::default()
        };
        let balanced = nft::NftConfig { balancer: nft::Balancer::Ipvs, ..config.clone() };
        let ipvs = IpvsConfig {
            scheduler: SchedulerName::ROUND_ROBIN,
            sticky: SchedulerName::MAGLEV,
            exclude: Vec::new(),
        };
        let ruleset = nft::Ledger::new(balanced, nft::NodeView::default());
        Node {
            index: Index::default(),
            planner: Planner::new(PlanConfig {
                node_name,
                detects_pods: [true, false],
                ..PlanConfig::default()
            }),
            nft: nft::Ledger::new(config, nft::NodeView::default()),
            ebpf: ebpf::Ledger::new(Scheduler::Maglev),
            ipvs: ipvs::Ledger::new(ipvs, ipvs::NodeView::default(), ruleset),
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            self.index.apply(event);
        }
        let dirty = self.index.take_dirty();
        self.index.opted_out("node-a");
        self.index.service_networks();
        let changes: Vec<PlanChange> = self.planner.replan(&self.index, dirty.services);
        self.nft.change(&changes);
        self.nft.delete_retired();
        self.ebpf.change(&changes);
        self.ipvs.change(&changes);
    }

    /// What is there after many changes is what a fresh start would make.
    fn compare(&self) {
        let mut fresh = Planner::new(self.planner.config().clone());
        let all = self.index.services().map(|service| service.name.clone()).collect();
        fresh.replan(&self.index, all);
        let plans = |planner: &Planner| -> BTreeMap<_, _> {
            planner.plans().map(|plan| (plan.name.clone(), Arc::clone(plan))).collect()
        };
        let (plans, fresh) = (plans(&self.planner), plans(&fresh));
        // One that is too large keeps its plan of before.
        if plans.values().chain(fresh.values()).any(|plan| plan.oversize.is_some()) {
            return;
        }
        assert!(plans.keys().eq(fresh.keys()));
        for (name, plan) in &plans {
            assert_eq!(plan, &fresh[name], "{name}");
        }
    }
}

#[test]
fn fuzz_objects() {
    let trees = Trees::new(objects(), &WORDS);
    // Names and addresses are those of the cases, so that what is made for one object meets what is
    // made for others.
    let make = |rng: &mut Rng| trees.next(rng).to_string().into_bytes();
    let node = RefCell::new((Node::new(), 0_u64));
    fuzz("objects", make, |input| {
        let mut guard = node.borrow_mut();
        let (node, read) = &mut *guard;
        *read += 1;
        if *read % LIFE == 0 {
            node.compare();
            *node = Node::new();
        }
        node.take(decode(&String::from_utf8_lossy(input)).events);
    });
}
