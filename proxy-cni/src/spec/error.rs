//! Errors as the runtime reads them.

use serde_json::{Value, json};

use super::version::Version;

/// The kinds of errors (specification 1.1.0, section 5, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version of the configuration is not supported.
    IncompatibleVersion,
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
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decoding => 6,
            Code::InvalidConfig => 7,
            Code::TryAgainLater => 11,
            Code::NotAvailable => 50,
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
}

impl CniError {
    /// An error.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        CniError { code, message: message.into() }
    }

    /// Its kind.
    pub fn code(&self) -> Code {
        self.code
    }

    /// As the runtime reads it.
    pub fn object(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.text(),
            "code": self.code.number(),
            "msg": self.message,
        })
    }
}
