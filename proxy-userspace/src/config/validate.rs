//! What kube-proxy 1.36 to 1.38 refuse in a configuration. Messages begin with the path of the
//! field.

use ipnet::IpNet;
use sluice_core::net::{self, parse_ip};

use super::defaults::Requested;
use super::duration::GoDuration;
use super::gates;
use super::raw::KubeProxyConfiguration;
use super::resolve::ConfigError;

/// Fewer flows would push out one another on any node.
const FLOWS_LEAST: i64 = 1024;
/// More would take gigabytes, which the kernel takes at once.
const FLOWS_MOST: i64 = 16_777_216;

/// Errors, collected to be told at once.
#[derive(Default)]
pub(super) struct Errors(Vec<String>);

impl Errors {
    /// Notes an error unless all is fine.
    pub(super) fn check(&mut self, fine: bool, message: impl FnOnce() -> String) {
        if !fine {
            self.0.push(message());
        }
    }

    /// The value, if there was no error.
    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigError::Invalid(self.0)) }
    }

    fn not_negative(&mut self, field: &str, value: Option<GoDuration>) {
        let negative = value.is_some_and(|value| value.negative && !value.is_zero());
        self.check(!negative, || format!("{field}: must not be negative"));
    }

    fn within(&mut self, field: &str, value: Option<i32>, range: std::ops::RangeInclusive<i32>) {
        let (value, least, most) = (value.unwrap_or(*range.start()), *range.start(), *range.end());
        self.check(range.contains(&value), || match most {
            i32::MAX => format!("{field}: {value} is less than {least}"),
            _ => format!("{field}: {value} is not between {least} and {most}"),
        });
    }
}

/// A network; unlike in a Service, there may be no blanks around it.
pub(super) fn parse_cidr(text: &str) -> Option<IpNet> {
    net::parse_cidr(text).filter(|_| text.trim() == text)
}

/// Checks a configuration with its defaults filled in.
pub(super) fn validate(config: &KubeProxyConfiguration, requested: Requested, errors: &mut Errors) {
    kind(config, errors);
    if requested == Requested::Other {
        mode(config, errors);
    }
    errors.within("iptables.masqueradeBit", config.iptables.masquerade_bit, 0..=31);
    let section = match requested {
        Requested::Iptables => "iptables",
        Requested::Ipvs => "ipvs",
        Requested::Nftables | Requested::Other => "nftables",
    };
    if requested == Requested::Ipvs {
        errors.check(gates::is_on(&config.feature_gates, gates::KUBE_PROXY_IPVS), || {
            "mode: \"ipvs\" is disabled by featureGates.KubeProxyIPVS; enable the gate, or use \"nftables\""
                .into()
        });
        ipvs(config, errors);
    }
    if requested == Requested::Nftables {
        errors.within("nftables.masqueradeBit", config.nftables.masquerade_bit, 0..=31);
    }
    services(config, errors);
    periods(config, section, errors);
    errors.check(parse_ip(&config.bind_address).is_some(), || {
        format!("bindAddress: {:?} is not an IP address", config.bind_address)
    });
    errors.within("oomScoreAdj", config.oom_score_adj, -1000..=1000);
    errors.within("clientConnection.burst", Some(config.client_connection.burst), 0..=i32::MAX);
    conntrack(config, errors);
    let period = config.config_sync_period.unwrap_or_default();
    errors.check(!period.negative && !period.is_zero(), || "configSyncPeriod: must be greater than 0".into());
    let version = config.show_hidden_metrics_for_version.as_str();
    errors.check(matches!(version, "" | "1.35" | "1.36" | "1.37"), || {
        format!(
            "showHiddenMetricsForVersion: {version:?} is not the release before kube-proxy's: \"1.35\", \"1.36\" or \
             \"1.37\""
        )
    });
    for error in gates::judge(&config.feature_gates).errors {
        errors.check(false, || error);
    }
    logging(config, errors);
    ebpf(config, errors);
}

fn ebpf(config: &KubeProxyConfiguration, errors: &mut Errors) {
    errors.check(config.mode != "ebpf" || cfg!(feature = "ebpf"), || {
        "mode: this sluice was built without its eBPF backend (feature ebpf); set it to \"nftables\"".into()
    });
    let ebpf = &config.sluice.ebpf;
    for (field, path) in [("cgroupRoot", &ebpf.cgroup_root), ("bpffs", &ebpf.bpffs)] {
        errors.check(path.is_empty() || path.starts_with('/'), || {
            format!("sluice.ebpf.{field}: {path:?} is not an absolute path")
        });
    }
    let (flows, least, most) = (ebpf.flows.unwrap_or(FLOWS_LEAST), FLOWS_LEAST, FLOWS_MOST);
    errors.check((least..=most).contains(&flows), || {
        format!("sluice.ebpf.flows: {flows} is not between {least} and {most}")
    });
}

fn kind(config: &KubeProxyConfiguration, errors: &mut Errors) {
    errors.check(config.api_version == "kubeproxy.config.k8s.io/v1alpha1", || {
        format!("apiVersion: {:?} is not \"kubeproxy.config.k8s.io/v1alpha1\"", config.api_version)
    });
    errors.check(config.kind == "KubeProxyConfiguration", || {
        format!("kind: {:?} is not \"KubeProxyConfiguration\"", config.kind)
    });
}

fn mode(config: &KubeProxyConfiguration, errors: &mut Errors) {
    let mode = &config.mode;
    errors.check(false, || {
        format!(
            "mode: {mode:?} is unknown; use \"nftables\", \"ebpf\", \"auto\", \"ipvs\" or, as another \
             name for nftables, \"iptables\""
        )
    });
}

fn services(config: &KubeProxyConfiguration, errors: &mut Errors) {
    let budget = &config.sluice.service_budget;
    for (field, value) in [("frontends", budget.frontends), ("elements", budget.elements)] {
        let (value, most) = (value.unwrap_or(1), i64::from(i32::MAX));
        errors.check((1..=most).contains(&value), || {
            format!("sluice.serviceBudget.{field}: {value} is not between 1 and {most}")
        });
    }
    for (i, entry) in config.sluice.external_address_cidrs.iter().flatten().enumerate() {
        let name = "sluice.externalAddressCIDRs";
        errors.check(parse_cidr(entry).is_some(), || {
            format!("{name}[{i}]: {entry:?} is not a CIDR such as 192.0.2.0/24")
        });
    }
}

fn ipvs(config: &KubeProxyConfiguration, errors: &mut Errors) {
    let ipvs = &config.ipvs;
    errors.not_negative("ipvs.tcpTimeout", ipvs.tcp_timeout);
    errors.not_negative("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout);
    errors.not_negative("ipvs.udpTimeout", ipvs.udp_timeout);
    for (i, entry) in ipvs.exclude_cidrs.iter().flatten().enumerate() {
        errors.check(parse_cidr(entry).is_some(), || {
            format!("ipvs.excludeCIDRs[{i}]: {entry:?} is not a CIDR")
        });
    }
}

/// `section` is where the user wrote what now stands in section nftables.
fn periods(config: &KubeProxyConfiguration, section: &str, errors: &mut Errors) {
    let (sync, min) = match section {
        "ipvs" => (config.ipvs.sync_period, config.ipvs.min_sync_period),
        _ => (config.nftables.sync_period, config.nftables.min_sync_period),
    };
    errors.not_negative(&format!("{section}.syncPeriod"), sync);
    errors.not_negative(&format!("{section}.minSyncPeriod"), min);
    errors.check(min.unwrap_or_default().value <= sync.unwrap_or_default().value, || {
        format!("{section}.minSyncPeriod: must not be greater than {section}.syncPeriod")
    });
}

fn conntrack(config: &KubeProxyConfiguration, errors: &mut Errors) {
    let conntrack = &config.conntrack;
    errors.within("conntrack.maxPerCore", conntrack.max_per_core, 0..=i32::MAX);
    errors.within("conntrack.min", conntrack.min, 0..=i32::MAX);
    errors.not_negative("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout);
    errors.not_negative("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout);
    errors.not_negative("conntrack.udpTimeout", conntrack.udp_timeout);
    errors.not_negative("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout);
}

fn logging(config: &KubeProxyConfiguration, errors: &mut Errors) {
    let logging = &config.logging;
    let format = &logging.format;
    errors.check(matches!(format.as_str(), "text" | "json"), || {
        format!("logging.format: {format:?} is unknown; use \"text\" or \"json\"")
    });
    errors.check(format == "text" || logging.vmodule.is_empty(), || {
        "logging.vmodule: is for logging.format text only".into()
    });
    let flush = &logging.flush_frequency;
    let is_duration = flush.is_i64() || flush.as_str().is_some_and(|text| GoDuration::parse(text).is_some());
    errors.check(is_duration, || format!("logging.flushFrequency: {flush} is not a duration such as 5s"));
    let allowed = gates::is_on(&config.feature_gates, gates::LOGGING_ALPHA_OPTIONS);
    for (name, options) in [("text", &logging.options.text), ("json", &logging.options.json)] {
        let mut needs_gate = |set: bool, field: &str| {
            errors.check(allowed || !set, || {
                format!("logging.options.{name}.{field}: needs featureGates.{}", gates::LOGGING_ALPHA_OPTIONS)
            });
        };
        needs_gate(options.split_stream, "splitStream");
        let size = options.info_buffer_size.as_str().unwrap_or_default();
        needs_gate(!is_zero_quantity(size), "infoBufferSize");
        errors.check(is_quantity(size), || {
            format!("logging.options.{name}.infoBufferSize: {size:?} is not a quantity such as 512 or 1Ki")
        });
    }
}

/// Number and suffix of a quantity (`resource.Quantity` of the Kubernetes API).
fn quantity(text: &str) -> (&str, &str) {
    let text = text.trim();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    unsigned.split_at(unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len()))
}

fn is_quantity(text: &str) -> bool {
    let (number, suffix) = quantity(text);
    let exponent = suffix.strip_prefix(['e', 'E']).filter(|exponent| !exponent.is_empty());
    number.contains(|c: char| c.is_ascii_digit())
        && number.matches('.').count() <= 1
        && (matches!(
            suffix,
            "" | "n"
                | "u"
                | "m"
                | "k"
                | "M"
                | "G"
                | "T"
                | "P"
                | "E"
                | "Ki"
                | "Mi"
                | "Gi"
                | "Ti"
                | "Pi"
                | "Ei"
        ) || exponent.is_some_and(|exponent| exponent.parse::<i32>().is_ok()))
}

fn is_zero_quantity(text: &str) -> bool {
    quantity(text).0.chars().all(|c| matches!(c, '0' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_the_api() {
        for text in ["0", "512", "1Ki", "1.5M", ".5k", "1e3", "+2E-1", "3E"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", "x", "1 Ki", "1.2.3", "Ki", "1K", "1ki", "e3", "1e"] {
            assert!(!is_quantity(text), "{text}");
        }
        assert!(is_zero_quantity("0Ki") && is_zero_quantity("0.0") && !is_zero_quantity("10"));
    }
}
