//! Affinity timeouts as class chains have them.
//!
//! A rule can only store elements with a timeout that is written in the rule, so each timeout is a
//! class of its own, and the kernel looks at all classes whenever it takes a new one. So there is a
//! limited number of timeouts, which does not depend on what Services ask for: others are rounded
//! up, by a third at most.

/// The timeouts there are, in seconds; up to a day, which is the API's limit. The default is among
/// them.
const STEPS: [u32; 51] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 45, 50, 60, 75, 90, 120, 150, 180, 240, 300, 360,
    480, 600, 720, 900, 1200, 1500, 1800, 2400, 2700, 3600, 4800, 5400, 7200, 9000, 10_800, 14_400, 18_000,
    21_600, 28_800, 36_000, 43_200, 57_600, 72_000, 86_400,
];

/// The timeout that a class has for one that is asked for: the next that there is.
pub(super) fn rounded(seconds: u32) -> u32 {
    let at = STEPS.partition_point(|step| *step < seconds);
    STEPS.get(at).copied().unwrap_or(86_400)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::super::lower::{Lowered, Shared, lower};
    use super::super::{ClassChain, NftConfig};
    use super::*;
    use crate::group::Part;
    use crate::ipvs::{Marks, Others};
    use crate::model::{ObjectName, ServicePortName};
    use crate::net::{Family, Protocol};
    use crate::plan::{Action, Actions, Capture, Frontend, Group, PortPlan, Role, ServicePlan, Target};
    use proptest::prelude::*;

    /// The classes of a Service with one endpoint and this timeout.
    fn classes(timeout: u32) -> Vec<ClassChain> {
        let address = IpAddr::from([10, 0, 0, 1]);
        let forward = Action::Forward { group: Group::Cluster, masquerade: false };
        let name = ObjectName::new("default", "web");
        let port = PortPlan {
            id: ServicePortName {
                service: name.clone(),
                port: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
            },
            affinity: Some(timeout),
            cluster: [Target { address, port: 80, local: false }].into(),
            local: [].into(),
            frontends: [Frontend {
                capture: Capture::Address(address, Protocol::Tcp, 80),
                role: Role::ClusterIp,
                actions: Actions { pod: forward, host: forward, other: forward },
                allowed_sources: None,
            }]
            .into(),
            serving: [].into(),
            lacks_local_internal: false,
            lacks_local_external: false,
        };
        let plan = ServicePlan { ports: [port].into(), ..ServicePlan::nothing(name) };
        let config = NftConfig::default();
        let Lowered { shared, .. } =
            lower(&plan, &config, &Others::default(), &|_, _| Part::default(), &Marks::default());
        let classes = shared.into_iter().filter_map(|shared| match shared {
            Shared::Chain(class) => Some(class),
            _ => None,
        });
        classes.collect()
    }

    #[test]
    fn usual_timeouts_are_exact() {
        for seconds in
            (1..=10).chain([15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400])
        {
            assert_eq!(rounded(seconds), seconds);
        }
    }

    #[test]
    fn steps_are_in_order() {
        assert!(STEPS.is_sorted());
    }

    proptest! {
        #[test]
        fn there_are_no_more_classes_than_steps(timeouts in proptest::collection::vec(1_u32..=86_400, 1..200)) {
            let all: BTreeSet<ClassChain> = timeouts.into_iter().flat_map(classes).collect();
            prop_assert!(!all.is_empty() && all.len() <= STEPS.len(), "{} classes", all.len());
        }

        #[test]
        fn no_timeout_is_shorter_than_asked_for_and_none_much_longer(seconds in 1_u32..=86_400) {
            let rounded = rounded(seconds);
            prop_assert!(seconds <= rounded && 3 * rounded <= 4 * seconds, "{} for {}", rounded, seconds);
            prop_assert!(STEPS.contains(&rounded));
        }
    }
}
