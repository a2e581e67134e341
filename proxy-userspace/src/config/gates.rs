//! The feature gates that kube-proxy 1.36, 1.37 and 1.38 know, by name and stage.
//!
//! A configuration that one of these releases takes is a good configuration. Where there is no gate
//! in the newest release, what an older one says counts.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Allows `logging.options`.
pub(super) const LOGGING_ALPHA_OPTIONS: &str = "LoggingAlphaOptions";
/// Lets external IPs of Services lead to endpoints.
pub(super) const ALLOW_SERVICE_EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
/// Lets mode ipvs be chosen.
pub(super) const KUBE_PROXY_IPVS: &str = "KubeProxyIPVS";
/// Decides about node ports on loopback.
pub(super) const LOCALHOST_NODE_PORTS: &str = "KubeProxyNFTablesLocalhostNodePorts";

/// The oldest and the newest release whose gates are known.
pub(super) const RELEASES: [&str; 3] = ["1.36", "1.37", "1.38"];
const NEWEST: usize = RELEASES.len() - 1;

const TABLE: &str = include_str!("feature-gates.txt");

/// What a configuration says of gates.
pub(super) type Given = BTreeMap<String, bool>;

/// Gates that change what this program does, as they are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    /// `AllowServiceExternalIPs`: external IPs of Services lead to endpoints.
    pub allow_service_external_ips: bool,
}

impl FeatureGates {
    pub(super) fn of(given: &Given) -> FeatureGates {
        FeatureGates { allow_service_external_ips: is_on(given, ALLOW_SERVICE_EXTERNAL_IPS) }
    }
}

/// Whether a gate changes something here.
pub(super) fn has_effect(name: &str) -> bool {
    [LOGGING_ALPHA_OPTIONS, ALLOW_SERVICE_EXTERNAL_IPS, KUBE_PROXY_IPVS, LOCALHOST_NODE_PORTS].contains(&name)
        // What they switch is told, not they.
        || matches!(name, "AllAlpha" | "AllBeta")
}

/// Whether a gate is on, by the newest release that has it.
pub(super) fn is_on(given: &Given, name: &str) -> bool {
    let gate = Gate::find(name);
    let state = gate.and_then(|gate| gate.states.into_iter().rev().flatten().next());
    state.is_some_and(|state| state.is_on(given, name))
}

/// What is to be told about gates.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    /// No release takes it. Each begins with the path of the field.
    pub(super) errors: Vec<String>,
    /// A release does not take it, or a later one will not.
    pub(super) warnings: Vec<String>,
}

/// Judges gates as kube-proxy does: names, locks, and what they need of one another.
pub(super) fn judge(given: &Given) -> Judgement {
    let mut judgement = Judgement::default();
    for (name, value) in given {
        match Gate::find(name) {
            Some(gate) => judgement.lock(&gate, *value),
            None => judgement.errors.push(format!(
                "featureGates.{name}: kube-proxy {} to {} have no such gate; remove it, or use a Sluice \
                 for its Kubernetes release",
                RELEASES[0], RELEASES[NEWEST]
            )),
        }
    }
    if !given.is_empty() {
        judgement.all_needs(given);
    }
    judgement
}

impl Judgement {
    fn lock(&mut self, gate: &Gate<'_>, value: bool) {
        let name = gate.name;
        let refuses = |state: &State| state.locked && state.on != value;
        let word = if value { "off" } else { "on" };
        self.refused_by(gate, refuses, format!("featureGates.{name}: is locked to {word}"));
        let newest = gate.states.iter().rev().flatten().next();
        let stage = match newest.map(|state| state.stage) {
            Some(Stage::General) => "generally available",
            Some(Stage::Deprecated) => "deprecated",
            _ => return,
        };
        self.warnings.push(format!(
            "featureGates.{name}: is {stage}, and a later release will remove it and refuse its name; \
             remove it"
        ));
    }

    /// What is on without what it needs is an error, unless a release that has all the gates given
    /// takes it.
    fn all_needs(&mut self, given: &Given) {
        let knows = |release: usize| {
            given.keys().all(|name| Gate::find(name).is_none_or(|gate| gate.states[release].is_some()))
        };
        let found: Vec<[Vec<String>; 3]> = TABLE
            .lines()
            .filter_map(Gate::parse)
            .filter(|gate| !gate.needs.is_empty())
            .map(|gate| [0, 1, 2].map(|release| gate.lacks(release, given)))
            .collect();
        let of = |release: usize| found.iter().flat_map(move |lacks| lacks[release].iter());
        let taken = (0..RELEASES.len()).any(|release| knows(release) && of(release).next().is_none());
        for (release, name) in RELEASES.iter().enumerate() {
            for lack in of(release) {
                if taken {
                    self.warnings.push(format!("{lack}; not valid in kube-proxy {name}"));
                } else if !self.errors.contains(lack) {
                    self.errors.push(lack.clone());
                }
            }
        }
    }

    fn refused_by(&mut self, gate: &Gate<'_>, refuses: impl Fn(&State) -> bool, reason: String) {
        let broken = gate.states.each_ref().map(|state| state.as_ref().is_some_and(&refuses));
        self.broken_in(gate, broken, reason);
    }

    /// What every release that has the gate refuses is an error; what only some refuse is told.
    fn broken_in(&mut self, gate: &Gate<'_>, broken: [bool; 3], mut reason: String) {
        let knowing = gate.states.map(|state| state.is_some());
        if broken == knowing {
            self.errors.push(reason);
        } else if broken.contains(&true) {
            let releases: Vec<&str> = (0..3).filter(|i| broken[*i]).map(|i| RELEASES[i]).collect();
            let _ = write!(reason, "; not valid in kube-proxy {}", releases.join(" and "));
            self.warnings.push(reason);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
    General,
    Deprecated,
}

/// A gate in one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    stage: Stage,
    on: bool,
    locked: bool,
}

impl State {
    fn parse(text: &str) -> Option<State> {
        let mut letters = text.chars();
        let stage = match letters.next()? {
            'a' => Stage::Alpha,
            'b' => Stage::Beta,
            'g' => Stage::General,
            'd' => Stage::Deprecated,
            _ => return None,
        };
        Some(State { stage, on: letters.next() == Some('+'), locked: letters.next() == Some('!') })
    }

    /// What is said of a gate counts more than AllAlpha and AllBeta do.
    fn is_on(self, given: &Given, name: &str) -> bool {
        let all = match self.stage {
            Stage::Alpha => given.get("AllAlpha"),
            Stage::Beta => given.get("AllBeta"),
            Stage::General | Stage::Deprecated => None,
        };
        let is_all = matches!(name, "AllAlpha" | "AllBeta");
        given.get(name).or(all.filter(|_| !is_all)).copied().unwrap_or(self.on)
    }
}

/// A line of the table.
struct Gate<'a> {
    name: &'a str,
    states: [Option<State>; 3],
    needs: &'a str,
}

impl<'a> Gate<'a> {
    fn parse(line: &'a str) -> Option<Gate<'a>> {
        let line = Some(line).filter(|line| !line.starts_with('#'))?;
        let (head, needs) = line.split_once(" > ").unwrap_or((line, ""));
        let mut columns = head.split_ascii_whitespace();
        let name = columns.next()?;
        let mut next = || columns.next().and_then(State::parse);
        Some(Gate { name, states: [next(), next(), next()], needs })
    }

    /// What a release says of a gate that is on while something that it needs is off.
    fn lacks(&self, release: usize, given: &Given) -> Vec<String> {
        let is_on = |gate: &Gate<'_>| gate.states[release].is_some_and(|state| state.is_on(given, gate.name));
        if !is_on(self) {
            return Vec::new();
        }
        let needed = self.needs.split_ascii_whitespace().filter_map(|need| need.split_once(':'));
        let here = needed.filter(|(_, releases)| releases.contains(['6', '7', '8'][release]));
        let off = here.filter(|(name, _)| !Gate::find(name).is_some_and(|gate| is_on(&gate)));
        off.map(|(name, _)| format!("featureGates.{}: is on, but it needs {name}, which is off", self.name))
            .collect()
    }

    fn find(name: &str) -> Option<Gate<'static>> {
        TABLE.lines().filter_map(Gate::parse).find(|gate| gate.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(gates: &[(&str, bool)]) -> Given {
        gates.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn the_table_has_the_gates_of_three_releases() {
        let gates: Vec<Gate<'_>> = TABLE.lines().filter_map(Gate::parse).collect();
        let of = |release: usize| gates.iter().filter(|gate| gate.states[release].is_some()).count();
        assert_eq!([of(0), of(1), of(2)], [242, 254, 243]);
        for need in gates.iter().flat_map(|gate| gate.needs.split_ascii_whitespace()) {
            assert!(Gate::find(need.split_once(':').unwrap().0).is_some(), "{need}");
        }
    }

    #[test]
    fn gates_of_any_release_are_taken_and_unknown_ones_refused() {
        for name in ["WatchList", "SidecarContainers", "NFTablesNetlink", "SecurityProfileOCI"] {
            assert_eq!(judge(&given(&[(name, true)])).errors, Vec::<String>::new(), "{name}");
        }
        let judgement = judge(&given(&[("SupportIPVSProxyMode", true), ("watchList", true)]));
        assert_eq!(judgement.errors.len(), 2, "{judgement:?}");
        assert!(judgement.errors[0].starts_with("featureGates.SupportIPVSProxyMode: "));
    }

    #[test]
    fn a_locked_gate_has_one_value() {
        let locked = judge(&given(&[("NFTablesProxyMode", false)]));
        assert!(locked.errors[0].contains("is locked to on"), "{locked:?}");
        assert_eq!(judge(&given(&[("NFTablesProxyMode", true)])).errors, Vec::<String>::new());
        // Beta in 1.36, locked since 1.37.
        let later = judge(&given(&[("RelaxedServiceNameValidation", false)]));
        assert_eq!(later.errors, Vec::<String>::new());
        assert!(later.warnings[0].contains("not valid in kube-proxy 1.37 and 1.38"), "{later:?}");
    }

    #[test]
    fn what_a_gate_needs_has_to_be_on() {
        let judgement =
            judge(&given(&[("DRAPartitionableDevices", true), ("DynamicResourceAllocation", false)]));
        assert!(!judgement.errors.is_empty(), "{judgement:?}");
    }

    #[test]
    fn all_alpha_and_all_beta_switch_what_is_not_said() {
        assert!(!is_on(&given(&[]), LOGGING_ALPHA_OPTIONS));
        assert!(is_on(&given(&[("AllAlpha", true)]), LOGGING_ALPHA_OPTIONS));
        assert!(!is_on(&given(&[("AllAlpha", true), (LOGGING_ALPHA_OPTIONS, false)]), LOGGING_ALPHA_OPTIONS));
        assert!(is_on(&given(&[]), LOCALHOST_NODE_PORTS));
        assert!(!is_on(&given(&[("AllBeta", false)]), LOCALHOST_NODE_PORTS));
        assert!(is_on(&given(&[("AllBeta", false)]), ALLOW_SERVICE_EXTERNAL_IPS));
        let gates = FeatureGates::of(&given(&[(ALLOW_SERVICE_EXTERNAL_IPS, false)]));
        assert_eq!(gates, FeatureGates { allow_service_external_ips: false });
    }
}
