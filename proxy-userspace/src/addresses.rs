//! The node's interface addresses, followed through rtnetlink.

use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::AddressAttribute;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tracing::warn;

/// Follows the addresses of all interfaces until nobody listens any more.
pub async fn follow(addresses: watch::Sender<Option<Vec<IpAddr>>>) {
    loop {
        if let Err(error) = follow_once(&addresses).await {
            warn!(%error, "cannot follow interface addresses; trying again");
        }
        tokio::select! {
            () = addresses.closed() => return,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
}

/// Why addresses cannot be followed.
#[derive(Debug, thiserror::Error)]
enum AddressError {
    #[error("open a route netlink socket: {0}")]
    Open(#[source] std::io::Error),
    #[error("list addresses: {0}")]
    List(#[from] rtnetlink::Error),
}

async fn follow_once(addresses: &watch::Sender<Option<Vec<IpAddr>>>) -> Result<(), AddressError> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(AddressError::Open)?;
    tokio::spawn(connection);
    loop {
        let now = Some(list(&handle).await?);
        addresses.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        tokio::select! {
            message = messages.next() => if message.is_none() { return Ok(()) },
            () = addresses.closed() => return Ok(()),
        }
        // One change often comes with several messages.
        while let Ok(Some(_)) =
            tokio::time::timeout(std::time::Duration::from_millis(5), messages.next()).await
        {}
    }
}

async fn list(handle: &rtnetlink::Handle) -> Result<Vec<IpAddr>, rtnetlink::Error> {
    let mut found = Vec::new();
    let mut answer = handle.address().get().execute();
    while let Some(message) = answer.try_next().await? {
        // Point-to-point links carry their own address as "local".
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        found.extend(local.or(address));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
