//! Durations as cases write them: `2s`, `10ms`, `1.5s`, `1m`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads a duration.
pub fn parse(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} is not a duration such as 2s, 10ms, 1m")),
    };
    let number: f64 =
        number.trim().parse().map_err(|_| format!("{text:?} is not a duration such as 2s, 10ms"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| format!("{text:?}: {error}"))
}

/// For `#[serde(deserialize_with)]`.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// For optional fields.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("1m"), Ok(Duration::from_secs(60)));
        for text in ["", "2", "s", "-1s", "2 fortnights"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
