//! The maps that are in use, for all tasks of the daemon.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use sluice_common::maps::MapName;

use super::BpfError;
use super::map::Map;

/// The maps by name. Clones see the same: when a map is replaced by a larger one, the next look
/// finds that.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    by_name: Arc<RwLock<BTreeMap<MapName, Arc<Map>>>>,
}

impl Maps {
    pub(super) fn insert(&self, map: Map) {
        // Nobody can leave the table half done.
        let mut maps = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        maps.insert(map.spec().map, Arc::new(map));
    }

    /// A map.
    pub fn get(&self, map: MapName) -> Result<Arc<Map>, BpfError> {
        let maps = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        maps.get(&map).cloned().ok_or_else(|| BpfError::Object(format!("there is no map {map}")))
    }

    /// All of them, in the order of the table.
    pub fn all(&self) -> Vec<Arc<Map>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
