//! Log output: format, streams and verbosity as `logging` of the configuration says.

use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::raw::Logging;
use crate::output::complain;

/// Counts more than the configuration.
const FILTER: &str = "RUST_LOG";

/// Whether every line is to be a JSON object.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts logging. The environment variable RUST_LOG counts more than the configuration.
pub fn start(logging: &Logging) {
    let is_json = logging.format == "json";
    if is_json {
        as_json();
    }
    let options = if is_json { &logging.options.json } else { &logging.options.text };
    let (writer, is_terminal) = if options.split_stream {
        (BoxMakeWriter::new(std::io::stderr.with_max_level(Level::WARN).or_else(std::io::stdout)), false)
    } else {
        (BoxMakeWriter::new(std::io::stderr), std::io::IsTerminal::is_terminal(&std::io::stderr()))
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(is_terminal);
    // It would be told on stderr, where a failure is a panic.
    let lines = lines.log_internal_errors(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> =
        if is_json { lines.json().boxed() } else { lines.boxed() };
    let filter = std::env::var(FILTER).ok().filter(|text| !text.is_empty());
    let filter = filter.map(EnvFilter::try_new).transpose();
    let wrong = filter.as_ref().err().map(ToString::to_string);
    let lines = match filter {
        Ok(Some(filter)) => lines.with_filter(filter).boxed(),
        Ok(None) | Err(_) => {
            let logging = logging.clone();
            lines.with_filter(filter_fn(move |metadata| shows(&logging, metadata))).boxed()
        }
    };
    tracing_subscriber::registry().with(lines).init();
    if let Some(error) = wrong {
        tracing::warn!(
            error,
            "{FILTER} is invalid and has no effect: set it to a filter such as \"sluice=debug\", or unset it"
        );
    }
}

/// From now on, all that this process says on stderr is JSON, whether logging has started or not.
pub fn as_json() {
    if !JSON.swap(true, Ordering::Relaxed) {
        std::panic::set_hook(Box::new(|panic| complain(json_line(&panic.to_string()))));
    }
}

/// Says why this process ends. No filter of levels keeps that back.
pub fn last_words(error: impl Display) {
    if JSON.load(Ordering::Relaxed) {
        complain(json_line(&error.to_string()));
    } else {
        complain(format_args!("sluice: {error}"));
    }
}

/// A line like those of the log.
fn json_line(message: &str) -> String {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    serde_json::json!({
        "timestamp": now, "level": "ERROR", "fields": {"message": message}, "target": "sluice",
    })
    .to_string()
}

fn shows(logging: &Logging, metadata: &Metadata<'_>) -> bool {
    let is_ours = metadata.target().starts_with("sluice");
    // The client tells each failed request as an error; the watch tells of them too, but does not
    // flood the log.
    if metadata.target().starts_with("kube_client") && verbosity(logging, metadata.file()) < 4 {
        return false;
    }
    *metadata.level() <= most(verbosity(logging, metadata.file()), is_ours)
}

/// The most detailed level of a verbosity as kube-proxy counts: up to 1 what is worth to know, from
/// 2 what we do and why, from 4 each object and what the libraries do.
fn most(verbosity: u32, is_ours: bool) -> LevelFilter {
    match verbosity {
        0..=1 => LevelFilter::INFO,
        2..=3 if !is_ours => LevelFilter::INFO,
        4.. if is_ours => LevelFilter::TRACE,
        _ => LevelFilter::DEBUG,
    }
}

/// The verbosity of a source file: of the first pattern that matches its name, else that of the
/// whole.
fn verbosity(logging: &Logging, file: Option<&str>) -> u32 {
    let name = file.and_then(|file| Path::new(file).file_stem()?.to_str());
    let matching = |name| logging.vmodule.iter().find(|part| glob(part.file_pattern.as_bytes(), name));
    name.and_then(|name: &str| matching(name.as_bytes())).map_or(logging.verbosity, |part| part.verbosity)
}

/// Whether a name matches a pattern, in which `*` stands for any characters and `?` for one.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skipped| glob(rest, &name[skipped..])),
        (Some((b'?', pattern)), Some((_, name))) => glob(pattern, name),
        (Some((a, pattern)), Some((b, name))) => a == b && glob(pattern, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::VModule;

    #[test]
    fn the_first_pattern_that_matches_the_file_decides() {
        let part = |pattern: &str, verbosity| VModule { file_pattern: pattern.into(), verbosity };
        let logging = Logging {
            verbosity: 1,
            vmodule: vec![part("kube*s", 4), part("kubernetes", 0), part("nod?", 2)],
            ..Logging::default()
        };
        assert_eq!(verbosity(&logging, Some("src/watch/kubernetes.rs")), 4);
        assert_eq!(verbosity(&logging, Some("src/node.rs")), 2);
        assert_eq!(verbosity(&logging, Some("src/nodes.rs")), 1);
        assert_eq!(verbosity(&logging, None), 1);
    }

    #[test]
    fn the_last_line_is_one_json_object_with_the_keys_of_the_others() {
        let line = json_line("wrong:\n  \"a\"");
        assert!(!line.contains('\n'), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["level"].as_str(), value["target"].as_str()), (Some("ERROR"), Some("sluice")));
        assert_eq!(value["fields"]["message"], "wrong:\n  \"a\"");
        assert!(value["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
    }

    #[test]
    fn verbosity_two_is_about_us_and_four_about_everything() {
        assert_eq!(most(1, true), LevelFilter::INFO);
        assert_eq!((most(3, true), most(3, false)), (LevelFilter::DEBUG, LevelFilter::INFO));
        assert_eq!(most(4, false), LevelFilter::DEBUG);
    }
}
