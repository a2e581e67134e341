//! What goes wrong between us and the kernel, by any protocol of netlink.

use std::fmt;
use std::io;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call failed.
    #[error("{operation}: {source}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{operation}: kernel says {source}{}", .detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// What was asked.
        operation: String,
        /// The error number.
        #[source]
        source: io::Error,
        /// The kernel's own words (extended acknowledgement), if any.
        detail: Option<String>,
    },
    /// The answer could not be read.
    #[error("{operation}: truncated or malformed netlink answer")]
    Malformed {
        /// What was asked.
        operation: &'static str,
    },
    /// A message of the answer could not be read.
    #[error("{operation}: cannot read the kernel's answer: {reason}")]
    Unreadable {
        /// What was asked.
        operation: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel's answer got lost because the receive buffer was full.
    #[error("{operation}: the kernel's answer was lost (ENOBUFS)")]
    Lost {
        /// What was asked.
        operation: &'static str,
    },
}

impl NetlinkError {
    /// The error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Socket { source, .. } | NetlinkError::Refused { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

/// A request that the kernel refused.
#[derive(Debug)]
pub struct Refusal<T> {
    /// What was to be done.
    pub item: T,
    /// The kernel's answer.
    pub error: NetlinkError,
}

/// The requests that the kernel refused, in the order in which they were sent; at least one.
#[derive(Debug)]
pub struct Refusals<T>(pub Vec<Refusal<T>>);

impl<T> fmt::Display for Refusals<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.0.split_first() else { return f.write_str("nothing was refused") };
        first.error.fmt(f)?;
        match others.len() {
            0 => Ok(()),
            count => write!(f, ", and {count} more were refused"),
        }
    }
}

impl<T: fmt::Debug> std::error::Error for Refusals<T> {}

/// Why not all of a batch was done.
#[derive(Debug, thiserror::Error)]
pub enum BatchError<T: fmt::Debug> {
    /// Some requests were refused. The others were done, also those behind them.
    #[error(transparent)]
    Refused(#[from] Refusals<T>),
    /// The conversation failed: requests may have been done or not.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Asks for a list again, up to so many times in all, while others change meanwhile what is listed
/// (EINTR, by NLM_F_DUMP_INTR).
pub fn uninterrupted<T>(
    attempts: u32,
    mut read: impl FnMut() -> Result<T, NetlinkError>,
) -> Result<T, NetlinkError> {
    for _ in 1..attempts {
        match read() {
            Err(error) if error.errno() == Some(libc::EINTR) => {}
            other => return other,
        }
    }
    read()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interruptions_are_repeated_and_not_for_ever() {
        let failing = |number: i32| {
            let mut asked = 0;
            let answer = uninterrupted(3, || {
                asked += 1;
                let source = io::Error::from_raw_os_error(number);
                Err::<(), _>(NetlinkError::Socket { operation: "list", source })
            });
            (asked, answer.err().and_then(|error| error.errno()))
        };
        assert_eq!(failing(libc::EINTR), (3, Some(libc::EINTR)));
        assert_eq!(failing(libc::EPERM), (1, Some(libc::EPERM)));
    }
}
