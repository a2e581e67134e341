//! Which proxy leads to the API server: the rules of Go's httpproxy for the environment, and
//! client-go's for `proxy-url`.

use std::net::IpAddr;

use axum::http::Uri;
use ipnet::IpNet;

/// The variables that Go programs look at.
#[derive(Debug, Default)]
pub(super) struct Environment {
    https: Option<Variable>,
    http: Option<Variable>,
    no_proxy: String,
}

#[derive(Debug)]
struct Variable {
    name: &'static str,
    value: String,
}

/// A proxy to use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    /// Its URL, which may hold a password.
    pub(super) uri: Uri,
    /// Where that was said.
    pub(super) source: &'static str,
}

impl Proxy {
    /// `host:port`, without a password.
    pub(super) fn place(&self) -> String {
        let host = self.uri.host().unwrap_or_default();
        self.uri.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// A proxy that cannot be used: where it was said, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) source: &'static str,
    pub(super) reason: String,
}

const FIELD: &str = "proxy-url";

/// The proxy that a kubeconfig names; the environment's exceptions do not apply to it.
pub(super) fn of_kubeconfig(text: &str) -> Result<Proxy, Unusable> {
    usable(text, FIELD)
}

impl Environment {
    /// Reads the variables: of each the first of the upper and lower case spelling that is not
    /// empty.
    pub(super) fn read(get: impl Fn(&str) -> Option<String>) -> Environment {
        let first = |names: [&'static str; 2]| {
            let mut values = names.into_iter().filter_map(|name| Some(Variable { name, value: get(name)? }));
            values.find(|variable| !variable.value.is_empty())
        };
        Environment {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            no_proxy: first(["NO_PROXY", "no_proxy"]).map(|variable| variable.value).unwrap_or_default(),
        }
    }

    /// The proxy for a server, none where it is to be reached directly.
    pub(super) fn proxy_for(&self, server: &Uri) -> Result<Option<Proxy>, Unusable> {
        let secure = server.scheme_str() == Some("https");
        let variable = if secure { &self.https } else { &self.http };
        let Some(Variable { name, value }) = variable else { return Ok(None) };
        let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let port = server.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if self.excepts(&host, port) {
            return Ok(None);
        }
        // A proxy may be written without its scheme.
        let text = if value.contains("://") { value.clone() } else { format!("http://{value}") };
        usable(&text, name).map(Some)
    }

    /// Whether a host is reached directly: this machine, and what NO_PROXY lists.
    fn excepts(&self, host: &str, port: u16) -> bool {
        let ip: Option<IpAddr> = host.parse().ok().map(|ip: IpAddr| ip.to_canonical());
        if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        self.no_proxy.split(',').any(|entry| matches(&entry.trim().to_ascii_lowercase(), host, ip, port))
    }
}

fn matches(entry: &str, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(net) = entry.parse::<IpNet>() {
        return ip.is_some_and(|ip| net.contains(&ip));
    }
    let (name, wanted) = split_port(entry);
    if name.is_empty() || wanted.is_some_and(|wanted| wanted != port.to_string()) {
        return false;
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return ip == Some(address.to_canonical());
    }
    // `.example.org` and `*.example.org` are what is below; `example.org` is that and the host
    // itself.
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    match name.strip_prefix('.') {
        Some(below) => host.strip_suffix(below).is_some_and(|rest| rest.ends_with('.')),
        None => host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    }
}

/// `host:port` and `[IPv6]:port`; an IPv6 address alone has no port. An empty one is none.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    let (host, port) = split_at_port(entry);
    (host, port.filter(|port| !port.is_empty()))
}

fn split_at_port(entry: &str) -> (&str, Option<&str>) {
    match entry.rsplit_once(':') {
        Some((host, port)) if host.starts_with('[') && host.ends_with(']') => {
            (host.trim_matches(['[', ']']), Some(port))
        }
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (entry, None),
    }
}

/// The URL of a proxy. No text of it is shown: it may hold a password.
fn usable(text: &str, source: &'static str) -> Result<Proxy, Unusable> {
    let fail = |reason: &str| Unusable { source, reason: reason.to_owned() };
    let uri: Uri = text.trim().parse().map_err(|_| fail("is not a URL such as http://proxy.example:3128"))?;
    let authority = uri.authority().ok_or_else(|| fail("has no host; write http://HOST:PORT"))?;
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let named = authority.as_str().contains('@');
    let (scheme, default) = match scheme.as_str() {
        "http" => ("http", 80),
        "https" => ("https", 443),
        "socks5" | "socks5h" if named => {
            return Err(fail("has a user name, which is not sent to a socks5 proxy; use an http proxy"));
        }
        "socks5" | "socks5h" => ("socks5", 1080),
        _ => return Err(fail("has a scheme that is not supported; use http, https or socks5")),
    };
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{}:{default}", authority.as_str().trim_end_matches(':')),
    };
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
    Ok(Proxy { uri: uri.map_err(|_| fail("is not a URL such as http://proxy.example:3128"))?, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let get =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Environment::read(get)
    }

    fn proxied(no_proxy: &str, server: &str) -> bool {
        let variables = [("HTTPS_PROXY", "http://p:3128"), ("HTTP_PROXY", "p:3129"), ("NO_PROXY", no_proxy)];
        environment(&variables).proxy_for(&server.parse().unwrap()).unwrap().is_some()
    }

    /// Answers of golang.org/x/net/http/httpproxy.
    #[test]
    fn exceptions_are_those_of_go() {
        for (no_proxy, server, expected) in [
            ("", "https://10.0.0.1:6443", true),
            ("", "https://localhost:6443", false),
            ("", "https://127.0.0.1:6443", false),
            ("", "https://[::1]:6443", false),
            ("", "https://sub.localhost", true),
            ("*", "https://10.0.0.1", false),
            ("10.0.0.0/8", "https://10.0.0.1:6443", false),
            ("10.0.0.0/8", "https://11.0.0.1:6443", true),
            ("10.0.0.1", "https://10.0.0.1:6443", false),
            ("10.0.0.1:6443", "https://10.0.0.1:6443", false),
            ("10.0.0.1:443", "https://10.0.0.1", false),
            ("10.0.0.1:443", "https://10.0.0.1:6443", true),
            ("fd00::/8", "https://[fd00::1]:6443", false),
            ("fd00::1", "https://[fd00::1]:6443", false),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", false),
            ("[fd00::1]:443", "https://[fd00::1]:6443", true),
            ("10.0.0.1:", "https://10.0.0.1:6443", false),
            ("[fd00::1]:", "https://[fd00::1]:6443", false),
            ("example.org:", "https://api.example.org:6443", false),
            (":", "https://example.org", true),
            (":443", "https://example.org", true),
            ("example.org", "https://example.org", false),
            ("example.org", "https://api.EXAMPLE.org", false),
            ("example.org", "https://badexample.org", true),
            (".example.org", "https://example.org", true),
            (".example.org", "https://api.example.org", false),
            ("*.example.org", "https://api.example.org", false),
            ("*.example.org", "https://example.org", true),
            ("example.org:6443", "https://example.org", true),
            (".svc, 10.96.0.0/12 ,,", "https://10.96.0.1", false),
            ("nonsense/8", "https://10.0.0.1", true),
            ("10.0.0.1", "http://10.0.0.2", true),
        ] {
            assert_eq!(proxied(no_proxy, server), expected, "NO_PROXY={no_proxy} {server}");
        }
    }

    #[test]
    fn the_scheme_of_the_server_chooses_the_variable_and_upper_case_comes_first() {
        let variables = [
            ("HTTPS_PROXY", ""),
            ("https_proxy", "http://low:1"),
            ("HTTP_PROXY", "up:2"),
            ("http_proxy", "x"),
        ];
        let found =
            |server: &str| environment(&variables).proxy_for(&server.parse().unwrap()).unwrap().unwrap();
        assert_eq!((found("https://h").place(), found("https://h").source), ("low:1".into(), "https_proxy"));
        assert_eq!((found("http://h").place(), found("http://h").source), ("up:2".into(), "HTTP_PROXY"));
    }

    #[test]
    fn a_proxy_gets_the_port_of_its_scheme_and_one_that_cannot_be_used_is_named_without_its_password() {
        for (text, expected) in [
            ("http://p", "http://p:80/"),
            ("https://u:pw@p", "https://u:pw@p:443/"),
            ("socks5://p", "socks5://p:1080/"),
            ("HTTP://p:1/path", "http://p:1/"),
            ("http://[fd00::1]", "http://[fd00::1]:80/"),
        ] {
            assert_eq!(of_kubeconfig(text).unwrap().uri.to_string(), expected, "{text}");
        }
        for text in
            ["ftp://user:secret@p", "socks5://user:secret@p", "secret", "http://", "://secret", "http://a b"]
        {
            let unusable = of_kubeconfig(text).unwrap_err();
            assert_eq!(unusable.source, "proxy-url");
            assert!(!unusable.reason.contains("secret"), "{unusable:?}");
        }
        assert_eq!(of_kubeconfig("https://u:pw@p").unwrap().place(), "p:443");
    }
}
