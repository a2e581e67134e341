//! A Node of this node's name that is not there is told once, and told again when it is there.
//! Pure.

use std::time::{Duration, Instant};

use crate::config::Source;

/// A Node comes a moment after its kubelet, and a proxy may be faster.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Missing,
    There,
}

/// Whether the own Node is there, as it was told last.
#[derive(Debug)]
pub(super) struct OwnNode {
    patience: Duration,
    missing_since: Option<Instant>,
    told: bool,
}

impl OwnNode {
    /// Files are there from the beginning, or nobody is about to write them.
    pub(super) fn new(source: &Source) -> Self {
        let patience = match source {
            Source::Manifests(_) => Duration::ZERO,
            Source::Kubernetes { .. } => PATIENCE,
        };
        OwnNode { patience, missing_since: None, told: false }
    }

    /// Takes note of whether the Node is missing, which only a complete list can say.
    pub(super) fn look(&mut self, is_missing: bool, now: Instant) -> Option<Told> {
        if !is_missing {
            self.missing_since = None;
            return std::mem::take(&mut self.told).then_some(Told::There);
        }
        let since = *self.missing_since.get_or_insert(now);
        let is_new = !self.told && now.saturating_duration_since(since) >= self.patience;
        self.told |= is_new;
        is_new.then_some(Told::Missing)
    }

    /// When to look again though nothing has happened.
    pub(super) fn due(&self) -> Option<Instant> {
        self.missing_since.filter(|_| !self.told).map(|since| since + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api() -> OwnNode {
        OwnNode::new(&Source::Kubernetes { kubeconfig: None, master: None })
    }

    #[test]
    fn a_long_missing_node_is_reported_once_and_so_is_its_return() {
        let (mut node, begun) = (api(), Instant::now());
        assert_eq!((node.look(true, begun), node.due()), (None, Some(begun + PATIENCE)));
        assert_eq!(node.look(true, begun + PATIENCE / 2), None);
        assert_eq!(node.look(true, begun + PATIENCE), Some(Told::Missing));
        assert_eq!((node.look(true, begun + 2 * PATIENCE), node.due()), (None, None));
        assert_eq!(node.look(false, begun + 3 * PATIENCE), Some(Told::There));
        assert_eq!((node.look(false, begun + 4 * PATIENCE), node.due()), (None, None));
    }

    #[test]
    fn a_node_that_appears_in_time_is_not_reported() {
        let (mut node, begun) = (api(), Instant::now());
        assert_eq!(node.look(true, begun), None);
        assert_eq!((node.look(false, begun + PATIENCE / 2), node.due()), (None, None));
        // The next absence counts from its own beginning.
        assert_eq!(node.look(true, begun + PATIENCE), None);
    }

    #[test]
    fn with_manifests_a_missing_node_is_reported_at_once() {
        let mut node = OwnNode::new(&Source::Manifests("/m".into()));
        assert_eq!(node.look(true, Instant::now()), Some(Told::Missing));
    }
}
