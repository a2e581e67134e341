//! What /proc and /sys say of this machine and of this process, and limits of it.

/// CPUs of the host that are online; not those that this process may use.
pub fn online_cpus() -> Option<usize> {
    cpu_set(&std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?)
}

/// The size of a set of CPUs as the kernel writes it: `0-3,8,10-11`.
fn cpu_set(text: &str) -> Option<usize> {
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend(first..=last);
    }
    Some(cpus.len())
}

/// Ports that the kernel gives to processes that ask for any (`net.ipv4.ip_local_port_range`).
pub fn local_port_range() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    // The kernel's default.
    port_range(&text).unwrap_or(32768..=60999)
}

fn port_range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of eBPF programs.
pub fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Lets this process open as many files as it ever may: the soft `RLIMIT_NOFILE` becomes the hard
/// one. The usual 1024 is for programs that use select(2). Returns the limit.
pub fn raise_open_files() -> std::io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole rlimit that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a whole rlimit.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Gives memory that the allocator holds but nobody uses back to the system.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The resident memory of this process in bytes.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn open_files_are_limited_by_the_hard_limit_only() {
        let raised = super::raise_open_files().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let expected = raised.to_string();
        let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        assert_eq!(numbers, [expected.as_str(), expected.as_str()]);
    }

    #[test]
    fn a_set_of_cpus_is_counted() {
        for (text, count) in [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11\n", 7), ("1,1-2\n", 2)] {
            assert_eq!(super::cpu_set(text), Some(count), "{text}");
        }
        assert_eq!(super::cpu_set(""), None);
        assert!(super::online_cpus().is_some_and(|cpus| cpus > 0));
    }

    #[test]
    fn a_range_of_ports_is_read() {
        assert_eq!(super::port_range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(super::port_range("1"), None);
    }
}
