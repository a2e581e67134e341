//! Numbers as Go's strconv reads them.

/// `strconv.ParseInt(text, 0, ..)`: decimal, or by the prefixes `0x`, `0o`, `0b` and `0`.
/// `underscores` allows single ones between digits, as in Go source. The value has less than 65
/// bits.
pub(crate) fn parse_int(text: &str, underscores: bool) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let has_prefix = digits.len() < lower.len();
    let digits = if underscores { without_underscores(digits, has_prefix)? } else { digits.to_owned() };
    // The standard library would take another sign.
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let value = i128::from(u64::from_str_radix(&digits, radix).ok().filter(|_| is_plain)?);
    Some(if negative { -value } else { value })
}

/// An underscore stands between digits, or between the prefix and a digit.
fn without_underscores(digits: &str, has_prefix: bool) -> Option<String> {
    let misplaced = digits.starts_with('_') && !has_prefix || digits.ends_with('_') || digits.contains("__");
    (!misplaced).then(|| digits.replace('_', ""))
}

/// `strconv.ParseFloat(text, 32)`: decimal or hexadecimal (`0x1p3`), infinities and NaN; nothing
/// out of range.
pub(crate) fn parse_f32(text: &str) -> Option<f32> {
    let lower = text.to_ascii_lowercase();
    let (sign, digits) = match lower.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, lower.strip_prefix('+').unwrap_or(&lower)),
    };
    if matches!(digits, "inf" | "infinity") {
        return Some(f32::INFINITY * sign);
    }
    if digits == "nan" {
        return Some(f32::NAN);
    }
    let value = match digits.strip_prefix("0x") {
        Some(digits) => hexadecimal(&without_underscores(digits, true)?)?,
        None if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            decimal(digits)?.parse().ok()?
        }
        None => return None,
    };
    Some(value * sign).filter(|value| value.is_finite())
}

/// A decimal number without its underscores, which stand between digits.
pub(crate) fn decimal(text: &str) -> Option<String> {
    let is_digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    let mut underscores = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'_');
    let fine = underscores.all(|(i, _)| i > 0 && is_digit(bytes.get(i - 1)) && is_digit(bytes.get(i + 1)));
    fine.then(|| text.replace('_', ""))
}

/// Mantissa and binary exponent, `1.8p-2`.
fn hexadecimal(text: &str) -> Option<f32> {
    let (mantissa, exponent) = text.split_once('p')?;
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    // Sixteen digits are more than any of these numbers has.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bits = u64::from_str_radix(&digits, 16).ok().filter(|_| is_plain)?;
    let scale = exponent.checked_sub(4 * i32::try_from(fraction.len()).ok()?)?;
    Some((bits as f64 * 2f64.powi(scale)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_the_prefixes_of_go() {
        for (text, value) in [
            ("0", 0),
            ("10", 10),
            ("-10", -10),
            ("+10", 10),
            ("010", 8),
            ("0x10", 16),
            ("0XfF", 255),
            ("0o10", 8),
            ("0O17", 15),
            ("-0b11", -3),
            ("1_000", 1000),
            ("0x_1_f", 31),
            ("0_7", 7),
        ] {
            assert_eq!(parse_int(text, true), Some(value), "{text}");
        }
        for text in [
            "", "-", "0x", "08", "1__0", "_1", "1_", "0x1_", "1.0", "1e3", "0x+1", "--1", "a", " 1", "1 ",
            "0b2",
        ] {
            assert_eq!(parse_int(text, true), None, "{text}");
        }
        assert_eq!(parse_int("1_0", false), None);
        assert_eq!(parse_int("18446744073709551616", true), None);
    }

    #[test]
    fn floats_are_decimal_or_hexadecimal() {
        for (text, value) in [
            ("5", 5.0),
            ("-2.5", -2.5),
            (".5", 0.5),
            ("1e2", 100.0),
            ("0x1p3", 8.0),
            ("0x1.8p1", 3.0),
            ("-0X1P-1", -0.5),
            ("1_0.5", 10.5),
            ("inf", f32::INFINITY),
        ] {
            assert_eq!(parse_f32(text), Some(value), "{text}");
        }
        assert!(parse_f32("NaN").unwrap().is_nan());
        for text in ["", "x", "0x1", "1_", "1_.5", "_1", "1e50", "0x1p500", "0xp1", "+-1", "infinit"] {
            assert_eq!(parse_f32(text), None, "{text}");
        }
    }
}
