//! Go's duration strings, as KubeProxyConfiguration writes them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration written as in Go: `30s`, `1h30m`, `1m0.5s`, `0`. Negative ones are kept apart, because
/// validation has to name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GoDuration {
    /// The absolute value.
    pub value: Duration,
    /// Whether it has a minus sign.
    pub negative: bool,
}

impl GoDuration {
    /// A duration of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        GoDuration { value: Duration::from_secs(seconds), negative: false }
    }

    /// Whether it is zero.
    pub const fn is_zero(self) -> bool {
        self.value.is_zero()
    }

    /// Parses Go's format.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(GoDuration::default());
        }
        let mut seconds = 0f64;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..end].parse().ok()?;
            rest = &rest[end..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            seconds += number * unit(&rest[..end])?;
            rest = &rest[end..];
        }
        let value = Duration::try_from_secs_f64(seconds).ok()?;
        Some(GoDuration { value, negative })
    }
}

fn unit(name: &str) -> Option<f64> {
    Some(match name {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total = self.value.as_secs();
        let (hours, minutes) = (total / 3600, total / 60 % 60);
        let seconds = (total % 60) as f64 + f64::from(self.value.subsec_nanos()) / 1e9;
        if self.negative {
            f.write_str("-")?;
        }
        match (hours, minutes) {
            (0, 0) => write!(f, "{seconds}s"),
            (0, _) => write!(f, "{minutes}m{seconds}s"),
            _ => write!(f, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

impl std::str::FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        GoDuration::parse(text).ok_or_else(|| format!("{text:?} is no duration such as 30s or 1h30m"))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_does() {
        for (text, seconds) in
            [("30s", 30.0), ("1h30m", 5400.0), ("0", 0.0), ("1m0.5s", 60.5), ("250ms", 0.25)]
        {
            assert_eq!(GoDuration::parse(text).unwrap().value.as_secs_f64(), seconds, "{text}");
        }
        assert!(GoDuration::parse("-5s").unwrap().negative);
        for bad in ["", "30", "s", "1d", "1h30", "--1s"] {
            assert_eq!(GoDuration::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        assert_eq!(GoDuration::seconds(86400).to_string(), "24h0m0s");
        assert_eq!(GoDuration::seconds(90).to_string(), "1m30s");
        assert_eq!(GoDuration::seconds(0).to_string(), "0s");
    }
}
