//! Sysctls that IPVS needs to behave as Services do (reference 3.6). All are of the network namespace.

use crate::proc::{ProcError, kernel_version, set_sysctl};

/// Which sysctls are to have which values, with a kernel of a version.
pub fn wanted(kernel: (u32, u32), strict_arp: bool) -> Vec<(&'static str, &'static str)> {
    let mut wanted = vec![
        // Connections are tracked, so that they can be masqueraded and filtered.
        ("net.ipv4.vs.conntrack", "1"),
        // A connection whose destination is gone ends with its next packet, rather than black-holing it.
        ("net.ipv4.vs.expire_nodest_conn", "1"),
        // A client is not held at a destination of weight 0.
        ("net.ipv4.vs.expire_quiescent_template", "1"),
        ("net.ipv4.ip_forward", "1"),
    ];
    // Between these versions the first packet of a connection whose port was used before was dropped, so that it waited for
    // a second. Later ones schedule it anew at once.
    if ((4, 1)..(5, 9)).contains(&kernel) {
        wanted.push(("net.ipv4.vs.conn_reuse_mode", "0"));
    }
    if strict_arp {
        // The node answers for addresses of the interface that is asked only, not for those of the dummy link.
        wanted.extend([("net.ipv4.conf.all.arp_ignore", "1"), ("net.ipv4.conf.all.arp_announce", "2")]);
    }
    wanted
}

/// Sets the sysctls that differ from what is [`wanted`], and returns those. IPVS must be there.
pub fn apply(strict_arp: bool) -> Result<Vec<(&'static str, &'static str)>, ProcError> {
    // A kernel that does not tell its version is a new one.
    let kernel = kernel_version().unwrap_or((u32::MAX, 0));
    let mut changed = Vec::new();
    for (name, value) in wanted(kernel, strict_arp) {
        if set_sysctl(name, value)? {
            changed.push((name, value));
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_of_connections_is_left_alone_where_it_works() {
        let has = |kernel| wanted(kernel, false).contains(&("net.ipv4.vs.conn_reuse_mode", "0"));
        assert!(!has((4, 0)) && has((4, 1)) && has((4, 19)) && has((5, 8)));
        assert!(!has((5, 9)) && !has((5, 15)) && !has((6, 1)));
    }

    #[test]
    fn arp_is_changed_only_if_asked_for() {
        let arp = |strict| wanted((6, 1), strict).iter().filter(|(name, _)| name.contains("arp")).count();
        assert_eq!((arp(false), arp(true)), (0, 2));
    }
}
