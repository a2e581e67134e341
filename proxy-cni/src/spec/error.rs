//! Errors as the runtime reads them.

use serde_json::{Value, json};

use super::version::Version;

/// The kinds of errors (specification 1.1.0, section 5, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version of the configuration is not supported.
    IncompatibleVersion,
    /// A field of the configuration is not supported.
    UnsupportedField,
    /// The container is unknown, or does not exist. Nothing has to be cleaned up.
    UnknownContainer,
    /// A required environment variable is missing or wrong.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// The input cannot be decoded.
    Decoding,
    /// The configuration is wrong.
    InvalidConfig,
    /// The runtime should try again later.
    TryAgainLater,
    /// The plugin cannot serve ADD (STATUS only).
    NotAvailable,
    /// The plugin cannot serve ADD, and existing containers may have limited connectivity (STATUS only).
    LimitedConnectivity,
    /// No address is free.
    NoAddress,
    /// The kernel refused.
    Kernel,
    /// CHECK found a difference.
    Differs,
}

impl Code {
    /// Its number.
    pub fn number(self) -> u32 {
        match self {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decoding => 6,
            Code::InvalidConfig => 7,
            Code::TryAgainLater => 11,
            Code::NotAvailable => 50,
            Code::LimitedConnectivity => 51,
            // From 100 on numbers are the plugin's own.
            Code::NoAddress => 100,
            Code::Kernel => 101,
            Code::Differs => 102,
        }
    }
}

/// An error with what a person needs to know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    code: Code,
    message: String,
    details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        CniError { code, message: message.into(), details: String::new() }
    }

    /// With more than one line's worth.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        CniError { details: details.into(), ..self }
    }

    /// Its kind.
    pub fn code(&self) -> Code {
        self.code
    }

    /// As the runtime reads it.
    pub fn object(&self, version: Version) -> Value {
        let mut object = json!({
            "cniVersion": version.text(),
            "code": self.code.number(),
            "msg": self.message,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }
}
