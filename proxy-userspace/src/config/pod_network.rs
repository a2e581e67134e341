//! The section `sluice.podNetwork`.

use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::Value;
use sluice_cni::spec::{Attachment, Mode};
use sluice_core::net::{Family, parse_cidr};
use sluice_core::pod_network::{Between, Transport};

use super::raw::{KubeProxyConfiguration, PodNetwork};
use super::validate::Errors;

/// The network between pods.
#[derive(Clone, Debug, PartialEq)]
pub struct PodNetworkSettings {
    /// How packets get from node to node.
    pub between: Between,
    /// The UDP port of VXLAN.
    pub port: u16,
    /// The pods' MTU; `None`: what the path to the other nodes allows.
    pub mtu: Option<u32>,
    /// Whether pods get the node's address when they leave the cluster.
    pub masquerade: bool,
    /// Networks that are reached with the pods' own addresses, beside the nodes' pod CIDRs.
    pub inside: Vec<IpNet>,
    /// Whether pods are kept from sending with addresses of others.
    pub checks_sources: bool,
    /// How pods are wired to their node.
    pub mode: Mode,
    /// The bridge of mode bridge.
    pub bridge: String,
    /// The CNI plugin and its configuration.
    pub cni: CniSettings,
}

/// The CNI plugin and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct CniSettings {
    /// The network's name.
    pub name: String,
    /// The plugin to install; `None`: the one beside this program.
    pub plugin: Option<PathBuf>,
    /// Where container runtimes look for plugins.
    pub bin_dir: PathBuf,
    /// Where container runtimes look for configurations.
    pub conf_dir: PathBuf,
    /// Where the plugin writes down who has which address.
    pub data_dir: PathBuf,
    /// Where daemon and plugin meet.
    pub run_dir: PathBuf,
    /// Configurations of plugins that come behind ours.
    pub chain: Vec<Value>,
}

/// What the largest VXLAN network identifier is (RFC 7348, section 5: 24 bits).
const VNI_MOST: i64 = (1 << 24) - 1;

/// Reads the section; `None`: the pod network is somebody else's.
pub(super) fn pod_network(
    config: &KubeProxyConfiguration,
    errors: &mut Errors,
) -> Option<PodNetworkSettings> {
    let section = &config.sluice.pod_network;
    let transport = match section.backend.as_str() {
        "" => {
            errors.check(*section == PodNetwork::default(), || {
                "sluice.podNetwork: without a backend, the other fields have no effect; set backend to \
                 \"vxlan\", \"direct\" or \"cross-subnet\", or leave the section out"
                    .into()
            });
            return None;
        }
        "vxlan" => Transport::Vxlan,
        "direct" => Transport::Direct,
        "cross-subnet" => Transport::CrossSubnet,
        other => {
            errors.check(false, || {
                format!("sluice.podNetwork.backend: {other:?} is unknown; use \"vxlan\", \"direct\" or \"cross-subnet\"")
            });
            // What else is wrong is told all the same.
            Transport::Vxlan
        }
    };
    let mut number = |field: &str, value: Option<i64>, least: i64, most: i64| {
        let value = value.unwrap_or(least);
        errors.check((least..=most).contains(&value), || {
            format!("sluice.podNetwork.{field}: {value} is not between {least} and {most}")
        });
        u32::try_from(value).unwrap_or_default()
    };
    let vni = number("vni", section.vni, 0, VNI_MOST);
    let port = number("port", section.port, 1, 65_535);
    let mtu = section.mtu.filter(|mtu| *mtu != 0).map(|mtu| number("mtu", Some(mtu), 1280, 65_535));
    Some(PodNetworkSettings {
        between: Between { transport, vni, underlay: underlay(section, errors) },
        port: u16::try_from(port).unwrap_or_default(),
        mtu,
        masquerade: section.masquerade.unwrap_or(true),
        inside: inside(config, errors),
        checks_sources: section.check_sources.unwrap_or(true),
        mode: mode(section, errors),
        bridge: section.bridge.clone(),
        cni: cni(section, errors),
    })
}

fn underlay(section: &PodNetwork, errors: &mut Errors) -> Option<Family> {
    let text = section.underlay_family.as_str();
    let family = Family::BOTH.into_iter().find(|family| family.name() == text);
    errors.check(text.is_empty() || family.is_some(), || {
        format!(
            "sluice.podNetwork.underlayFamily: {text:?} is unknown; use \"IPv4\" or \"IPv6\", or leave it out"
        )
    });
    errors.check(text.is_empty() || section.backend != "direct", || {
        "sluice.podNetwork.underlayFamily: backend \"direct\" has no tunnel, so leave it out".into()
    });
    family
}

fn inside(config: &KubeProxyConfiguration, errors: &mut Errors) -> Vec<IpNet> {
    let mut found: Vec<IpNet> = config.cluster_cidr.split(',').filter_map(parse_cidr).collect();
    for (i, text) in config.sluice.pod_network.non_masquerade_cidrs.iter().flatten().enumerate() {
        match parse_cidr(text) {
            Some(net) => found.push(net),
            None => errors.check(false, || {
                format!(
                    "sluice.podNetwork.nonMasqueradeCIDRs[{i}]: {text:?} is not a CIDR such as 10.0.0.0/8"
                )
            }),
        }
    }
    found
}

fn mode(section: &PodNetwork, errors: &mut Errors) -> Mode {
    if let Err(error) = Attachment::new("x", &section.bridge) {
        errors.check(false, || format!("sluice.podNetwork.bridge: {error}"));
    }
    match section.mode.as_str() {
        "routed" => Mode::Routed,
        "bridge" => Mode::Bridge,
        other => {
            errors.check(false, || {
                format!("sluice.podNetwork.mode: {other:?} is unknown; use \"routed\" or \"bridge\"")
            });
            Mode::Routed
        }
    }
}

fn cni(section: &PodNetwork, errors: &mut Errors) -> CniSettings {
    let cni = &section.cni;
    let mut path = |field: &str, text: &str| {
        errors.check(text.starts_with('/'), || {
            format!("sluice.podNetwork.cni.{field}: {text:?} is not an absolute path")
        });
        PathBuf::from(text)
    };
    let settings = CniSettings {
        name: cni.name.clone(),
        plugin: (!cni.plugin.is_empty()).then(|| path("plugin", &cni.plugin)),
        bin_dir: path("binDir", &cni.bin_dir),
        conf_dir: path("confDir", &cni.conf_dir),
        data_dir: path("dataDir", &cni.data_dir),
        run_dir: path("runDir", &cni.run_dir),
        chain: cni.chain.clone().unwrap_or_default(),
    };
    errors.check(sluice_cni::spec::is_network_name(&cni.name), || {
        format!(
            "sluice.podNetwork.cni.name: {:?} is not a network name: use letters and digits, and after \
             the first character also _ . -",
            cni.name
        )
    });
    for (i, plugin) in settings.chain.iter().enumerate() {
        errors.check(plugin.get("type").is_some_and(Value::is_string), || {
            format!("sluice.podNetwork.cni.chain[{i}]: is not a plugin configuration: \"type\" is missing")
        });
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigError, Flags, resolve};
    use super::*;

    fn read(text: &str) -> Result<Option<PodNetworkSettings>, ConfigError> {
        let config = super::super::parse(&format!("---\n{text}")).unwrap().config;
        Ok(resolve(config, &Flags::default(), "n1")?.pod_network)
    }

    #[test]
    fn without_a_backend_there_is_no_pod_network() {
        assert_eq!(read("mode: nftables").unwrap(), None);
        assert!(
            read("sluice: {podNetwork: {vni: 7}}").unwrap_err().to_string().contains("without a backend")
        );
    }

    #[test]
    fn a_backend_is_enough() {
        let settings =
            read("{clusterCIDR: 10.0.0.0/8, sluice: {podNetwork: {backend: vxlan}}}").unwrap().unwrap();
        assert_eq!((settings.between.vni, settings.port, settings.mtu), (1, 4789, None));
        assert_eq!(settings.between.underlay, None);
        assert_eq!((settings.mode, settings.masquerade), (Mode::Routed, true));
        assert_eq!(settings.inside, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(settings.cni.conf_dir, PathBuf::from("/etc/cni/net.d"));
    }

    #[test]
    fn the_family_of_tunnels_can_be_set() {
        let of = |family: &str, backend: &str| {
            read(&format!("sluice: {{podNetwork: {{backend: {backend}, underlayFamily: {family}}}}}"))
        };
        for (text, family) in [("IPv4", Family::V4), ("IPv6", Family::V6)] {
            for backend in ["vxlan", "cross-subnet"] {
                assert_eq!(of(text, backend).unwrap().unwrap().between.underlay, Some(family));
            }
        }
        let told = |family, backend| of(family, backend).unwrap_err().to_string();
        assert!(told("ipv5", "vxlan").contains("underlayFamily: \"ipv5\" is unknown"));
        assert!(told("IPv4", "direct").contains("underlayFamily: backend \"direct\" has no tunnel"));
    }

    #[test]
    fn all_errors_are_reported_with_their_fields() {
        let text =
            "sluice: {podNetwork: {backend: direct, mode: x, vni: 16777216, port: 0, mtu: 68, bridge: a/b,
            nonMasqueradeCIDRs: [nonsense], cni: {name: ../z, binDir: bin, chain: [{}]}}}";
        let told = read(text).unwrap_err().to_string();
        for part in [
            "mode: \"x\"",
            "vni: 16777216",
            "port: 0",
            "mtu: 68",
            "bridge: ",
            "nonMasqueradeCIDRs[0]: \"nonsense\"",
            "cni.name: \"../z\"",
            "cni.binDir: \"bin\"",
            "cni.chain[0]",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        let told = read("sluice: {podNetwork: {backend: ipip, port: 0}}").unwrap_err().to_string();
        assert!(told.contains("\"ipip\" is unknown") && told.contains("port: 0"), "{told}");
    }
}
