//! Values as the bytes that they are in a map.

use sluice_common::Address;
use sluice_common::flow::{Flow, FlowKey, Fragment, FragmentKey, Order};
use sluice_common::node::{Config, Interface, PodSource};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey,
    SourceKey,
};
use sluice_common::socket::{Peer, Pick, SocketKey};

/// A type that is its bytes.
///
/// # Safety
///
/// Of a known layout, without padding, and any bytes are a value of it.
pub unsafe trait Plain: Copy {
    /// Its bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: without padding every byte of the value is initialised, and the slice is as long
        // as the value.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), std::mem::size_of::<Self>()) }
    }

    /// The value that bytes are, if there are as many as it needs.
    fn read(bytes: &[u8]) -> Option<Self> {
        // SAFETY: there are enough bytes, any bytes are a value, and the read minds no alignment.
        (bytes.len() == std::mem::size_of::<Self>())
            .then(|| unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: sluice-common promises exactly this of all its types, and numbers have it.
            unsafe impl Plain for $type {}
        )+
    };
}

plain!(
    u32,
    u64,
    Address,
    FlowKey,
    Flow,
    Order,
    FragmentKey,
    Fragment,
    Config,
    Interface,
    PodSource,
    FrontendKey,
    Frontend,
    Group,
    EndpointKey,
    Endpoint,
    MemberKey,
    SourceKey,
    AffinityKey,
    Affinity,
    MaglevTable,
    SocketKey,
    Peer,
    Pick,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let key = EndpointKey { group: 7, slot: 3, reserved: 0 };
        assert_eq!(key.bytes().len(), 16);
        assert_eq!(EndpointKey::read(key.bytes()), Some(key));
        assert_eq!(EndpointKey::read(&[0; 15]), None);
    }
}
