//! /statusz and /flagz: text for people, JSON or YAML for whoever asks for it by its group and
//! version.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::http::header::{ACCEPT, CONTENT_TYPE, WARNING};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::cli::KUBE_PROXY;

/// A page in both of its forms.
pub(super) struct Page {
    kind: &'static str,
    text: String,
    fields: Map<String, Value>,
}

const PATHS: [&str; 6] = ["/configz", "/debug/syncs", "/flagz", "/healthz", "/metrics", "/proxyMode"];

/// What runs, and since when.
pub(super) fn statusz(started: SystemTime, now: SystemTime) -> Page {
    let up = now.duration_since(started).unwrap_or_default().as_secs();
    let start = jiff::Timestamp::try_from(started).map(|time| format!("{time:.0}")).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let mut fields = Map::new();
    fields.insert("startTime".into(), start.clone().into());
    fields.insert("uptimeSeconds".into(), up.into());
    fields.insert("goVersion".into(), "none".into());
    fields.insert("binaryVersion".into(), version.into());
    fields.insert("emulationVersion".into(), KUBE_PROXY.into());
    fields.insert("paths".into(), json!(PATHS));
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    let text = format!(
        "Started: {start}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: {version}\n\
         Emulation version: {KUBE_PROXY}\nPaths: {}\n",
        PATHS.join(" ")
    );
    Page { kind: "Statusz", text, fields }
}

/// The flags and their values.
pub(super) fn flagz(flags: &BTreeMap<String, String>) -> Page {
    let text = flags.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    Page { kind: "Flagz", text, fields: Map::from_iter([("flags".to_owned(), json!(flags))]) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Structured { yaml: bool, version: &'static str },
}

impl Page {
    /// The page in the form that the client accepts.
    pub(super) fn answer(self, headers: &HeaderMap) -> Response {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match form(accept, self.kind) {
            Some(Form::Text) => self.text_form(),
            Some(Form::Structured { yaml, version }) => self.structured(yaml, version),
            None => not_acceptable(),
        }
    }

    fn text_form(self) -> Response {
        let title = self.kind.to_lowercase();
        let body = format!("\nkube-proxy {title}\nFor people to read; its form may change.\n\n{}", self.text);
        ([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
    }

    fn structured(self, yaml: bool, version: &str) -> Response {
        let mut value = json!({
            "kind": self.kind,
            "apiVersion": format!("config.k8s.io/{version}"),
            "metadata": {"name": "kube-proxy"},
        });
        if let Value::Object(all) = &mut value {
            all.extend(self.fields);
        }
        let format = if yaml { "yaml" } else { "json" };
        let body = if yaml {
            serde_saphyr::to_string(&value).unwrap_or_default()
        } else {
            serde_json::to_string_pretty(&value).unwrap_or_default()
        };
        let kind = format!("application/{format};g=config.k8s.io;v={version};as={}", self.kind);
        let mut response = ([(CONTENT_TYPE, kind)], body).into_response();
        if version == "v1alpha1" {
            let warning = "299 - \"version v1alpha1 of this page is deprecated, use v1beta1\"";
            response.headers_mut().insert(WARNING, axum::http::HeaderValue::from_static(warning));
        }
        response
    }
}

/// The first form in an Accept header that there is.
fn form(accept: &str, kind: &str) -> Option<Form> {
    if accept.is_empty() {
        return Some(Form::Text);
    }
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next()?;
        let parameters: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
        let yaml = match media {
            "text/plain" | "text/*" | "*/*" => return Some(Form::Text),
            "application/json" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let is = |name, value| parameters.get(name) == Some(&value);
        let version = ["v1beta1", "v1alpha1"].into_iter().find(|version| is("v", *version))?;
        (is("g", "config.k8s.io") && is("as", kind)).then_some(Form::Structured { yaml, version })
    })
}

fn not_acceptable() -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "only these media types are served: application/json, application/yaml, text/plain; the first two \
                    with g, v and as",
        "reason": "NotAcceptable", "code": 406,
    });
    (StatusCode::NOT_ACCEPTABLE, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_the_client_asks_for_by_name() {
        let json = |version| Some(Form::Structured { yaml: false, version });
        assert_eq!(form("", "Statusz"), Some(Form::Text));
        assert_eq!(form("text/html, */*;q=0.8", "Statusz"), Some(Form::Text));
        assert_eq!(form("application/json;g=config.k8s.io;v=v1beta1;as=Statusz", "Statusz"), json("v1beta1"));
        assert_eq!(
            form("application/json; g=config.k8s.io; v=v1alpha1; as=Flagz", "Flagz"),
            json("v1alpha1")
        );
        for refused in
            ["application/json", "application/json;g=config.k8s.io;v=v1beta1;as=Flagz", "image/png"]
        {
            assert_eq!(form(refused, "Statusz"), None, "{refused}");
        }
    }
}
