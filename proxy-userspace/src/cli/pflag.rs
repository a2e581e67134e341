//! A command line as pflag 1.0 reads it, rewritten so that every flag stands as `--name=value`.

use std::ffi::{OsStr, OsString};

/// What is known of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flag<'a> {
    /// The name, without hyphens in front.
    pub(super) long: &'a str,
    /// The letter that stands for it.
    pub(super) short: Option<char>,
    /// It may stand without a value, and then is true.
    pub(super) alone: bool,
}

/// Rewrites arguments. A flag that is not known stays as it is, to be refused; the error is for
/// people.
pub(super) fn canonical(arguments: &[OsString], flags: &[Flag<'_>]) -> Result<Vec<OsString>, String> {
    let mut rest = arguments.iter();
    let mut written = Vec::new();
    while let Some(argument) = rest.next() {
        let Some(text) = argument.to_str().filter(|text| text.len() > 1 && text.starts_with('-')) else {
            // As in kube-proxy, nobody minds an argument without a letter.
            written.extend((!argument.is_empty()).then(|| argument.clone()));
            continue;
        };
        if text == "--" {
            written.push(argument.clone());
            written.extend(rest.cloned());
            break;
        }
        match text.strip_prefix("--") {
            Some(long) => written.push(long_flag(text, long, flags, &mut rest)?),
            None => short_flags(&text[1..], flags, &mut rest, &mut written)?,
        }
    }
    Ok(written)
}

type Rest<'a> = std::slice::Iter<'a, OsString>;

fn long_flag(text: &str, long: &str, flags: &[Flag<'_>], rest: &mut Rest<'_>) -> Result<OsString, String> {
    if long.starts_with(['-', '=']) {
        return Err(format!("bad flag syntax: {text}"));
    }
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (long, None),
    };
    let name = name.replace('_', "-");
    let Some(flag) = flags.iter().find(|flag| flag.long == name) else { return Ok(text.into()) };
    match value {
        Some(value) => Ok(written(&name, value.as_ref())),
        None => without_value(*flag, &format!("--{name}"), rest),
    }
}

/// Letters in a row: flags that stand alone, and a last one with its value.
fn short_flags(
    letters: &str,
    flags: &[Flag<'_>],
    rest: &mut Rest<'_>,
    all: &mut Vec<OsString>,
) -> Result<(), String> {
    let mut letters = letters;
    while let Some(letter) = letters.chars().next() {
        let Some(flag) = flags.iter().find(|flag| flag.short == Some(letter)) else {
            return Err(format!("unknown shorthand flag: {letter:?} in -{letters}"));
        };
        let behind = &letters[letter.len_utf8()..];
        match behind.strip_prefix('=').filter(|value| !value.is_empty()) {
            Some(value) => {
                all.push(written(flag.long, value.as_ref()));
                return Ok(());
            }
            None if flag.alone => all.push(written(flag.long, "true".as_ref())),
            None if behind.is_empty() => all.push(without_value(*flag, &format!("-{letter}"), rest)?),
            None => {
                all.push(written(flag.long, behind.as_ref()));
                return Ok(());
            }
        }
        letters = behind;
    }
    Ok(())
}

/// A flag whose value does not stand behind `=`: it is true, or the next argument is its value,
/// whatever that looks like.
fn without_value(flag: Flag<'_>, typed: &str, rest: &mut Rest<'_>) -> Result<OsString, String> {
    if flag.alone {
        return Ok(written(flag.long, "true".as_ref()));
    }
    let value = rest.next().ok_or_else(|| format!("flag needs an argument: {typed}"))?;
    Ok(written(flag.long, value))
}

fn written(name: &str, value: &OsStr) -> OsString {
    let mut text = OsString::from(format!("--{name}="));
    text.push(value);
    text
}

/// A list as `StringSlice` reads it: the first record of a CSV text.
pub(super) fn csv(text: &str) -> Result<Vec<String>, String> {
    let text = text.replace("\r\n", "\n");
    let mut rest = text.as_str();
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    rest = rest.trim_start_matches('\n');
    if rest.is_empty() {
        return Err("the text has no record".into());
    }
    let mut fields = Vec::new();
    loop {
        let (field, behind) = field(rest)?;
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// A field, and what stands behind it from the comma on.
fn field(text: &str) -> Result<(String, &str), String> {
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find([',', '\n']).unwrap_or(text.len());
        let (field, behind) = text.split_at(end);
        return if field.contains('"') {
            Err(format!("{field} contains a quote"))
        } else {
            Ok((field.to_owned(), behind))
        };
    };
    let mut field = String::new();
    loop {
        let end = quoted.find('"').ok_or_else(|| format!("a quote is missing at the end of {text}"))?;
        field += &quoted[..end];
        let behind = &quoted[end + 1..];
        match behind.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                quoted = more;
            }
            None if behind.is_empty() || behind.starts_with([',', '\n']) => return Ok((field, behind)),
            None => return Err(format!("text follows the closing quote in {text}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag<'static>; 5] = [
        Flag { long: "name", short: None, alone: false },
        Flag { long: "long-name", short: None, alone: false },
        Flag { long: "all", short: None, alone: true },
        Flag { long: "v", short: Some('v'), alone: false },
        Flag { long: "help", short: Some('h'), alone: true },
    ];

    fn read(line: &str) -> Result<Vec<String>, String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let written = canonical(&arguments, &FLAGS)?;
        Ok(written.into_iter().map(|text| text.into_string().unwrap()).collect())
    }

    #[test]
    fn flags_are_found_as_pflag_finds_them() {
        for (line, written) in [
            ("--name=x", &["--name=x"][..]),
            ("--name x", &["--name=x"]),
            ("--name -x", &["--name=-x"]),
            ("--name --all", &["--name=--all"]),
            ("--name --", &["--name=--"]),
            ("--name=", &["--name="]),
            ("--name  --all", &["--name=", "--all=true"]),
            ("--name=a=b", &["--name=a=b"]),
            ("--all", &["--all=true"]),
            ("--all=F", &["--all=F"]),
            ("--all false", &["--all=true", "false"]),
            ("--long_name=a_b", &["--long-name=a_b"]),
            ("--LONG-name=1", &["--LONG-name=1"]),
            ("-v 3", &["--v=3"]),
            ("-v3", &["--v=3"]),
            ("-v=3", &["--v=3"]),
            ("-v=", &["--v=="]),
            ("-v -1", &["--v=-1"]),
            ("-hv3", &["--help=true", "--v=3"]),
            ("-- --all", &["--", "--all"]),
            ("- x", &["-", "x"]),
            ("--bogus=1", &["--bogus=1"]),
        ] {
            assert_eq!(read(line).unwrap(), written, "{line}");
        }
        assert_eq!(read("").unwrap(), Vec::<String>::new());
        for (line, error) in [
            ("--name", "flag needs an argument: --name"),
            ("-v", "flag needs an argument: -v"),
            ("---name=x", "bad flag syntax: ---name=x"),
            ("--=x", "bad flag syntax: --=x"),
            ("-x", "unknown shorthand flag: 'x' in -x"),
            ("-name=x", "unknown shorthand flag: 'n' in -name=x"),
        ] {
            assert_eq!(read(line).unwrap_err(), error, "{line}");
        }
    }

    #[test]
    fn lists_are_csv() {
        for (text, list) in [
            ("", &[][..]),
            ("a", &["a"]),
            ("a,b", &["a", "b"]),
            ("a,", &["a", ""]),
            (" a , b", &[" a ", " b"]),
            ("\"10.0.0.0/8\"", &["10.0.0.0/8"]),
            ("\"a,b\",c", &["a,b", "c"]),
            ("\"a\"\"b\"", &["a\"b"]),
            ("\"\"", &[""]),
            ("a\nb", &["a"]),
            ("\n\na", &["a"]),
            ("\"a\nb\"", &["a\nb"]),
        ] {
            assert_eq!(csv(text).unwrap(), list, "{text:?}");
        }
        for text in ["\"a", "a\"b", "\"a\"b", "\"a\" ,b", "\n"] {
            assert!(csv(text).is_err(), "{text:?}");
        }
    }
}
