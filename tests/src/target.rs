//! Who talks to what: the `from` and `to` of a case.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A transport (or ICMP echo).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP, one-to-one style
    Sctp,
    /// ICMP or ICMPv6 echo
    Icmp,
}

impl Proto {
    /// The name as it is written in a case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

impl FromStr for Proto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            "icmp" => Ok(Self::Icmp),
            other => Err(format!("unknown protocol {other:?} (tcp, udp, sctp, icmp)")),
        }
    }
}

/// A destination: `tcp://10.96.0.10:80`, `udp://[fd00:10:96::a]:53`, `icmp://10.96.0.10`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The protocol spoken
    pub proto: Proto,
    /// The address
    pub addr: IpAddr,
    /// The port; 0 for ICMP
    pub port: u16,
}

impl Target {
    /// Address and port.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.addr, self.port)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (proto, rest) =
            text.split_once("://").ok_or_else(|| format!("{text:?} is not PROTO://ADDRESS:PORT"))?;
        let proto: Proto = proto.parse()?;
        if proto == Proto::Icmp {
            let bare = rest.trim_start_matches('[').trim_end_matches(']');
            let addr = bare.parse().map_err(|_| format!("{bare:?} is not an IP address"))?;
            return Ok(Self { proto, addr, port: 0 });
        }
        let socket: SocketAddr =
            rest.parse().map_err(|_| format!("{rest:?} is not ADDRESS:PORT (IPv6 in brackets)"))?;
        Ok(Self { proto, addr: socket.ip(), port: socket.port() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.proto, self.addr) {
            (Proto::Icmp, IpAddr::V6(addr)) => write!(f, "icmp://[{addr}]"),
            (Proto::Icmp, IpAddr::V4(addr)) => write!(f, "icmp://{addr}"),
            (proto, _) => write!(f, "{}://{}", proto.name(), self.socket()),
        }
    }
}

/// A place in the lab that opens connections or runs commands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// `pod/NAME`
    Pod(String),
    /// `host/NODE`
    Host(String),
    /// `client`, outside the cluster
    Client,
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("pod", name)) if !name.is_empty() => Ok(Self::Pod(name.to_owned())),
            Some(("host", name)) if !name.is_empty() => Ok(Self::Host(name.to_owned())),
            None if text == "client" => Ok(Self::Client),
            _ => Err(format!("{text:?} is not pod/NAME, host/NODE or client")),
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Host(name) => write!(f, "host/{name}"),
            Self::Client => f.write_str("client"),
        }
    }
}

/// Something an echo server listens on: `tcp/8080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The protocol (not ICMP)
    pub proto: Proto,
    /// The port
    pub port: u16,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (proto, port) = text.split_once('/').ok_or_else(|| format!("{text:?} is not PROTO/PORT"))?;
        let proto: Proto = proto.parse()?;
        if proto == Proto::Icmp {
            return Err("nothing listens on icmp".to_owned());
        }
        let port = port.parse().ok().filter(|port| *port != 0);
        Ok(Self { proto, port: port.ok_or_else(|| format!("{text:?} has no valid port"))? })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.proto.name(), self.port)
    }
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
as_text!(Target, From, Listen);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip() {
        for text in
            ["tcp://10.96.0.10:80", "udp://[fd00:10:96::a]:53", "icmp://10.96.0.10", "icmp://[fd00::1]"]
        {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["10.96.0.10:80", "http://10.96.0.10:80", "tcp://web:80", "tcp://10.96.0.10"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn places_and_listeners() {
        assert_eq!("pod/a".parse::<From>(), Ok(From::Pod("a".into())));
        assert_eq!("client".parse::<From>(), Ok(From::Client));
        assert!("node-a".parse::<From>().is_err());
        assert!("pod/".parse::<From>().is_err());
        assert_eq!("sctp/80".parse::<Listen>(), Ok(Listen { proto: Proto::Sctp, port: 80 }));
        assert!("tcp/0".parse::<Listen>().is_err());
        assert!("icmp/1".parse::<Listen>().is_err());
    }
}
