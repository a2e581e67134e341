//! One pass, and what takes several turns: other Services do not wait for a change of a large one.

use std::collections::BTreeSet;
use std::time::Instant;

use sluice_core::loopback;
use sluice_core::model::ObjectName;
use sluice_core::plan::{PlanChange, large_last};

use super::{Phase, Reconciler};
use crate::service::backend::{Applied, BackendError, Changed};
use crate::service::{conntrack, facts};

/// What others are told of changes once the kernel has them.
#[derive(Default)]
pub(super) struct Effects {
    /// For the conntrack task.
    pub(super) flows: Vec<conntrack::Request>,
    /// Listeners on loopback.
    pub(super) listeners: Vec<loopback::Change>,
    /// Of which Services endpoints changed, and when, in nanoseconds since 1970.
    pub(super) triggers: Vec<(ObjectName, i128)>,
    /// When the first event came.
    pub(super) oldest: Option<Instant>,
}

impl Effects {
    fn add(&mut self, more: Effects) {
        self.flows.extend(more.flows);
        self.listeners.extend(more.listeners);
        self.triggers.extend(more.triggers);
        self.oldest = self.oldest.into_iter().chain(more.oldest).min();
    }

    /// Takes out what concerns changes that are applied after the others. Flows and listeners are
    /// not there yet.
    fn later(&mut self, changes: &[PlanChange]) -> Effects {
        let names: BTreeSet<&ObjectName> = changes.iter().map(|change| &change.name).collect();
        let triggers = std::mem::take(&mut self.triggers);
        let (later, now) = triggers.into_iter().partition(|(name, _)| names.contains(name));
        self.triggers = now;
        Effects { triggers: later, oldest: self.oldest, ..Effects::default() }
    }
}

/// A change of which the backend has begun to apply the operations.
pub(super) struct Waiting {
    begun: Instant,
    services: usize,
    applied: Applied,
    effects: Effects,
}

impl Reconciler {
    /// Makes the kernel hold everything.
    pub(super) fn all(
        &mut self,
        kind: &'static str,
        changes: &[PlanChange],
        begun: Instant,
    ) -> Result<(), BackendError> {
        self.note(changes);
        let applied = self.full(kind)?;
        self.await_full_pass();
        self.succeeded(kind, applied, changes.len(), begun);
        Ok(())
    }

    /// Applies changes, and some of what waits.
    pub(super) fn incremental(
        &mut self,
        changes: Vec<PlanChange>,
        begun: Instant,
    ) -> Result<(), BackendError> {
        let (changes, held) = self.quarantine.apart(changes);
        self.note(&held);
        let [others, large] = large_last(changes);
        if others.is_empty() && large.is_empty() && self.waiting.is_none() {
            self.quarantine.done();
            self.effects.oldest = None;
            self.effects.triggers.clear();
            self.outputs.health.updated();
            return Ok(());
        }
        if !others.is_empty() {
            let later = (!large.is_empty()).then(|| self.effects.later(&large));
            let result = self.apply(&others, begun);
            self.effects.add(later.unwrap_or_default());
            result?;
            // Of these nothing is in the kernel yet.
            self.quarantine.planned(&large);
        }
        if !large.is_empty() {
            self.apply(&large, begun)?;
        }
        self.go_on()
    }

    fn apply(&mut self, changes: &[PlanChange], begun: Instant) -> Result<(), BackendError> {
        self.note(changes);
        let Changed { applied, waits } = self.backend.change(changes)?;
        self.progress.made();
        if !waits {
            self.succeeded("incremental", applied, changes.len(), begun);
            return Ok(());
        }
        let (services, effects) = (changes.len(), std::mem::take(&mut self.effects));
        match &mut self.waiting {
            Some(waiting) => {
                waiting.services += services;
                waiting.applied += applied;
                waiting.effects.add(effects);
            }
            None => self.waiting = Some(Waiting { begun, services, applied, effects }),
        }
        Ok(())
    }

    /// Applies some of what waits.
    fn go_on(&mut self) -> Result<(), BackendError> {
        if self.waiting.is_none() {
            return Ok(());
        }
        let applied = self.backend.go_on()?;
        if let Some(waiting) = &mut self.waiting {
            waiting.applied += applied;
        }
        if self.backend.has_more() {
            return Ok(());
        }
        if let Some(Waiting { begun, services, applied, effects }) = self.waiting.take() {
            self.effects.add(effects);
            self.succeeded("incremental", applied, services, begun);
        }
        Ok(())
    }

    /// Before the end: what has been begun is done.
    pub(super) fn finish(mut self) {
        while self.phase == Phase::Incremental && self.waiting.is_some() {
            if self.go_on().is_err() {
                return;
            }
        }
    }

    /// What waits is part of the next full pass, or of the one that has just ended.
    pub(super) fn await_full_pass(&mut self) {
        if let Some(Waiting { effects, .. }) = self.waiting.take() {
            self.effects.add(effects);
        }
    }

    /// Writes down what is to be told of changes.
    pub(super) fn note(&mut self, changes: &[PlanChange]) {
        conntrack::requests(changes, &mut self.effects.flows);
        let served = facts::listens_on_loopback(&self.settings);
        self.effects.listeners.extend(loopback::changes(changes, served));
    }
}
