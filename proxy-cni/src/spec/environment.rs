//! Parameters: environment variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{CniError, Code};

/// The longest name that an interface can have (`IFNAMSIZ`, linux/if.h, without the zero).
const INTERFACE_NAME: usize = 15;
/// The longest container id that is taken; runtimes use 64 hexadecimal digits.
const CONTAINER_ID: usize = 255;

/// What the plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Say whether it is connected as it should be.
    Check,
    /// Remove what belongs to no attachment that is valid.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    fn is_of_a_container(self) -> bool {
        matches!(self, Command::Add | Command::Del | Command::Check)
    }
}

/// One interface of one container: what addresses are kept by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_IFNAME`
    pub interface: String,
}

impl Attachment {
    /// Takes names that cannot leave the place where they are written to (specification 1.1.0,
    /// section 2, "Parameters").
    pub fn new(container: &str, interface: &str) -> Result<Self, CniError> {
        container_id(container)?;
        interface_name(interface)?;
        Ok(Attachment { container: container.to_owned(), interface: interface.to_owned() })
    }
}

/// All parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: Command,
    /// Of ADD, DEL and CHECK.
    pub attachment: Option<Attachment>,
    /// `CNI_NETNS`: the network namespace. DEL may do without.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`, as it came.
    pub arguments_text: String,
    /// `CNI_ARGS`
    pub arguments: BTreeMap<String, String>,
    /// `CNI_PATH`: where other plugins are.
    pub path: Vec<PathBuf>,
}

impl Environment {
    /// Reads variables. All that is wrong is told at once.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = given("CNI_COMMAND").unwrap_or_default();
        let Some(command) = Command::parse(&text) else {
            let said = if text.is_empty() {
                "CNI_COMMAND is not set".to_owned()
            } else {
                format!("CNI_COMMAND is {text:?}")
            };
            return Err(wrong(format!(
                "{said}; it must be ADD, DEL, CHECK, GC, STATUS or VERSION: container runtimes start \
                 this program"
            )));
        };
        let mut errors = Vec::new();
        let attachment = if command.is_of_a_container() { attachment(&given, &mut errors) } else { None };
        let netns = given("CNI_NETNS").map(PathBuf::from);
        let arguments_text = given("CNI_ARGS").unwrap_or_default();
        let mut arguments_errors = Vec::new();
        let arguments = arguments(&arguments_text, &mut arguments_errors);
        // For others it means nothing. libcni sets all variables to "dummy" when it asks for
        // versions.
        if matches!(command, Command::Add | Command::Check) {
            match &netns {
                None => errors.push("CNI_NETNS is not set".to_owned()),
                Some(path) if !path.is_absolute() => {
                    errors.push("CNI_NETNS is not an absolute path".to_owned())
                }
                Some(_) => {}
            }
            errors.extend(arguments_errors);
        }
        let path = given("CNI_PATH").unwrap_or_default();
        if !errors.is_empty() {
            return Err(wrong(format!("{}: {}", command.name(), errors.join("; "))));
        }
        let path = std::env::split_paths(&path).filter(|place| !place.as_os_str().is_empty()).collect();
        Ok(Environment { command, attachment, netns, arguments_text, arguments, path })
    }
}

fn attachment(given: &impl Fn(&str) -> Option<String>, errors: &mut Vec<String>) -> Option<Attachment> {
    let mut need = |name: &str, check: fn(&str) -> Result<(), CniError>| match given(name) {
        None => {
            errors.push(format!("{name} is not set"));
            None
        }
        Some(value) => match check(&value) {
            Ok(()) => Some(value),
            Err(error) => {
                errors.push(format!("{name}: {error}"));
                None
            }
        },
    };
    let container = need("CNI_CONTAINERID", container_id);
    let interface = need("CNI_IFNAME", interface_name);
    Some(Attachment { container: container?, interface: interface? })
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`
fn container_id(text: &str) -> Result<(), CniError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !begins || !text.chars().all(is_plain) {
        return Err(wrong(format!(
            "{text:?} is not a container ID: use letters and digits, and after the first character also _ . -"
        )));
    }
    if text.len() > CONTAINER_ID {
        return Err(wrong(format!(
            "a container ID has at most {CONTAINER_ID} characters, and this one has {}",
            text.len()
        )));
    }
    Ok(())
}

fn interface_name(text: &str) -> Result<(), CniError> {
    let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.is_empty() || text.len() > INTERFACE_NAME || matches!(text, "." | "..") || text.contains(is_bad) {
        return Err(wrong(format!(
            "{text:?} is not an interface name: use up to {INTERFACE_NAME} bytes without \"/\", \":\" \
             and white space"
        )));
    }
    Ok(())
}

/// `KEY=VALUE;KEY=VALUE`
fn arguments(text: &str, errors: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut arguments = BTreeMap::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                arguments.insert(key.to_owned(), value.to_owned());
            }
            _ => errors.push(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")),
        }
    }
    arguments
}

fn wrong(message: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, CniError> {
        let of =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Environment::read(of)
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
    ];

    #[test]
    fn what_a_runtime_says_is_read() {
        let mut pairs = ADD.to_vec();
        pairs.extend([
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;X=a=b"),
            ("CNI_PATH", "/opt/cni/bin::/x"),
        ]);
        let environment = read(&pairs).unwrap();
        assert_eq!(environment.command, Command::Add);
        assert_eq!(environment.attachment, Some(Attachment::new("abc-1", "eth0").unwrap()));
        assert_eq!(environment.arguments["K8S_POD_NAME"], "web");
        assert_eq!(environment.arguments["X"], "a=b");
        assert_eq!(environment.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/x")]);
    }

    #[test]
    fn del_does_without_a_namespace_and_gc_without_a_container() {
        assert_eq!(read(&[("CNI_COMMAND", "DEL"), ADD[1], ADD[2]]).unwrap().netns, None);
        assert_eq!(read(&[("CNI_COMMAND", "DEL"), ADD[1], ADD[2], ("CNI_NETNS", "")]).unwrap().netns, None);
        assert_eq!(read(&[("CNI_COMMAND", "GC")]).unwrap().attachment, None);
        assert_eq!(read(&[("CNI_COMMAND", "VERSION")]).unwrap().command, Command::Version);
        // As libcni asks.
        let dummies = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"]
            .map(|name| (name, "dummy"));
        let mut asked = vec![("CNI_COMMAND", "VERSION")];
        asked.extend(dummies);
        assert_eq!(read(&asked).unwrap().command, Command::Version);
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let error =
            read(&[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "../x"), ("CNI_ARGS", "a")]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidEnvironment);
        for part in [
            "CNI_CONTAINERID: \"../x\"",
            "CNI_IFNAME is not set",
            "CNI_NETNS is not set",
            "\"a\" is not KEY=VALUE",
        ] {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        assert!(read(&[]).unwrap_err().to_string().contains("container runtimes start this program"));
        assert!(read(&[("CNI_COMMAND", "add")]).is_err());
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", "-a", ".a", "a/b", "a b", "a\0", "ä", &"a".repeat(256)] {
            assert!(Attachment::new(bad, "eth0").is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\n", "sixteen-letters!"] {
            assert!(Attachment::new("a", bad).is_err(), "{bad:?}");
        }
        assert!(Attachment::new("A0_.-z", "fifteen-letters").is_ok());
    }
}
