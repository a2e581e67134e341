//! One pass, and what takes several turns: other Services do not wait for a change of a large one.

use std::collections::BTreeSet;
use std::time::Instant;

use sluice_core::loopback;
use sluice_core::model::ObjectName;
use sluice_core::plan::{self, PlanChange};

use super::{Phase, Reconciler};
use crate::service::backend::{Applied, BackendError};
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
    /// Adds those of later changes.
    fn add(&mut self, later: Effects) {
        self.flows.extend(later.flows);
        self.listeners.extend(later.listeners);
        self.triggers.extend(later.triggers);
        self.oldest = self.oldest.into_iter().chain(later.oldest).min();
    }

    /// Adds what follows from changes.
    fn note(&mut self, changes: &[PlanChange], listens: [bool; 2]) {
        conntrack::requests(changes, &mut self.flows);
        self.listeners.extend(loopback::changes(changes, listens));
    }

    /// When what is put off was asked for.
    fn of_put_off(&mut self, put_off: &[PlanChange]) -> Effects {
        let names: BTreeSet<&ObjectName> = put_off.iter().map(|change| &change.name).collect();
        let triggers = std::mem::take(&mut self.triggers);
        let (later, now) = triggers.into_iter().partition(|(name, _)| names.contains(name));
        self.triggers = now;
        Effects { triggers: later, oldest: self.oldest, ..Effects::default() }
    }
}

/// What is put off for others, and what the backend has begun.
#[derive(Default)]
pub(super) struct Turns {
    plan: plan::Turns,
    /// When what is put off was asked for; flows and listeners are not there yet.
    asked: Effects,
    begun: Option<Begun>,
}

/// A change of which the backend has applied some operations.
struct Begun {
    at: Instant,
    services: usize,
    applied: Applied,
    effects: Effects,
}

impl Turns {
    /// Whether nothing is put off or begun.
    pub(super) fn is_idle(&self) -> bool {
        self.begun.is_none() && self.put_off().is_empty()
    }

    /// Whether the kernel has some of a change.
    pub(super) fn is_in_work(&self) -> bool {
        self.begun.is_some()
    }

    /// What is put off.
    pub(super) fn put_off(&self) -> &[PlanChange] {
        self.plan.put_off()
    }
}

impl Reconciler {
    /// Makes the kernel hold everything.
    pub(super) fn all(
        &mut self,
        kind: &'static str,
        changes: &[PlanChange],
        begun: Instant,
    ) -> Result<(), BackendError> {
        // What is left to do of our own is not counted as a repair.
        let kind = if self.turns.is_idle() { kind } else { "full" };
        self.end_turns();
        self.note(changes);
        let applied = self.full(kind)?;
        self.succeeded(kind, applied, changes.len(), begun);
        Ok(())
    }

    /// Applies changes, and some of what takes several turns.
    pub(super) fn incremental(
        &mut self,
        changes: Vec<PlanChange>,
        begun: Instant,
    ) -> Result<(), BackendError> {
        let changes = self.turns.plan.take(changes);
        // All in one, because a frontend may move from one Service to another.
        self.note(&changes);
        let (changes, _) = self.quarantine.apart(changes);
        if !self.turns.put_off().is_empty() {
            let asked = self.effects.of_put_off(self.turns.put_off());
            self.turns.asked.add(asked);
        }
        if !changes.is_empty() {
            let applied = self.backend.change(&changes)?;
            self.progress.made();
            self.succeeded("incremental", applied, changes.len(), begun);
        } else {
            self.effects.oldest = None;
            self.effects.triggers.clear();
            if self.turns.is_idle() {
                self.quarantine.done();
                self.outputs.health.updated();
            }
        }
        self.turn()
    }

    /// Goes on with what was begun, or begins with what was put off.
    fn turn(&mut self) -> Result<(), BackendError> {
        if self.turns.is_idle() {
            return Ok(());
        }
        let applied = match &self.turns.begun {
            Some(_) => self.backend.go_on()?,
            None => self.begin()?,
        };
        let Some(begun) = &mut self.turns.begun else { return Ok(()) };
        begun.applied += applied;
        if self.backend.has_more() {
            return Ok(());
        }
        if let Some(Begun { at, services, applied, mut effects }) = self.turns.begun.take() {
            self.turns.plan.done();
            effects.add(std::mem::take(&mut self.effects));
            self.effects = effects;
            self.succeeded("incremental", applied, services, at);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<Applied, BackendError> {
        let changes = self.turns.plan.begin();
        let mut effects = std::mem::take(&mut self.turns.asked);
        effects.note(&changes, facts::listens_on_loopback(&self.settings));
        let (changes, _) = self.quarantine.apart(changes);
        let (at, services) = (Instant::now(), changes.len());
        // Written down first: if it is refused, the full pass that follows tells them.
        self.turns.begun = Some(Begun { at, services, applied: Applied::default(), effects });
        self.backend.begin(&changes)
    }

    /// Before the end: everything is done.
    pub(super) fn finish(mut self) {
        while self.phase == Phase::Incremental && !self.turns.is_idle() {
            if self.turn().is_err() {
                return;
            }
        }
    }

    /// All that takes turns becomes part of the next full pass.
    pub(super) fn end_turns(&mut self) {
        let Turns { plan, asked, begun } = std::mem::take(&mut self.turns);
        let before = begun.map(|begun| begun.effects).unwrap_or_default();
        let since = std::mem::replace(&mut self.effects, before);
        self.effects.add(since);
        self.effects.add(asked);
        self.note(plan.put_off());
    }

    /// Writes down what is to be told of changes.
    pub(super) fn note(&mut self, changes: &[PlanChange]) {
        self.effects.note(changes, facts::listens_on_loopback(&self.settings));
    }
}
