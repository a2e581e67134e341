//! What a scalar stands for (`resolve` of go.yaml.in/yaml/v2), and what encoding/json makes of it.

use granit_parser::Tag;
use serde_json::{Number, Value};

use crate::go_number;

/// From here on encoding/json writes an exponent, and no integer is read from it.
const LEAST_WITH_EXPONENT: f64 = 1e21;

/// The value of a scalar, or why there is none.
pub(super) fn resolve(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let tag = tag.map(|tag| format!("{}{}", tag.handle(), tag.suffix()));
    // The tag "!" is as good as none.
    let tag = tag.filter(|tag| tag != "!");
    let short = tag.as_deref().map(|tag| tag.strip_prefix("tag:yaml.org,2002:").unwrap_or(tag));
    let found = match short {
        None if plain => untagged(text)?,
        None | Some("str") => text.into(),
        Some("null" | "bool" | "int" | "float") => untagged(text)?,
        // Bytes, timestamps and types of others are texts where JSON is wanted.
        Some(_) => text.into(),
    };
    let fits = match short {
        Some("null") => found.is_null(),
        Some("bool") => found.is_boolean(),
        Some("int") => is_integer(text),
        Some("float") => found.is_number(),
        _ => true,
    };
    // The text may be secret.
    if fits {
        Ok(found)
    } else {
        Err(format!("a value with the tag !!{} has another type", short.unwrap_or_default()))
    }
}

/// The text of a key; JSON has no other keys.
pub(super) fn key(key: Value) -> Result<String, String> {
    match key {
        Value::String(text) => Ok(text),
        Value::Number(_) | Value::Bool(_) => Ok(key.to_string()),
        Value::Null => Err("null cannot be a key".into()),
        Value::Array(_) | Value::Object(_) => Err("a list or a mapping cannot be a key".into()),
    }
}

fn untagged(text: &str) -> Result<Value, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => true.into(),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => false.into(),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Err(format!("{text}: JSON has no such number")),
        _ => number(text).unwrap_or_else(|| text.into()),
    })
}

fn is_integer(text: &str) -> bool {
    integer(&text.replace('_', "")).is_some()
}

/// Go reads integers before it reads decimals, so that `014` is 12, while `08` and `09` are
/// decimals.
fn number(text: &str) -> Option<Value> {
    let first = text.bytes().next()?;
    let plain = match first {
        b'.' => go_number::decimal(text)?,
        b'0'..=b'9' | b'+' | b'-' => text.replace('_', ""),
        _ => return None,
    };
    if let Some(integer) = integer(&plain) {
        return Some(Value::Number(integer));
    }
    let is_decimal = plain.contains(|c: char| c.is_ascii_digit())
        && plain
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    let float: f64 = plain.parse().ok().filter(|float: &f64| is_decimal && float.is_finite())?;
    Some(Value::Number(as_json(float)?))
}

/// An integer of 64 bits, with or without a sign.
fn integer(plain: &str) -> Option<Number> {
    let value = go_number::parse_int(plain, false)?;
    i64::try_from(value).map(Number::from).or_else(|_| u64::try_from(value).map(Number::from)).ok()
}

/// encoding/json writes whole numbers without a fraction, so that they are good integers.
fn as_json(float: f64) -> Option<Number> {
    if float.fract() == 0.0 && float.abs() < LEAST_WITH_EXPONENT {
        let whole = float as i128;
        if let Ok(whole) = i64::try_from(whole) {
            return Some(whole.into());
        }
        if let Ok(whole) = u64::try_from(whole) {
            return Some(whole.into());
        }
    }
    Number::from_f64(float)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_are_what_go_reads() {
        for (text, value) in [
            ("014", json!(12)),
            ("0o14", json!(12)),
            ("0x1f", json!(31)),
            ("-0X1F", json!(-31)),
            ("0b101", json!(5)),
            ("-0b11", json!(-3)),
            ("08", json!(8)),
            ("019", json!(19)),
            ("1_000", json!(1000)),
            ("0x_1", json!(1)),
            ("+5", json!(5)),
            ("14.0", json!(14)),
            ("1.", json!(1)),
            (".5", json!(0.5)),
            ("-9e2", json!(-900)),
            ("1e2", json!(100)),
            ("1_0.5_0", json!(10.5)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("18446744073709551616", json!(18_446_744_073_709_551_616_f64)),
            ("1e400", json!("1e400")),
            ("1:30", json!("1:30")),
            ("2001-01-01", json!("2001-01-01")),
            ("0x", json!("0x")),
            ("0xg", json!("0xg")),
            ("1e", json!("1e")),
            ("-", json!("-")),
            (".", json!(".")),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.0/8", json!("10.0.0.0/8")),
            ("infinity", json!("infinity")),
            ("nan", json!("nan")),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("yEs", json!("yEs")),
            ("", Value::Null),
            ("~", Value::Null),
        ] {
            assert_eq!(resolve(text, true, None).unwrap(), value, "{text}");
            assert_eq!(resolve(text, false, None).unwrap(), json!(text), "quoted {text}");
        }
        assert!(resolve(".inf", true, None).is_err());
    }

    #[test]
    fn tags_say_what_a_scalar_is() {
        let tag = |suffix: &str| Tag::new("tag:yaml.org,2002:", suffix);
        let of = |text, suffix| resolve(text, false, Some(&tag(suffix)));
        assert_eq!(of("5", "str").unwrap(), json!("5"));
        assert_eq!(of("5", "int").unwrap(), json!(5));
        assert_eq!(of("5", "float").unwrap(), json!(5));
        assert_eq!(of("yes", "bool").unwrap(), json!(true));
        assert_eq!(resolve("5", true, Some(&Tag::new("!", ""))).unwrap(), json!(5));
        assert_eq!(resolve("5", true, Some(&Tag::new("!", "mine"))).unwrap(), json!("5"));
        for (text, suffix) in [("x", "int"), ("1.5", "int"), ("x", "float"), ("1", "bool"), ("1", "null")] {
            assert!(of(text, suffix).is_err(), "{text} {suffix}");
        }
    }
}
