//! Go's duration strings, as KubeProxyConfiguration writes them.

use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration written as in Go: `30s`, `1h30m`, `1m0.5s`, `0`. Negative ones are kept apart,
/// because validation has to name them.
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

    /// Parses Go's format (`time.ParseDuration`).
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(GoDuration::default());
        }
        if rest.is_empty() {
            return None;
        }
        let mut nanoseconds = 0u64;
        while !rest.is_empty() {
            let (part, behind) = part(rest)?;
            nanoseconds = nanoseconds.checked_add(part).filter(|sum| *sum <= LEAST)?;
            rest = behind;
        }
        // There is one more negative number than there are positive ones.
        let fits = nanoseconds < LEAST || negative;
        let value = Duration::from_nanos(nanoseconds);
        fits.then_some(GoDuration { value, negative: negative && nanoseconds > 0 })
    }
}

/// The absolute value of the least duration, in nanoseconds.
const LEAST: u64 = 1 << 63;

/// The nanoseconds of a number with its unit, and what stands behind them.
fn part(text: &str) -> Option<(u64, &str)> {
    let (whole, behind) = digits(text);
    let (fraction, behind) = behind.strip_prefix('.').map_or(("", behind), digits);
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
    let (name, rest) = behind.split_at(end);
    let unit = unit(name)?;
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let exact = unit.checked_mul(whole).filter(|exact| *exact <= LEAST)?;
    // As Go computes it; digits below a nanosecond are lost.
    let scaled: f64 = if fraction.is_empty() { 0.0 } else { fraction.parse().ok()? };
    let rest_of_unit = (scaled * (unit as f64 / 10f64.powi(i32::try_from(fraction.len()).ok()?))) as u64;
    Some((exact.checked_add(rest_of_unit)?, rest))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The nanoseconds of a unit.
fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.negative {
            f.write_str("-")?;
        }
        let nanoseconds = self.value.subsec_nanos();
        let total = self.value.as_secs();
        if total == 0 && nanoseconds > 0 {
            return match nanoseconds {
                1_000_000.. => write!(f, "{}ms", f64::from(nanoseconds) / 1e6),
                1_000.. => write!(f, "{}µs", f64::from(nanoseconds) / 1e3),
                _ => write!(f, "{nanoseconds}ns"),
            };
        }
        let (hours, minutes) = (total / 3600, total / 60 % 60);
        let seconds = (total % 60) as f64 + f64::from(nanoseconds) / 1e9;
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
        GoDuration::parse(text).ok_or_else(|| format!("{text:?} is not a duration such as 30s or 1h30m"))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(GoDurationText)
    }
}

/// Reads a duration as text.
struct GoDurationText;

impl Visitor<'_> for GoDurationText {
    type Value = GoDuration;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a duration such as 30s or 1h30m")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GoDuration, E> {
        text.parse().map_err(E::custom)
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
        for (text, nanoseconds) in [
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1.0000000019s", 1_000_000_001),
            ("100ns", 100),
            ("1µs1us", 2_000),
            ("2562047h47m16.854775807s", i64::MAX as u64),
        ] {
            assert_eq!(GoDuration::parse(text).unwrap().value, Duration::from_nanos(nanoseconds), "{text}");
        }
        assert!(GoDuration::parse("-5s").unwrap().negative);
        assert!(!GoDuration::parse("-0s").unwrap().negative);
        for bad in [
            "",
            "30",
            "s",
            "1d",
            "1h30",
            "--1s",
            ".s",
            "1e3s",
            "2562048h",
            "1 s",
            "-",
            "9223372036854775808ns",
        ] {
            assert_eq!(GoDuration::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        assert_eq!(GoDuration::seconds(86400).to_string(), "24h0m0s");
        assert_eq!(GoDuration::seconds(90).to_string(), "1m30s");
        assert_eq!(GoDuration::seconds(0).to_string(), "0s");
        for text in ["250ms", "1.5µs", "7ns", "1.5s", "-2m0.25s", "100h0m0s"] {
            assert_eq!(GoDuration::parse(text).unwrap().to_string(), text);
        }
    }
}
