//! The fields that this plugin reads, in the specification's spelling; [`go_json`](super::go_json)
//! finds them in any.

use super::go_json::Shape::{self, EmptyIfNull, List, Map, Open, Places, Scalar, Size, Struct};

/// What answers depend on, whatever else is there.
pub(super) const VERSION: Shape = Struct(&[("cniVersion", Scalar)]);

/// All that DEL needs.
pub(super) const FOR_DEL: Shape = Struct(&[
    ("name", Scalar),
    ("ipam", Struct(&[("type", Scalar)])),
    ("dataDir", Scalar),
    ("runDir", Scalar),
]);

/// All that a plugin needs that passes on what it is given.
pub(super) const PREVIOUS: Shape = Struct(&[("prevResult", RESULT)]);

/// A configuration.
pub(super) const CONFIG: Shape = Struct(&[
    ("name", Scalar),
    ("mode", Scalar),
    ("bridge", Scalar),
    ("mtu", Size),
    ("sysctl", Map),
    ("ipam", IPAM),
    ("dataDir", Scalar),
    ("runDir", Scalar),
    ("dns", DNS),
    ("runtimeConfig", CAPABILITIES),
    // As host-local reads it. What else is in there is for others.
    ("args", Struct(&[("cni", Struct(&[("ips", List(&Scalar))]))])),
    ("prevResult", RESULT),
    ("cni.dev/valid-attachments", EmptyIfNull(&ATTACHMENT)),
    ("cni.dev/attachments", EmptyIfNull(&ATTACHMENT)),
]);

const IPAM: Shape = Struct(&[
    ("type", Scalar),
    ("ranges", List(&List(&RANGE))),
    ("reserved", List(&Scalar)),
    ("routes", List(&ROUTE)),
]);

const RANGE: Shape =
    Struct(&[("subnet", Scalar), ("rangeStart", Scalar), ("rangeEnd", Scalar), ("gateway", Scalar)]);

const CAPABILITIES: Shape = Struct(&[("ips", List(&Scalar)), ("mac", Scalar), ("portMappings", List(&PORT))]);

const PORT: Shape =
    Struct(&[("hostPort", Scalar), ("containerPort", Scalar), ("protocol", Scalar), ("hostIP", Scalar)]);

const ATTACHMENT: Shape = Struct(&[("containerID", Scalar), ("ifname", Scalar)]);

/// What a plugin answers.
pub(super) const RESULT: Shape = Open(&[
    ("cniVersion", Scalar),
    ("interfaces", Places(&INTERFACE)),
    ("ips", List(&IP)),
    ("routes", List(&ROUTE)),
    ("dns", DNS),
]);

const INTERFACE: Shape = Open(&[("name", Scalar), ("mac", Scalar), ("mtu", Size), ("sandbox", Scalar)]);

const IP: Shape =
    Open(&[("version", Scalar), ("address", Scalar), ("gateway", Scalar), ("interface", Scalar)]);

const ROUTE: Shape = Open(&[("dst", Scalar), ("gw", Scalar), ("mtu", Size)]);

const DNS: Shape = Struct(&[
    ("nameservers", List(&Scalar)),
    ("domain", Scalar),
    ("search", List(&Scalar)),
    ("options", List(&Scalar)),
]);
