//! Sysctls, of the network namespace that the thread is in, and other files of /proc and /sys that
//! hold one value.

use std::path::{Path, PathBuf};

/// A sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct ProcError {
    /// `read` or `write`.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

/// The file of a sysctl: `net.ipv4.ip_forward`, or as in sysctl(8) with slashes, where a dot is
/// part of a name.
fn file(name: &str) -> PathBuf {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    Path::new("/proc/sys").join(relative)
}

/// Writes a value to a sysctl, whatever it has.
pub fn write(name: &str, value: &str) -> Result<(), ProcError> {
    write_file(file(name), value)
}

/// Writes a value to a sysctl (`net.netfilter.nf_conntrack_max`), unless it has that value.
/// Returns whether it was changed.
pub fn set(name: &str, value: &str) -> Result<bool, ProcError> {
    write_if_different(file(name), value)
}

/// Writes a value to a file, unless the file holds it.
pub fn write_if_different(path: PathBuf, value: &str) -> Result<bool, ProcError> {
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(false);
    }
    write_file(path, value).map(|()| true)
}

fn write_file(path: PathBuf, value: &str) -> Result<(), ProcError> {
    std::fs::write(&path, value).map_err(|source| ProcError { operation: "write", path, source })
}

/// Writes a number to a file, unless the file holds it or a greater one. Returns whether it was
/// changed.
pub fn write_if_lower(path: PathBuf, value: i64) -> Result<bool, ProcError> {
    let now = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<i64>().ok());
    if now.is_some_and(|now| now >= value) { Ok(false) } else { write_if_different(path, &value.to_string()) }
}

/// Reads a number.
pub fn read_number(path: &Path) -> Result<u32, ProcError> {
    let number = std::fs::read_to_string(path).and_then(|text| {
        text.trim().parse().map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    });
    number.map_err(|source| ProcError { operation: "read", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_is_part_of_a_name_where_there_are_slashes() {
        assert_eq!(file("net.ipv4.ip_forward"), Path::new("/proc/sys/net/ipv4/ip_forward"));
        let of_a_vlan = "net/ipv4/conf/eth0.5/rp_filter";
        assert_eq!(file(of_a_vlan), Path::new("/proc/sys").join(of_a_vlan));
    }

    #[test]
    fn a_greater_number_stays() {
        let path = std::env::temp_dir().join(format!("sluice-sysctl-{}", std::process::id()));
        let after = |text: &str, value| {
            std::fs::write(&path, text).unwrap();
            let changed = write_if_lower(path.clone(), value).unwrap();
            (changed, std::fs::read_to_string(&path).unwrap())
        };
        assert_eq!(after("262144\n", 131_072), (false, "262144\n".into()));
        assert_eq!(after("131072\n", 131_072), (false, "131072\n".into()));
        assert_eq!(after("65536\n", 131_072), (true, "131072".into()));
        // What cannot be read is written.
        assert_eq!(after("?", 5), (true, "5".into()));
        std::fs::remove_file(&path).unwrap();
    }
}
