//! The manifest directory as a source, with everything that can go wrong with files.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice::metrics::Metrics;
use sluice::watch::Received;
use sluice::watch::manifests::Manifests;
use sluice_core::event::{Change, Event};
use tokio::sync::mpsc;

struct Source {
    directory: PathBuf,
    events: mpsc::Receiver<Received>,
    metrics: Metrics,
    /// Names of the Services that the source has applied and not deleted.
    services: BTreeSet<String>,
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
        let mut source = Source { directory, events, metrics, services: BTreeSet::new() };
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
                    self.services.insert(service.name.name().to_owned());
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
    source
        .until(|e| matches!(e, Event::Service(Change::Apply(s)) if s.ports.first().is_some_and(|p| p.port == 81)))
        .await;
    assert_eq!(source.names(), ["x"]);
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
    let mut source = Source { directory: directory.clone(), events, metrics, services: BTreeSet::new() };
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
