//! From OpenMetrics text to the older Prometheus text format, which everything that reads
//! kube-proxy's page understands.

/// Rewrites a page: counters and infos are declared under the name of their samples, and there is
/// no end mark.
pub(super) fn classic(page: &str) -> String {
    let suffixes: Vec<(&str, &str, &str)> = page.lines().filter_map(declared).collect();
    let mut text = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        let rewritten = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(word @ ("HELP" | "TYPE")), Some(name), rest) => {
                let found = suffixes.iter().find(|(known, ..)| *known == name);
                let (suffix, kind) = found.map_or(("", ""), |(_, suffix, kind)| (suffix, kind));
                let rest = if word == "TYPE" && !kind.is_empty() { kind } else { rest.unwrap_or_default() };
                format!("# {word} {name}{suffix} {rest}")
            }
            _ => line.to_owned(),
        };
        text.push_str(&rewritten);
        text.push('\n');
    }
    text
}

/// The name in a TYPE line, the suffix that its samples have, and the older format's type.
fn declared(line: &str) -> Option<(&str, &'static str, &'static str)> {
    let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
    match kind {
        "counter" => Some((name, "_total", "counter")),
        "info" => Some((name, "_info", "gauge")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_infos_are_declared_as_their_samples_are_named() {
        let page = "# HELP a_count Things done.\n# TYPE a_count counter\na_count_total{x=\"y z\"} 3\n\
                    # HELP b It.\n# TYPE b gauge\nb 1\n# HELP c C.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let wanted = "# HELP a_count_total Things done.\n# TYPE a_count_total counter\n\
                      a_count_total{x=\"y z\"} 3\n# HELP b It.\n# TYPE b gauge\nb 1\n\
                      # HELP c_info C.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(classic(page), wanted);
    }
}
