//! YAML and JSON as Kubernetes' Go libraries read them: of a key that is given twice the last one
//! counts, `0120` is octal, and a number without a fraction is whole however it is written (`80.0`,
//! `1e2`, `030080`).

use serde_json::{Number, Value};
use serde_saphyr::DuplicateKeyPolicy;

/// Why a text is neither YAML nor JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotYaml {
    /// The parser's reason, without the text around it, which may be secret.
    pub(super) reason: String,
    /// The line of the text, from 1.
    pub(super) line: Option<u64>,
}

/// Reads one document; `Value::Null` of one without content.
pub(super) fn value(text: &str) -> Result<Value, NotYaml> {
    let json = text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok()).flatten();
    let mut value = match json {
        Some(value) => value,
        None => yaml(text)?,
    };
    whole_numbers(&mut value);
    Ok(value)
}

fn yaml(text: &str) -> Result<Value, NotYaml> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
        budget: budget(text),
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| NotYaml {
        line: error.location().map(|location| location.line()),
        reason: excess(&error)
            .unwrap_or_else(|| error.to_string().lines().next().unwrap_or_default().to_owned()),
    })
}

/// Which of our limits an error is about.
fn excess(error: &serde_saphyr::Error) -> Option<String> {
    use serde_saphyr::Error;
    use serde_saphyr::budget::BudgetBreach;
    match error {
        Error::AliasError { error, .. } => excess(error),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            Some(format!("values are nested more than {MOST_NESTED} levels deep"))
        }
        Error::Budget { breach: BudgetBreach::ScalarBytes { .. }, .. } => {
            Some(format!("aliases expand to more than {} MiB of text", MOST_ALIASED >> 20))
        }
        Error::Budget { breach: BudgetBreach::RecordedAnchorEvents { .. }, .. } => {
            Some("nested anchors expand to more than a million values".into())
        }
        Error::Budget { breach: BudgetBreach::RecordedAnchorBytes { .. }, .. } => {
            let most = MOST_ALIASED >> 20;
            Some(format!("nested anchors expand to more than {most} MiB of text"))
        }
        _ => None,
    }
}

/// More levels than any object has. What reads them needs stack for each, without optimization 20
/// KiB, and threads have 2 MiB.
const MOST_NESTED: usize = 64;
/// Bytes that aliases may add to a document.
const MOST_ALIASED: usize = 16 << 20;
/// Values that anchors around other anchors may add to a document.
const MOST_ANCHORED: usize = 1_000_000;

/// A List of any length is one document. What aliases and anchors may multiply or nest is limited,
/// and no real file meets the limits. What is within an anchor is copied for an alias to come, once
/// for each anchor around it: one around all of a text is never too many, because each value has a
/// character of its own.
fn budget(text: &str) -> Option<serde_saphyr::Budget> {
    serde_saphyr::budget! {
        max_events: usize::MAX,
        max_aliases: usize::MAX,
        max_anchors: usize::MAX,
        max_nodes: usize::MAX,
        max_documents: usize::MAX,
        max_merge_keys: usize::MAX,
        enforce_alias_anchor_ratio: false,
        max_depth: MOST_NESTED,
        max_total_scalar_bytes: text.len().saturating_add(MOST_ALIASED),
        max_recorded_anchor_events: text.len().saturating_add(MOST_ANCHORED),
        max_recorded_anchor_bytes: text.len().saturating_add(MOST_ALIASED),
        max_total_comment_bytes: usize::MAX,
    }
}

/// The largest number below which every whole one can be a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT);
            if let Some(float) = whole {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("80", json!(80)),
            ("80.0", json!(80)),
            ("1e2", json!(100)),
            ("0120", json!(80)),
            ("030080", json!(30080)),
            ("0x50", json!(80)),
            ("0b101", json!(5)),
            ("0o17", json!(15)),
            ("3_0", json!(30)),
            ("+80", json!(80)),
            ("-1", json!(-1)),
            ("80.5", json!(80.5)),
            ("\"80\"", json!("80")),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("2024-01-02", json!("2024-01-02")),
            ("~", json!(null)),
            ("", json!(null)),
            ("yes", json!(true)),
            ("Off", json!(false)),
        ] {
            assert_eq!(value(&format!("a: {text}")).unwrap()["a"], expected, "{text}");
        }
        assert_eq!(value(r#"{"a": 80.0, "b": 1e2}"#).unwrap(), json!({"a": 80, "b": 100}));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(value("a: 1\na: 2\n").unwrap(), json!({"a": 2}));
        assert_eq!(value(r#"{"a": 1, "a": 2}"#).unwrap(), json!({"a": 2}));
    }

    #[test]
    fn aliases_neither_nest_nor_multiply_without_an_end() {
        // 20 levels each, one within the other.
        let chain = |links: usize| {
            let link = |n: usize| {
                let (open, close) = ("[".repeat(20), "]".repeat(20));
                let inner = if n == 0 { "x".to_owned() } else { format!("*a{}", n - 1) };
                format!("a{n}: &a{n} {open}{inner}{close}\n")
            };
            (0..links).map(link).collect::<String>()
        };
        assert!(value(&chain(3)).is_ok());
        let wrong = value(&chain(500)).unwrap_err();
        assert!(wrong.line.is_some() && wrong.reason.contains("nested"), "{wrong:?}");
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 200].join(", "));
        let wrong = value(&long).unwrap_err();
        assert!(wrong.line.is_some() && wrong.reason.contains("aliases"), "{wrong:?}");
    }

    #[test]
    fn the_usual_stack_of_a_thread_is_enough_for_any_nesting() {
        let read = || {
            for (open, close) in [("[", "]"), ("{a: ", "}"), ("&a [", "]"), ("- ", "")] {
                let nested =
                    |levels: usize| value(&format!("a:\n  {}1{}", open.repeat(levels), close.repeat(levels)));
                assert!(nested(MOST_NESTED / 2).is_ok(), "{open}");
                for levels in MOST_NESTED - 4..MOST_NESTED + 100 {
                    // Whether it is too deep or not, it is answered.
                    drop(nested(levels));
                }
                assert!(nested(10 * MOST_NESTED).is_err(), "{open}");
            }
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(read).unwrap().join().unwrap();
    }

    #[test]
    fn an_anchor_may_be_on_a_list_of_any_length_but_not_on_many_within_each_other() {
        let long = format!("a: &a\n{}", "- 1\n".repeat(1_100_000));
        let read = value(&long).unwrap();
        assert_eq!(read["a"].as_array().map(Vec::len), Some(1_100_000));
        let open: String = (0..50).map(|n| format!("&a{n} [")).collect();
        let nested = |inner: &str| format!("a: {open}{inner}{}\n", "]".repeat(50));
        let wrong = value(&nested(&"1,".repeat(100_000))).unwrap_err();
        assert!(wrong.line.is_some() && wrong.reason.contains("anchors"), "{wrong:?}");
        // What the parser had to change in the text is copied for each.
        let escaped = format!("\"{}\"", "\\t".repeat(1 << 20));
        let wrong = value(&nested(&escaped)).unwrap_err();
        assert!(wrong.line.is_some() && wrong.reason.contains("anchors"), "{wrong:?}");
        assert!(value(&nested("1")).is_ok());
    }

    #[test]
    fn comments_may_be_of_any_length() {
        let comment = format!("# {}\n", "x".repeat(1 << 20)).repeat(65);
        assert_eq!(value(&format!("{comment}a: 1\n")).unwrap(), json!({"a": 1}));
    }

    #[test]
    fn what_cannot_be_read_names_the_line_and_shows_nothing_of_the_text() {
        let wrong = value("token: secret\nb: [secret\n").unwrap_err();
        assert!(wrong.line.is_some() && !wrong.reason.contains("secret"), "{wrong:?}");
    }
}
