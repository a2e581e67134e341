//! Commands as scripts for a shell, so that every argument arrives as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A command for a VM.
#[derive(Debug, Clone)]
pub struct Command {
    argv: Vec<String>,
    directory: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Command {
    /// A program and its arguments. It runs in `/`, with the PATH of a root shell.
    pub fn new<T: Into<String>>(argv: impl IntoIterator<Item = T>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            directory: "/".into(),
            environment: BTreeMap::new(),
        }
    }

    /// A line for a shell.
    #[must_use]
    pub fn shell(line: &str) -> Self {
        Self::new(["/bin/sh", "-c", line])
    }

    /// The directory that it runs in.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.directory);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The script that becomes the command.
    pub(super) fn script(&self) -> String {
        let mut script = format!("cd {} || exit 126\n", quoted(&self.directory.to_string_lossy()));
        for (name, value) in &self.environment {
            script += &format!("export {name}={}\n", quoted(value));
        }
        let argv: Vec<String> = self.argv.iter().map(|argument| quoted(argument)).collect();
        script + "exec " + &argv.join(" ") + "\n"
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.argv.join(" "))
    }
}

/// A text as one word of a shell.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_variables_and_directory_arrive_as_they_are() {
        let odd = "a 'b' \"c\" $HOME `d` \\ * \n#;";
        let print = "pwd; printf '%s|' \"$ODD\" \"$@\"; exit 7";
        let command = Command::new(["/bin/sh", "-c", print, "sh", odd, "", "--"]);
        let command = command.directory(Path::new("/usr")).variable("ODD", odd);
        let output = std::process::Command::new("/bin/sh").arg("-c").arg(command.script()).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("/usr\n{odd}|{odd}||--|"));
        assert_eq!(output.status.code(), Some(7));
    }

    #[test]
    fn a_missing_directory_or_program_has_the_status_of_a_shell() {
        let status = |command: Command| {
            let run = std::process::Command::new("/bin/sh").arg("-c").arg(command.script()).output();
            run.unwrap().status.code()
        };
        assert_eq!(status(Command::new(["true"]).directory(Path::new("/no-such"))), Some(126));
        assert_eq!(status(Command::new(["/no-such"])), Some(127));
    }
}
