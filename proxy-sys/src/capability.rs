//! Which capabilities this process has.

/// `CAP_NET_ADMIN` of linux/capability.h.
const NET_ADMIN: u32 = 12;

/// Whether this process may change the network of its namespace. `None` if /proc does not tell.
pub fn has_net_admin() -> Option<bool> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    effective(&status).map(|bits| bits & (1 << NET_ADMIN) != 0)
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_effective_set_is_read_from_the_status_file() {
        assert_eq!(super::effective("Name:\tx\nCapEff:\t0000000000001000\n"), Some(0x1000));
        assert_eq!(super::effective("Name:\tx\n"), None);
    }
}
