//! Sysctls that IPVS needs to behave as Services do (reference 3.6). All are of the network
//! namespace.

use sluice_link::sysctl::{self, ProcError};

/// Which sysctls are to have which values.
pub fn wanted(strict_arp: bool) -> Vec<(&'static str, &'static str)> {
    let mut wanted = vec![
        // Connections are tracked, so that they can be masqueraded and filtered.
        ("net.ipv4.vs.conntrack", "1"),
        // A connection whose destination is gone ends with its next packet, rather than
        // black-holing it.
        ("net.ipv4.vs.expire_nodest_conn", "1"),
        // A client is not held at a destination of weight 0.
        ("net.ipv4.vs.expire_quiescent_template", "1"),
        // A client's port that is used again is a new connection: with 0, which kube-proxy sets
        // with kernels before 5.9 and some have in sysctl.d, it goes to the destination of before,
        // even one of weight 0.
        ("net.ipv4.vs.conn_reuse_mode", "1"),
        ("net.ipv4.ip_forward", "1"),
    ];
    if strict_arp {
        // The node answers for addresses of the interface that is asked only, not for those of the
        // dummy link.
        wanted.extend([("net.ipv4.conf.all.arp_ignore", "1"), ("net.ipv4.conf.all.arp_announce", "2")]);
    }
    wanted
}

/// Sets the sysctls that differ from what is [`wanted`], and returns those. IPVS must be there.
pub fn apply(strict_arp: bool) -> Result<Vec<(&'static str, &'static str)>, ProcError> {
    let mut changed = Vec::new();
    for (name, value) in wanted(strict_arp) {
        if sysctl::set(name, value)? {
            changed.push((name, value));
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_is_changed_only_if_asked_for() {
        let arp = |strict| wanted(strict).iter().filter(|(name, _)| name.contains("arp")).count();
        assert_eq!((arp(false), arp(true)), (0, 2));
    }
}
