//! Case files: reading them, and refusing what cannot be executed, with file, line and reason.

mod steps;
pub mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Spanned;
use sluice_skips::Why;

use crate::topology::Topology;
use crate::{needs, objects};
pub use steps::{
    CaptureStep, CapturedStep, ConntrackStep, DeleteItem, Fails, HeldStep, HoldStep, HttpStep, ProbeStep,
    RunStep, Source, Step,
};

/// A case that was read and checked.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name
    pub name: String,
    /// The sections of docs/kube-proxy-behaviour.md that say what it shows; empty for what only
    /// sluice has
    pub reference: String,
    /// Why kube-proxy is not expected to pass
    pub beyond: Option<String>,
    /// Features of the machine that it needs
    pub needs: Vec<String>,
    /// Proxies that it is not for, and why
    pub except: BTreeMap<String, String>,
    /// The lab
    pub topology: Topology,
    /// `KubeProxyConfiguration` fields
    pub config: Value,
    /// Objects as YAML
    pub objects: String,
    /// The steps and the lines they begin on
    pub steps: Vec<(u64, Step)>,
    /// The file
    pub file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    name: String,
    #[serde(rename = "about", default)]
    _about: Option<String>,
    #[serde(rename = "ref", default)]
    reference: Option<Value>,
    #[serde(default)]
    beyond: Option<String>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    except: BTreeMap<String, String>,
    #[serde(default)]
    families: Option<Vec<u8>>,
    topology: Topology,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    objects: Option<Spanned<String>>,
    steps: Vec<Spanned<Step>>,
}

/// Why a case cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The file
    pub file: PathBuf,
    /// The line, where it is known
    pub line: Option<u64>,
    /// The reason
    pub reason: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line.unwrap_or(1), self.reason)
    }
}

impl std::error::Error for Unreadable {}

impl Case {
    /// Reads a file.
    pub fn read(file: &Path) -> Result<Self, Unreadable> {
        let text = std::fs::read_to_string(file).map_err(|error| Unreadable {
            file: file.to_owned(),
            line: None,
            reason: error.to_string(),
        })?;
        Self::parse(&text, file)
    }

    /// Reads a text; `file` is what errors name.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Unreadable> {
        let refuse = |line, reason: String| Unreadable { file: file.to_owned(), line, reason };
        let raw: CaseFile = serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map(|location| location.line());
            refuse(line, one_line(&error.without_snippet().to_string()))
        })?;
        let (objects_line, objects_text) =
            raw.objects.map(|objects| (objects.referenced.line(), objects.value)).unwrap_or_default();
        let steps: Vec<(u64, Step)> =
            raw.steps.into_iter().map(|step| (step.referenced.line(), step.value)).collect();
        let mut needs = raw.needs;
        if raw.families.is_some_and(|families| families.contains(&6))
            && !needs.iter().any(|need| need == "ipv6")
        {
            needs.push("ipv6".to_owned());
        }
        let case = Self {
            name: raw.name,
            reference: match raw.reference {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text,
                // Without quotes a single section is a number.
                Some(other) => other.to_string(),
            },
            beyond: raw.beyond,
            needs,
            except: raw.except,
            topology: raw.topology,
            config: raw.config,
            objects: objects_text,
            steps,
            file: file.to_owned(),
        };
        let whole = |reason: anyhow::Error| refuse(None, format!("{reason:#}"));
        case.topology.check().map_err(whole)?;
        case.needs.iter().try_for_each(|need| needs::check_name(need)).map_err(whole)?;
        objects::parse(&case.objects)
            .map_err(|error| refuse(Some(objects_line), format!("objects: {error:#}")))?;
        if case.steps.is_empty() {
            return Err(refuse(None, "a case needs at least one step".to_owned()));
        }
        case.check_steps().map_err(|(line, reason)| refuse(Some(line), reason))?;
        Ok(case)
    }

    fn check_steps(&self) -> Result<(), (u64, String)> {
        let mut known = BTreeSet::new();
        for (line, step) in &self.steps {
            step.check(&self.topology, &mut known)
                .map_err(|error| (*line, format!("{}: {error:#}", step.name())))?;
        }
        Ok(())
    }

    /// Why this case is not for a proxy, by all of its names, on this machine; `None` when it is.
    pub fn skip_reason(&self, names: &[String]) -> anyhow::Result<Option<Why>> {
        if let Some((name, reason)) = names.iter().find_map(|name| self.except.get_key_value(name)) {
            return Ok(Some(Why::choice(format!("not for {name}: {reason}"))));
        }
        let is_kube_proxy = names.iter().any(|name| name.starts_with("kube-proxy"));
        if let (Some(beyond), true) = (&self.beyond, is_kube_proxy) {
            return Ok(Some(Why::choice(format!("beyond {beyond}"))));
        }
        for need in &self.needs {
            if let Some(lack) = needs::missing(need)? {
                return Ok(Some(lack));
            }
        }
        Ok(None)
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name: x\nref: 2.2\ntopology:\n  nodes: {node-a: {zone: z1}, node-b: {}}\n  pods:\n    web-1: {node: node-a, ip: 10.244.1.11}\n  hosts: {client: [tcp/9000]}\nsteps:\n";

    fn parse(steps: &str) -> Result<Case, Unreadable> {
        Case::parse(&format!("{HEAD}{steps}"), Path::new("x.yaml"))
    }

    #[test]
    fn every_step_is_read() {
        let case = parse(
            r#"
- probe: {from: pod/web-1, to: 'tcp://10.96.0.10:80', count: 8, interval: 10ms, reaches: [web-1, client], source: node, spread: 3.0, at_least: 1, sticky: true, always: true, within: 1.5s, id: p}
- probe: {from: client, to: 'icmp://10.96.0.10', fails: refused, via: node-b}
- probe: {from: client, to: 'tcp://10.96.0.10:80', same_as: p}
- alternate: {from: host/node-a, to: ['tcp://10.96.0.10:80', 'udp://[fd00:10:96::a]:80'], count: 90, spread: 1.0}
- apply: |
    apiVersion: v1
    kind: Service
    metadata: {name: web}
- delete: [{kind: Service, name: web}]
- hold: {id: h, from: client, to: 'tcp://10.96.0.10:80'}
- held: {id: h, alive: true, endpoint: web-1}
- sendto: {id: u, from: client, to: 'udp://10.96.0.10:80'}
- held: {id: u, alive: false, within: 2s}
- kill: node-a
- start: node-a
- stop: node-a
- run: {node: node-a, argv: [nft, list, 3], expect_stdout: x, expect_status: 1}
- http: {node: node-a, url: 'http://127.0.0.1:10256/healthz', status: 200, json: {a: 1}, headers: {X-A: '1'}}
- conntrack: {node: node-a, proto: udp, orig: '10.96.0.10:53', present: false}
- capture: {node: node-a, dev: eth0, filter: tcp port 80, id: c}
- captured: {id: c, min: 1, max: 2, contains: [a, b]}
- wait: 2s
"#,
        )
        .unwrap();
        assert_eq!(case.steps.len(), 19);
        assert_eq!(case.steps[1].0, 11);
    }

    #[test]
    fn what_cannot_be_executed_is_refused_with_its_line() {
        let refused = [
            ("- probe: {from: pod/web-1, to: 'tcp://1.2.3.4:80', reachs: [web-1]}", "reachs"),
            ("- prob: {from: pod/web-1}", "prob"),
            ("- probe: {from: pod/web-9, to: 'tcp://1.2.3.4:80', reaches: [web-1]}", "web-9"),
            ("- probe: {from: pod/web-1, to: 'tcp://1.2.3.4:80', reaches: [web-9]}", "web-9"),
            ("- probe: {from: pod/web-1, to: 'tcp://1.2.3.4:80', reaches: [web-1], fails: any}", "reaches"),
            ("- probe: {from: pod/web-1, to: 'tcp://1.2.3.4:80', reaches: [web-1], via: node-b}", "via"),
            ("- probe: {from: client, to: 'tcp://1.2.3.4:80', same_as: nobody}", "nobody"),
            ("- probe: {from: client, to: 'tcp://1.2.3.4:80', within: soon}", "soon"),
            ("- held: {id: h, alive: true}", "h"),
            ("- captured: {id: h}", "h"),
            ("- kill: node-c", "node-c"),
            ("- sendto: {id: h, from: client, to: 'tcp://1.2.3.4:80'}", "udp"),
            ("- apply: 'kind: Service'", "metadata"),
            ("- run: {node: node-a, argv: []}", "argv"),
        ];
        for (step, reason) in refused {
            let error = parse(&format!("- wait: 1s\n{step}\n")).expect_err(step);
            assert_eq!(error.line, Some(10), "{step}: {error}");
            assert!(error.reason.contains(reason), "{step}: {error}");
        }
        assert!(parse("[]").is_err());
        assert!(Case::parse("name: x\n", Path::new("x.yaml")).is_err());
        assert!(Case::parse(&format!("needs: [teleport]\n{HEAD}- wait: 1s\n"), Path::new("x.yaml")).is_err());
    }

    #[test]
    fn skips_have_reasons() {
        let case =
            |head: &str| Case::parse(&format!("{head}\n{HEAD}- wait: 1s\n"), Path::new("x.yaml")).unwrap();
        let reason = |case: &Case, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            case.skip_reason(&names).unwrap().map(|why| why.to_string())
        };
        let beyond = case("beyond: kube-proxy, why\nexcept: {ipvs: cannot}");
        assert_eq!(reason(&beyond, &["nftables"]), None);
        assert!(reason(&beyond, &["ipvs"]).unwrap().contains("cannot"));
        assert!(reason(&beyond, &["kube-proxy-nftables"]).unwrap().contains("why"));
        let of_one_version = case("except: {kube-proxy-nftables@1.37: it is new}");
        assert_eq!(reason(&of_one_version, &["kube-proxy-nftables", "kube-proxy-nftables@1.36"]), None);
        let names = ["kube-proxy-nftables", "kube-proxy-nftables@1.37", "kube-proxy-nftables@1.37.2"];
        assert!(reason(&of_one_version, &names).unwrap().contains("it is new"));
    }
}
