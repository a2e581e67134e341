//! Sluice is killed and started again while connections are opened all the time.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::Scenario;
use super::stage::Stage;
use super::traffic::{self, WEB};
use crate::lab::plugin::PodNetwork;

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "restart-under-load",
    file: file!(),
    needs: &["nft"],
    topology: traffic::TOPOLOGY,
    long: false,
    pod_network: PodNetwork::Lab,
    body: restart_under_load,
}];

/// Connections in a second, from inside and from outside each.
const PER_SECOND: u64 = 200;

fn restart_under_load(stage: &mut Stage) -> Result<()> {
    stage.apply_web()?;
    stage.lab.start_proxies(&Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("killed for two seconds")?;
    stage.traffic_goes_on(Duration::from_secs(1))?;
    stage.lab.kill_proxy("node-a")?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    stage.lab.start_proxy("node-a", &Value::Null)?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    for wait in [10, 100, 300, 500, 700, 1000] {
        stage.step(&format!("killed {wait} ms after its start"))?;
        stage.lab.kill_proxy("node-a")?;
        stage.lab.start_proxy("node-a", &Value::Null)?;
        stage.traffic_goes_on(Duration::from_millis(wait))?;
    }
    stage.step("stopped and started")?;
    stage.lab.stop_proxy("node-a")?;
    stage.traffic_goes_on(Duration::from_secs(1))?;
    stage.step("what changed meanwhile is in force")?;
    stage.point_web_to(&["a1", "b1", "b2"])?;
    stage.lab.start_proxy("node-a", &Value::Null)?;
    stage.reaches("pod/user", WEB, &["a1", "b1", "b2"])?;
    stage.end_traffic()
}
