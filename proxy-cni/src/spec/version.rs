//! Versions of the specification.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::error::{CniError, Code};

/// A version that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1: the same, told more clearly.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: addresses without a version of their own.
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl Version {
    /// All, the newest last.
    pub const ALL: [Version; 5] =
        [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    /// The newest.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As the specification writes it.
    pub fn text(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Reads what a configuration says. One without a version is of 0.1.0 (specification 0.2.0),
    /// which nobody speaks any more.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let found = Version::ALL.into_iter().find(|version| version.text() == text);
        found.ok_or_else(|| {
            let said =
                if text.is_empty() { "no cniVersion".to_owned() } else { format!("cniVersion {text:?}") };
            CniError::new(
                Code::IncompatibleVersion,
                format!("{said} is not supported; supported are {}", Version::list().join(", ")),
            )
        })
    }

    /// The texts of all.
    pub fn list() -> Vec<&'static str> {
        Version::ALL.map(Version::text).to_vec()
    }

    /// The answer to VERSION.
    pub fn answer(asked: Option<Version>) -> Value {
        let version = asked.unwrap_or(Version::NEWEST);
        json!({"cniVersion": version.text(), "supportedVersions": Version::list()})
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written_and_no_others() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.text()), Ok(version));
        }
        for other in ["", "0.2.0", "1.1", "1.1.0 ", "2.0.0"] {
            let error = Version::parse(other).unwrap_err();
            assert_eq!(error.code(), Code::IncompatibleVersion);
            assert!(error.to_string().contains("supported are 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{error}");
        }
    }
}
