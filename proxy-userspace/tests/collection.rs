//! A collection of configurations and command lines, judged by two releases of kube-proxy: what
//! each makes of an entry is in `collection/recorded.json`, and what is recorded is compared with
//! the real programs where there are any (`SLUICE_KUBE_PROXY`, or
//! `target/cluster-tools/bin/kube-proxy`, for 1.36; `SLUICE_KUBE_PROXY_1_37` for 1.37).
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

#[path = "support/kube_proxy.rs"]
mod kube_proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

const RELEASES: [&str; 2] = ["1.36", "1.37"];

/// Where we are not like a release, as docs/differences.md says. A difference that is gone fails
/// the test.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("files/no-kind", "1.36 1.37", "a file may lack its kind"),
    ("files/gate-of-1.37", "1.36", "gates of every release are taken"),
    ("files/gates-alpha", "1.37", "gates of every release are taken"),
    ("files/gates-alpha", "1.36", "split streams of a file count"),
    ("files/hidden-1.35", "1.37", "the minor release before any that is supported"),
    ("files/hidden-1.36", "1.36", "the minor release before any that is supported"),
    ("files/hidden-1.37", "1.36 1.37", "the minor release before any that is supported"),
    ("flags/talos", "1.36 1.37", "no Node can have that name"),
    ("flags/empty-texts", "1.36 1.37", "an empty --cluster-cidr is none"),
];

#[derive(Deserialize)]
struct Inputs {
    bases: BTreeMap<String, String>,
    files: Vec<Entry>,
    flags: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Entry {
    name: String,
    base: Option<String>,
    edit: BTreeMap<String, String>,
    add: String,
    text: Option<String>,
    flags: Vec<String>,
}

impl Entry {
    fn file(&self, bases: &BTreeMap<String, String>) -> Option<String> {
        if self.text.is_some() {
            return self.text.clone();
        }
        let mut text = bases[self.base.as_ref()?].clone();
        for (from, to) in &self.edit {
            assert!(text.contains(from), "{}: {from:?} is not in its base", self.name);
            text = text.replacen(from, to, 1);
        }
        Some(text + &self.add)
    }
}

#[derive(Deserialize)]
struct Records {
    /// The configuration in force where nothing is said but mode nftables, by path.
    defaults: Map<String, Value>,
    entries: BTreeMap<String, BTreeMap<String, Record>>,
}

/// What a release makes of an entry.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default)]
struct Record {
    /// Its errors are about these fields or flags; there are none where its words name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<BTreeSet<String>>,
    /// What differs from the defaults, by path; null for a path that is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    taken: Option<Map<String, Value>>,
    /// What it warns of.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    warned: BTreeSet<String>,
}

/// What a program makes of an entry: the configuration in force or nothing, and its words.
fn run(program: &Path, entry: &Entry, file: Option<&str>) -> (Option<Map<String, Value>>, String) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("sluice-collection-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (config, written) = (directory.join("config.yaml"), directory.join("written.yaml"));
    let mut command = Command::new(program);
    command.arg("--write-config-to").arg(&written).args(&entry.flags).env_remove("RUST_LOG");
    if let Some(file) = file {
        std::fs::write(&config, file).unwrap();
        command.arg("--config").arg(&config);
    }
    let output = command.output().unwrap();
    let text = std::fs::read_to_string(&written);
    std::fs::remove_dir_all(&directory).unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut flat = Map::new();
    if output.status.success() {
        flatten(serde_saphyr::from_str(&text.unwrap()).unwrap(), "", &mut flat);
    }
    (output.status.success().then_some(flat), words)
}

/// Every value by its path.
fn flatten(value: Value, path: &str, flat: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(value, &path, flat);
            }
        }
        value => drop(flat.insert(path.to_owned(), value)),
    }
}

/// What a release would have in force, in our words.
fn expected(defaults: &Map<String, Value>, changed: &Map<String, Value>) -> Map<String, Value> {
    let mut all = defaults.clone();
    all.extend(changed.clone());
    all.retain(|path, value| !value.is_null() || defaults.contains_key(path));
    // Mode iptables, or none, runs as nftables with the values of its section.
    if matches!(all["mode"].as_str(), Some("" | "iptables")) {
        all.insert("mode".into(), "nftables".into());
        for field in ["masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod"] {
            all.insert(format!("nftables.{field}"), all[&format!("iptables.{field}")].clone());
        }
        for (field, unset) in
            [("masqueradeAll", json!(false)), ("syncPeriod", "0s".into()), ("minSyncPeriod", "0s".into())]
        {
            all.insert(format!("iptables.{field}"), unset);
        }
        if all["nodePortAddresses"].is_null() || all["nodePortAddresses"] == json!([]) {
            all.insert("nodePortAddresses".into(), json!(["0.0.0.0/0", "::/0"]));
        }
    }
    all
}

/// The path that we tell for a path that kube-proxy tells.
fn our_path(path: &str) -> &str {
    match path {
        // It names neither the section nor the field that is wrong.
        "syncPeriod" => "nftables.minSyncPeriod",
        _ => path,
    }
}

/// Why what we do is not what a release does.
fn difference(
    record: &Record,
    defaults: &Map<String, Value>,
    ours: &(Option<Map<String, Value>>, String),
) -> Option<String> {
    let words = &ours.1;
    match (&record.taken, &record.refused, &ours.0) {
        (Some(changed), _, Some(ours)) => {
            let expected = expected(defaults, changed);
            let of_ours = ours.iter().filter(|(path, _)| !path.starts_with("sluice."));
            let ours: Map<String, Value> =
                of_ours.map(|(path, value)| (path.clone(), value.clone())).collect();
            let paths: BTreeSet<&String> = ours.keys().chain(expected.keys()).collect();
            let different = paths.into_iter().filter(|path| ours.get(*path) != expected.get(*path));
            let told: Vec<String> = different
                .map(|path| format!("{path}: {:?}, kube-proxy {:?}", ours.get(path), expected.get(path)))
                .collect();
            let silent = record.warned.iter().find(|field| !words.contains(*field));
            let silent = silent.map(|field| format!("no warning of {field}"));
            (!told.is_empty()).then(|| told.join("; ")).or(silent)
        }
        (None, Some(paths), None) => {
            let missing = paths.iter().find(|path| !words.contains(our_path(path)));
            missing.map(|path| format!("{path} is not in: {words}"))
        }
        (Some(_), _, None) => Some(format!("refused: {words}")),
        _ => Some("taken".into()),
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/collection")
}

fn collection() -> (Inputs, Records) {
    let read = |name: &str| std::fs::read_to_string(directory().join(name)).unwrap();
    let inputs: Inputs = serde_saphyr::from_str(&read("inputs.yaml")).unwrap();
    (inputs, serde_json::from_str(&read("recorded.json")).unwrap())
}

fn entries(inputs: &Inputs) -> impl Iterator<Item = (String, &Entry)> {
    let named = |kind: &'static str| move |entry| (kind, entry);
    let all = inputs.files.iter().map(named("files")).chain(inputs.flags.iter().map(named("flags")));
    all.map(|(kind, entry)| (format!("{kind}/{}", entry.name), entry))
}

fn record<'a>(records: &'a Records, key: &str, release: &str) -> &'a Record {
    let of_entry = records.entries.get(key).unwrap_or_else(|| panic!("{key} is not recorded"));
    of_entry.get("both").unwrap_or_else(|| &of_entry[release])
}

#[test]
fn the_collection_is_judged_as_by_kube_proxy() {
    let (inputs, records) = collection();
    assert_eq!((inputs.files.len(), inputs.flags.len()), (102, 51));
    let sluice = PathBuf::from(env!("CARGO_BIN_EXE_sluice"));
    let (mut wrong, mut bad) = (Vec::new(), 0);
    for (key, entry) in entries(&inputs) {
        let ours = run(&sluice, entry, entry.file(&inputs.bases).as_deref());
        bad += usize::from(RELEASES.iter().any(|release| {
            let record = record(&records, &key, release);
            record.refused.is_some() || !record.warned.is_empty()
        }));
        for release in RELEASES {
            let found = difference(record(&records, &key, release), &records.defaults, &ours);
            let named = DIFFERENCES
                .iter()
                .any(|(name, in_releases, _)| *name == key && in_releases.contains(release));
            match found {
                Some(found) if !named => wrong.push(format!("{key}, kube-proxy {release}: {found}")),
                None if named => {
                    wrong.push(format!("{key}: the difference from {release} is gone, so take it out"))
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(3 * bad >= entries(&inputs).count(), "only {bad} are refused or warned of");
}

/// The real programs that there are, by their release.
fn kube_proxies() -> Vec<(&'static str, PathBuf)> {
    let newer = std::env::var_os("SLUICE_KUBE_PROXY_1_37").map(PathBuf::from);
    if newer.is_none() {
        sluice_skips::skip("kube-proxy-1.37", "name one with SLUICE_KUBE_PROXY_1_37");
    }
    let found = RELEASES.into_iter().zip([kube_proxy::kube_proxy(), newer]);
    found.filter_map(|(release, program)| Some((release, program?))).collect()
}

/// What differs from the defaults: a path that is gone is null.
fn changes(defaults: &Map<String, Value>, taken: &Map<String, Value>) -> Map<String, Value> {
    let gone =
        defaults.keys().filter(|path| !taken.contains_key(*path)).map(|path| (path.clone(), Value::Null));
    let changed = taken.iter().filter(|(path, value)| defaults.get(*path) != Some(value));
    changed.map(|(path, value)| (path.clone(), value.clone())).chain(gone).collect()
}

/// Whether kube-proxy's words name a field or flag. Up to 1.37 some paths are names of Go types, so
/// that only the last part of ours is sure to be there, or what the type calls it.
fn names(words: &str, path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path).split('[').next().unwrap_or(path);
    let of_the_type = if last == "bridgeInterface" { "interfaceName" } else { last };
    let words = words.to_lowercase();
    [last, of_the_type].iter().any(|name| words.contains(&name.to_lowercase()))
}

#[test]
fn what_is_recorded_is_what_kube_proxy_does() {
    let (inputs, records) = collection();
    let mut unnamed = Vec::new();
    for (release, program) in kube_proxies() {
        for (key, entry) in entries(&inputs) {
            let record = record(&records, &key, release);
            let (taken, words) = run(&program, entry, entry.file(&inputs.bases).as_deref());
            let taken = taken.map(|taken| changes(&records.defaults, &taken));
            let recorded = record.taken.clone().map(|mut taken| {
                taken.retain(|path, value| !value.is_null() || records.defaults.contains_key(path));
                taken
            });
            assert_eq!(taken, recorded, "{key}, kube-proxy {release}: {words}");
            let named = record.refused.iter().flatten().chain(&record.warned);
            let silent = named.filter(|path| !names(&words, path));
            unnamed
                .extend(silent.map(|path| format!("{key}, kube-proxy {release}: {path} is not in: {words}")));
        }
    }
    assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
}

/// Records what both programs do. The fields that a refusal or warning is about stay as they stand
/// in the record, and are written by hand for a new entry, whose words are shown.
#[test]
#[ignore = "writes recorded.json"]
fn record_what_kube_proxy_does() {
    let (inputs, records) = collection();
    let programs = kube_proxies();
    assert_eq!(programs.len(), RELEASES.len(), "both kube-proxies are needed");
    let mut lines = Vec::new();
    for (key, entry) in entries(&inputs) {
        let mut of_entry = BTreeMap::new();
        for (release, program) in &programs {
            let (taken, words) = run(program, entry, entry.file(&inputs.bases).as_deref());
            let old = records.entries.get(&key).map(|_| record(&records, &key, release).clone());
            if old.is_none() {
                println!("{key}, kube-proxy {release}, says: {words}");
            }
            let old = old.unwrap_or_default();
            let refused = taken.is_none().then(|| old.refused.unwrap_or_default());
            let taken = taken.map(|taken| changes(&records.defaults, &taken));
            of_entry.insert(*release, Record { refused, taken, warned: old.warned });
        }
        let [older, newer] = RELEASES.map(|release| &of_entry[release]);
        let told = if older == newer { json!({"both": older}) } else { json!(of_entry) };
        lines.push(format!("{}: {told}", json!(key)));
    }
    let text = format!(
        "{{\n\"defaults\": {},\n\"entries\": {{\n{}\n}}}}\n",
        json!(records.defaults),
        lines.join(",\n")
    );
    std::fs::write(directory().join("recorded.json"), text).unwrap();
}
