//! An index and a planner that follow events as the daemon lets them.

use std::sync::Arc;

use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::model::{EndpointSlice, Service};
use sluice_core::plan::{Capture, Frontend, PlanChange, PlanConfig, Planner, ServicePlan};

use crate::objects::name;

/// Index and planner.
pub(crate) struct World {
    /// The objects.
    pub(crate) index: Index,
    /// The plans.
    pub(crate) planner: Planner,
}

impl World {
    /// An empty world.
    pub(crate) fn new(config: PlanConfig) -> Self {
        World { index: Index::default(), planner: Planner::new(config) }
    }

    /// A world of these objects.
    pub(crate) fn of(config: PlanConfig, services: &[Service], slices: &[EndpointSlice]) -> Self {
        let mut world = World::new(config);
        for service in services {
            world.index.apply(Event::Service(Change::Apply(service.clone())));
        }
        for slice in slices {
            world.index.apply(Event::Slice(Change::Apply(slice.clone())));
        }
        world.replan();
        world
    }

    /// Applies one event and plans.
    pub(crate) fn apply(&mut self, event: Event) -> Vec<PlanChange> {
        self.index.apply(event);
        self.replan()
    }

    /// Plans what is dirty.
    pub(crate) fn replan(&mut self) -> Vec<PlanChange> {
        let dirty = self.index.take_dirty();
        self.planner.replan(&self.index, dirty.services)
    }

    /// The plan of a Service of the namespace `default`.
    pub(crate) fn plan(&self, service: &str) -> Arc<ServicePlan> {
        self.planner.plan(&name(service)).unwrap_or_else(|| panic!("{service} has no plan")).clone()
    }

    /// The frontend that a Service owns.
    pub(crate) fn frontend(&self, service: &str, capture: Capture) -> Option<Frontend> {
        let plan = self.plan(service);
        let mut found =
            plan.ports.iter().flat_map(|port| port.frontends.iter()).filter(|f| f.capture == capture);
        let first = found.next().cloned();
        assert_eq!(found.next(), None, "{capture} is twice in the plan of {service}");
        first
    }
}
