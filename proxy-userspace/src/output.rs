//! What commands print. Whoever reads it may have gone, and the disk behind it may be full: that
//! ends no work.

use std::fmt::Display;
use std::io::{self, Write};

/// Prints a line about something that was done, or nothing where that cannot be.
pub fn say(line: impl Display) {
    drop(writeln!(io::stdout(), "{line}"));
}

/// The same to stderr.
pub fn complain(line: impl Display) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// Prints what was asked for. Readers may stop reading when they have seen enough.
pub fn print(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
