//! The manifest directory as a source, with everything that can go wrong with files.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sluice::observe::metrics::Metrics;
use sluice::watch::Received;
use sluice::watch::manifests::Manifests;
use sluice_core::event::{Change, Event};
use sluice_core::model::Service;
use tokio::sync::mpsc;

struct Source {
    directory: PathBuf,
    events: mpsc::Receiver<Received>,
    metrics: Metrics,
    /// Names of the Services that the source has applied and not deleted.
    services: BTreeSet<String>,
    /// The first port of each Service that was ever applied.
    ports: BTreeMap<String, u16>,
}

impl Source {
    async fn start(test: &str, files: &[(&str, &str)]) -> Source {
        let directory = std::env::temp_dir().join(format!("sluice-manifests-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let (sender, events) = mpsc::channel(1024);
        let metrics = Metrics::default();
        tokio::spawn(Manifests::new(directory.clone(), sender, metrics.clone()).unwrap().run());
        let mut source =
            Source { directory, events, metrics, services: BTreeSet::new(), ports: BTreeMap::new() };
        source.until(|event| matches!(event, Event::Service(Change::ListEnd))).await;
        source
    }

    /// Takes events until one fits.
    async fn until(&mut self, wanted: impl Fn(&Event) -> bool) {
        loop {
            let received = tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await;
            let Ok(Some(Received { event, .. })) = received else { panic!("no such event") };
            match &event {
                Event::Service(Change::Apply(service)) => {
                    let name = service.name.name();
                    self.services.insert(name.to_owned());
                    if let Some(first) = service.ports.first() {
                        self.ports.insert(name.to_owned(), first.port);
                    }
                }
                Event::Service(Change::Delete(name)) => {
                    self.services.remove(name.name());
                }
                _ => {}
            }
            if wanted(&event) {
                return;
            }
        }
    }

    async fn until_applied(&mut self, name: &str) {
        self.until(|e| matches!(e, Event::Service(Change::Apply(s)) if s.name.name() == name)).await;
    }

    async fn until_port(&mut self, port: u16) {
        let of = |service: &Service| service.ports.first().map(|first| first.port);
        self.until(|e| matches!(e, Event::Service(Change::Apply(s)) if of(s) == Some(port))).await;
    }

    async fn until_deleted(&mut self, name: &str) {
        self.until(|e| matches!(e, Event::Service(Change::Delete(n)) if n.name() == name)).await;
    }

    /// Fails if anything is withdrawn within a while.
    async fn nothing_is_withdrawn(&mut self, during: Duration) {
        let end = tokio::time::Instant::now() + during;
        while let Ok(Some(Received { event, .. })) = tokio::time::timeout_at(end, self.events.recv()).await {
            assert!(!matches!(event, Event::Service(Change::Delete(_))), "{event:?}");
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.join(name), text).unwrap();
    }

    fn reports(&self) -> u64 {
        self.metrics.manifest_errors.get()
    }

    fn names(&self) -> Vec<&str> {
        self.services.iter().map(String::as_str).collect()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.96.0.1\n  \
         ports: [{{port: {port}}}]\n"
    )
}

#[tokio::test]
async fn documents_lists_and_json_are_read_and_broken_ones_are_skipped() {
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}",
        service("in-list", 80).trim_end().replace('\n', "\n  ")
    );
    let many = format!("{}---\n]broken[\n---\n{}---\nno: object\n", service("a", 80), service("b", 80));
    let json =
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"j"},"spec":{"clusterIP":"10.96.0.2"}}"#;
    let files = [("many.yaml", many.as_str()), ("list.yml", &list), ("one.json", json), ("notes.txt", "x")];
    let source = Source::start("kinds", &files).await;
    assert_eq!(source.names(), ["a", "b", "in-list", "j"]);
    assert_eq!(source.reports(), 2, "the broken document and the one that is no object");
}

#[tokio::test]
async fn a_half_written_file_withdraws_nothing_until_it_is_whole_again() {
    let both = format!("{}---\n{}", service("a", 80), service("b", 80));
    let mut source = Source::start("half", &[("web.yaml", &both)]).await;
    source.write("web.yaml", &format!("{}---\n{}", service("a", 81), &service("b", 80)[..30]));
    source.until_applied("a").await;
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
    source.write("web.yaml", "");
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
    assert!(source.reports() >= 2);
    // A file that is wholly valid is taken at its word.
    source.write("web.yaml", &service("a", 82));
    source.until_deleted("b").await;
    assert_eq!(source.names(), ["a"]);
}

#[tokio::test]
async fn a_deleted_file_withdraws_its_objects() {
    let mut source =
        Source::start("deleted", &[("a.yaml", &service("a", 80)), ("b.yaml", &service("b", 80))]).await;
    std::fs::remove_file(source.directory.join("a.yaml")).unwrap();
    source.until_deleted("a").await;
    assert_eq!(source.names(), ["b"]);
}

#[tokio::test]
async fn an_object_in_two_files_comes_from_the_first_and_then_from_the_other() {
    let mut source =
        Source::start("twice", &[("a.yaml", &service("x", 80)), ("b.yaml", &service("x", 81))]).await;
    assert_eq!(source.reports(), 1);
    std::fs::remove_file(source.directory.join("a.yaml")).unwrap();
    source.until_port(81).await;
    assert_eq!(source.names(), ["x"]);
}

#[tokio::test]
async fn a_list_may_be_of_any_length() {
    let list = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: long}}\ndata:\n{}---\n{}",
        "- {a: 1, b: 2}\n".repeat(100_000),
        service("behind", 80)
    );
    let source = Source::start("long", &[("a.yaml", &list)]).await;
    assert_eq!((source.names(), source.reports()), (vec!["behind"], 0));
}

#[tokio::test]
async fn an_object_that_moves_to_another_file_is_not_withdrawn_on_the_way() {
    let both = format!("{}---\n{}", service("x", 80), service("w", 80));
    let mut source = Source::start("moves", &[("a.yaml", &both), ("z.yaml", &service("z", 80))]).await;
    // Away from the first file, then into the other.
    source.write("a.yaml", &service("w", 80));
    source.write("z.yaml", &format!("{}---\n{}", service("z", 80), service("x", 81)));
    source
        .until(|event| match event {
            Event::Service(Change::Apply(service)) => service.ports.iter().any(|port| port.port == 81),
            Event::Service(Change::Delete(name)) => panic!("{name} is withdrawn"),
            _ => false,
        })
        .await;
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
    assert_eq!(source.names(), ["w", "x", "z"]);
    // Out of the last file that has it, it goes.
    source.write("z.yaml", &service("z", 80));
    source.until_deleted("x").await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_does_not_hide_that_another_lost_an_object() {
    let last = service("x", 81);
    for unreadable in [&b"]\n"[..], b"\xff\n"] {
        let mut source = Source::start("heir", &[("a.yaml", &service("x", 80)), ("z.yaml", &last)]).await;
        std::fs::write(source.directory.join("z.yaml"), unreadable).unwrap();
        source.nothing_is_withdrawn(Duration::from_millis(200)).await;
        std::fs::remove_file(source.directory.join("a.yaml")).unwrap();
        source.until_deleted("x").await;
        // As it was before.
        source.write("z.yaml", &last);
        source.until_port(81).await;
        std::fs::remove_file(source.directory.join("z.yaml")).unwrap();
        source.until_deleted("x").await;
    }
}

#[tokio::test]
async fn an_object_is_withdrawn_although_other_files_change_all_the_time() {
    // A file that changes, and one that has something else missing every time.
    for (name, vanishes) in [("busy", false), ("restless", true)] {
        let both = format!("{}---\n{}", service("x", 80), service("w", 80));
        let mut source = Source::start(name, &[("a.yaml", &both)]).await;
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let other = source.directory.join("b.yaml");
        let writer = tokio::spawn(async move {
            for turn in 1.. {
                let name = if vanishes { format!("b{}", turn % 2) } else { "b".into() };
                std::fs::write(&other, service(&name, turn % 1000 + 1)).unwrap();
                let pause = tokio::time::sleep(Duration::from_millis(20));
                tokio::select! { () = pause => {} _ = &mut stopped => return }
            }
        });
        let is_written =
            |e: &Event| matches!(e, Event::Service(Change::Apply(s)) if s.name.name().starts_with('b'));
        source.until(is_written).await;
        source.write("a.yaml", &service("w", 80));
        let gone = tokio::time::timeout(Duration::from_secs(30), source.until_deleted("x")).await;
        assert!(gone.is_ok(), "{name}: not withdrawn while the other file is written");
        stop.send(()).unwrap();
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn an_object_stays_while_the_next_file_that_has_it_cannot_be_opened_or_is_empty() {
    let next = service("x", 81);
    // A link to a file elsewhere: of what happens to that inotify tells nothing.
    let mut source = Source::start("next", &[("a.yaml", &service("x", 80))]).await;
    let elsewhere = source.directory.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let target = elsewhere.join("z");
    std::fs::write(&target, &next).unwrap();
    std::os::unix::fs::symlink(&target, source.directory.join("z.yaml")).unwrap();
    source.write("mark.yaml", &service("mark", 80));
    source.until_applied("mark").await;
    std::fs::remove_file(&target).unwrap();
    std::os::unix::fs::symlink(&target, &target).unwrap();
    std::fs::remove_file(source.directory.join("a.yaml")).unwrap();
    source.nothing_is_withdrawn(Duration::from_millis(1500)).await;
    assert_eq!(source.reports(), 2, "that it is there twice, and that it cannot be read, once");
    std::fs::remove_file(&target).unwrap();
    std::fs::write(&target, &next).unwrap();
    source.until_port(81).await;
    std::fs::remove_file(source.directory.join("z.yaml")).unwrap();
    source.until_deleted("x").await;

    // One that is being written.
    let mut source = Source::start("next", &[("a.yaml", &service("x", 80)), ("z.yaml", &next)]).await;
    source.write("z.yaml", "");
    source.nothing_is_withdrawn(Duration::from_millis(200)).await;
    std::fs::remove_file(source.directory.join("a.yaml")).unwrap();
    source.nothing_is_withdrawn(Duration::from_millis(1500)).await;
    source.write("z.yaml", &next);
    source.until_port(81).await;
    source.write("z.yaml", "");
    source.nothing_is_withdrawn(Duration::from_millis(700)).await;
    // What it has now counts, too.
    source.write("z.yaml", &service("other", 80));
    source.until_deleted("x").await;
}

#[tokio::test]
async fn a_directory_that_vanishes_and_comes_back_withdraws_nothing() {
    let mut source =
        Source::start("vanish", &[("a.yaml", &service("a", 80)), ("b.yaml", &service("b", 80))]).await;
    // Deleted file by file, as rm -r does.
    std::fs::remove_dir_all(&source.directory).unwrap();
    source.nothing_is_withdrawn(Duration::from_millis(700)).await;
    std::fs::create_dir(&source.directory).unwrap();
    source.nothing_is_withdrawn(Duration::from_millis(700)).await;
    source.write("a.yaml", &service("a", 80));
    source.write("b.yaml", &service("b", 81));
    source.until_applied("b").await;
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
    // And it is watched again.
    source.write("c.yaml", &service("c", 80));
    source.until_applied("c").await;
}

#[tokio::test]
async fn a_directory_that_is_moved_away_withdraws_nothing() {
    let mut source = Source::start("moved", &[("a.yaml", &service("a", 80))]).await;
    let away = source.directory.with_extension("away");
    std::fs::rename(&source.directory, &away).unwrap();
    source.nothing_is_withdrawn(Duration::from_millis(700)).await;
    std::fs::rename(&away, &source.directory).unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    source.write("b.yaml", &service("b", 80));
    source.until_applied("b").await;
}

#[tokio::test]
async fn junk_is_reported_and_the_rest_keeps_working() {
    let mut source = Source::start("junk", &[("a.yaml", &service("a", 80))]).await;
    let mut noise = Vec::with_capacity(5 << 20);
    let mut state = 1u32;
    while noise.len() < 5 << 20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.extend(state.to_be_bytes());
    }
    std::fs::write(source.directory.join("binary.yaml"), &noise).unwrap();
    let text: String = noise.iter().map(|b| char::from(b' ' + b % 95)).collect();
    source.write("text.yaml", &text);
    source.write("b.yaml", &service("b", 80));
    source.until_applied("b").await;
    assert!(source.reports() >= 2, "{} reports", source.reports());
    source.nothing_is_withdrawn(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn a_swapped_configmap_volume_is_read_anew() {
    let directory = std::env::temp_dir().join(format!("sluice-configmap-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let version = |n: u8| directory.join(format!("..v{n}"));
    let publish = |n: u8, text: &str| {
        std::fs::create_dir_all(version(n)).unwrap();
        std::fs::write(version(n).join("web.yaml"), text).unwrap();
        std::os::unix::fs::symlink(version(n), directory.join("..data_tmp")).unwrap();
        std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    publish(1, &service("a", 80));
    std::os::unix::fs::symlink(Path::new("..data/web.yaml"), directory.join("web.yaml")).unwrap();
    let (sender, events) = mpsc::channel(64);
    let metrics = Metrics::default();
    tokio::spawn(Manifests::new(directory.clone(), sender, metrics.clone()).unwrap().run());
    let mut source = Source {
        directory: directory.clone(),
        events,
        metrics,
        services: BTreeSet::new(),
        ports: BTreeMap::new(),
    };
    source.until_applied("a").await;
    publish(2, &service("b", 80));
    source.until_applied("b").await;
    source.until_deleted("a").await;
}

#[tokio::test]
async fn pods_and_namespaces_say_who_leaves_the_socket_path() {
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: mesh, labels: {sluice.socketLB: off-ish}}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: shell, namespace: mesh, annotations: {sluice.socketLB: \"off\"}}\n\
               spec: {nodeName: node-a}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.9}]}\n";
    let mut source = Source::start("opt-out", &[("a.yaml", &service("a", 80))]).await;
    source.write("mesh.yaml", &format!("{namespace}---\n{pod}"));
    source
        .until(|event| match event {
            Event::Namespace(Change::Apply(namespace)) => namespace.socket_path.is_none(),
            _ => false,
        })
        .await;
    // The value that nobody knows.
    assert_eq!(source.reports(), 1);
    source
        .until(|event| match event {
            Event::Pod(Change::Apply(pod)) => pod.socket_path == Some(false) && pod.ips.len() == 1,
            _ => false,
        })
        .await;
    source.write("mesh.yaml", namespace);
    source
        .until(|event| matches!(event, Event::Pod(Change::Delete(name)) if name.as_str() == "mesh/shell"))
        .await;
}

/// What kubectl's builder says of the same text: tests/kubectl-reader.
const KUBECTL: &str = include_str!("inputs/kubectl.json");

/// Where Sluice serves what kubectl refuses or loses, with what is then served;
/// `docs/configuration.md` says why.
const SERVED_HERE: [(&str, &[&str]); 9] = [
    ("document on the marker line", &["one 80", "two 80"]),
    ("flow mapping on the marker line", &["one 80", "two"]),
    ("json stream within yaml", &["one 80", "two 80", "three 80"]),
    ("end mark alone between", &["one 80", "two 80"]),
    ("yaml directive", &["one 80"]),
    ("yaml directive 1.1", &["one 80"]),
    ("list in a list", &["one"]),
    ("broken first", &["one 80"]),
    ("no name", &[]),
];

#[tokio::test]
async fn files_are_read_as_kubectl_reads_them() {
    let cases: Vec<Value> = serde_json::from_str(KUBECTL).unwrap();
    assert!(cases.len() >= 60);
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let name = case["name"].as_str().unwrap();
        let text = case["text"].as_str().unwrap();
        let source = Source::start(&format!("kubectl-{i}"), &[("a.yaml", text)]).await;
        let served: Vec<String> = source
            .services
            .iter()
            .map(|name| source.ports.get(name).map_or(name.clone(), |port| format!("{name} {port}")))
            .collect();
        let listed = case["services"].as_array().unwrap().iter().map(|service| service.as_str().unwrap());
        let (refused, mut expected): (Vec<&str>, Vec<&str>) =
            listed.partition(|text| text.contains("refused"));
        let here = SERVED_HERE.iter().find(|(different, _)| *different == name);
        if let Some((_, served)) = here {
            expected = served.to_vec();
        }
        expected.sort_unstable();
        let is_refused = case["error"].is_string() || !refused.is_empty();
        let is_silent = source.reports() == 0;
        if served != expected || (here.is_none() && is_refused == is_silent) {
            wrong.push(format!("{name}: {served:?}, kubectl {expected:?}, {} reports", source.reports()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The files of the faults that were found, with the Services that are in them and how much is
/// reported.
#[tokio::test]
async fn the_files_that_were_read_wrongly_are_read() {
    for (file, text, services, reports) in [
        ("a.yaml", include_str!("inputs/manifests/foreign-list-kind.yaml"), &["o", "p"][..], 0),
        ("a.json", include_str!("inputs/manifests/json-stream.json"), &["j"], 0),
        ("a.yaml", include_str!("inputs/manifests/source-range-ipv4-mapped.yaml"), &["lb"], 0),
        ("a.yaml", include_str!("inputs/manifests/document-on-the-marker-line.yaml"), &["one", "two"], 0),
        ("a.yaml", include_str!("inputs/manifests/numbers.yaml"), &["a"], 0),
        ("a.yaml", include_str!("inputs/manifests/marker-tab-comment.yaml"), &["a", "b"], 0),
        ("a.json", include_str!("inputs/manifests/json-objects-in-a-row.json"), &["a", "b"], 0),
        ("a.yaml", include_str!("inputs/manifests/list-without-items.yaml"), &[], 0),
        ("a.yaml", include_str!("inputs/manifests/duplicate-keys.yaml"), &["dup"], 0),
        ("a.yaml", include_str!("inputs/manifests/merge-key-after-keys.yaml"), &["merge"], 0),
    ] {
        let source = Source::start("faults", &[(file, text)]).await;
        assert_eq!((source.names(), source.reports()), (services.to_vec(), reports), "{text}");
    }
}

#[tokio::test]
async fn a_document_that_cannot_be_read_does_not_hide_that_another_was_removed() {
    let text = include_str!("inputs/manifests/foreign-list-kind.yaml");
    let mut source = Source::start("foreign", &[("a.yaml", text)]).await;
    let (rest, _) = text.rsplit_once("---").unwrap();
    source.write("a.yaml", rest);
    source.until_deleted("p").await;

    let broken = "]broken[\n---\n";
    let file =
        |names: &[&str]| names.iter().map(|name| format!("{}---\n", service(name, 80))).collect::<String>();
    let mut source =
        Source::start("hides", &[("a.yaml", &format!("{broken}{}", file(&["a", "b", "c"])))]).await;
    source.write("a.yaml", &format!("{broken}{}", file(&["a", "c"])));
    source.until_deleted("b").await;
    // Breaks and removal in one: what stood where the broken one stands stays, the other goes.
    source.write("a.yaml", &format!("{broken}{}", file(&["a", "c", "d"])));
    source.until_applied("d").await;
    source.write("a.yaml", &format!("{broken}{}]new[\n", file(&["c"])));
    source.until_deleted("a").await;
    source.nothing_is_withdrawn(Duration::from_millis(200)).await;
    assert_eq!(source.names(), ["c", "d"]);
    // The doubt ends with the broken document.
    source.write("a.yaml", &file(&["c"]));
    source.until_deleted("d").await;
}

#[tokio::test]
async fn a_list_of_nothing_withdraws_what_the_file_had() {
    let mut source = Source::start("nil", &[("a.yaml", &service("a", 80))]).await;
    source.write("a.yaml", include_str!("inputs/manifests/list-without-items.yaml"));
    source.until_deleted("a").await;
}

#[tokio::test]
async fn of_an_object_that_a_file_has_twice_the_last_counts_whichever_changes() {
    let twice = |first, second| format!("{}---\n{}", service("a", first), service("a", second));
    let mut source = Source::start("again", &[("a.yaml", &twice(80, 81))]).await;
    assert_eq!(source.ports["a"], 81);
    source.write("a.yaml", &format!("{}---\n{}", twice(82, 81), service("end", 1)));
    source.until_applied("end").await;
    source.until_port(81).await;
    source.write("a.yaml", &format!("{}---\n{}", service("a", 82), service("end", 2)));
    source.until_port(82).await;
}

#[tokio::test]
async fn broken_documents_of_one_text_keep_what_stood_in_the_place_of_each() {
    let file = |parts: [&str; 3]| parts.join("---\n");
    let (a, b, c) = (service("a", 80), service("b", 80), service("c", 80));
    let mut source = Source::start("equal-broken", &[("web.yaml", &file([&a, &b, &c]))]).await;
    source.write("web.yaml", &file(["]\n", &b, &c]));
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
    source.write("web.yaml", &file(["]\n", &b, "]\n"]));
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
    source.write("web.yaml", &file(["]\n", &service("b", 81), "]\n"]));
    source.until_port(81).await;
    source.nothing_is_withdrawn(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_pipe_is_reported_and_does_not_hold_up_the_others() {
    let mut source = Source::start("pipe", &[("web.yaml", &service("a", 80))]).await;
    let pipe = source.directory.join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    source.write("web.yaml", &service("a", 81));
    source.until_port(81).await;
    assert!(source.reports() >= 1);
}
