//! The protocol between container runtime and plugin (CNI specification 1.1.0, and the versions
//! before).
//!
//! A runtime calls the plugin with a configuration on stdin and parameters in environment
//! variables; the plugin answers on stdout with a result or an error object, in the version of the
//! configuration.

mod config;
mod environment;
mod error;
mod fields;
pub mod go_json;
mod result;
mod version;

pub use config::{
    BRIDGE, Capabilities, DATA, Document, Ipam, Mode, NetConf, PortMapping, RUN, Range, STDIN_LIMIT,
    is_network_name, previous_result,
};
pub use environment::{Attachment, Command, Environment};
pub use error::{CniError, Code};
pub use result::{Dns, Interface, Ip, Outcome, Route};
pub use version::Version;
