//! `sluice status` in namespaces of a test's own: what is there, what cannot be seen, and what the
//! exit code says of it.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
mod daemon;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use daemon::{Daemon, configured, in_netns, shell};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A copy of the program that every user may run, wherever it was built.
fn program(directory: &Path) -> std::path::PathBuf {
    let copy = directory.join("sluice");
    if !copy.exists() {
        let built = env!("CARGO_BIN_EXE_sluice");
        std::fs::hard_link(built, &copy).or_else(|_| std::fs::copy(built, &copy).map(drop)).unwrap();
    }
    copy
}

fn status(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(directory));
    command.arg("status").args(arguments).env("SLUICE_BPFFS", directory.join("bpf/sluice"));
    command
}

/// Exit code and text.
fn told(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

#[test]
fn the_exit_code_of_status_says_whether_there_is_state() {
    in_netns("status-nothing", |directory| {
        let (code, text) = told(status(directory, &[]));
        assert_eq!(code, Some(4), "{text}");
        assert!(text.contains("no state of sluice") && text.contains("daemon: none"), "{text}");
        assert!(text.contains("bpf/sluice"), "{text}");

        let mut daemon = Daemon::start(directory, &configured(directory), &[]);
        let (code, text) = told(status(directory, &[]));
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&format!("daemon: process {}", daemon.child.id())), "{text}");
        assert!(text.contains("nftables: table inet sluice"), "{text}");

        kill(Pid::from_raw(daemon.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(daemon.exit_code(), Some(0));
        let (code, text) = told(status(directory, &[]));
        assert_eq!(code, Some(0), "{text}");
        shell("nft 'add table inet sluice { flags dormant; }'", "");
        let (code, text) = told(status(directory, &[]));
        assert_eq!(code, Some(6), "{text}");
        assert!(text.contains("another program"), "{text}");
    });
}

#[test]
fn without_rights_it_says_so() {
    in_netns("status-rights", |directory| {
        let as_nobody = || {
            let mut command = status(directory, &[]);
            command.uid(65534).gid(65534);
            told(command)
        };
        for has_table in [false, true] {
            if has_table {
                shell("nft -f -", "table inet sluice { chain a { }; }");
            }
            let (code, text) = as_nobody();
            assert_eq!(code, Some(3), "{text}");
            assert!(text.contains("CAP_NET_ADMIN") && !text.contains("no state of sluice"), "{text}");
        }
        // What needs no right is shown all the same.
        shell(
            "ip link add sluice-vxlan0 type vxlan id 7 dstport 4789 nolearning && ip link set sluice-vxlan0 up",
            "",
        );
        let (code, text) = as_nobody();
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("sluice-vxlan0: up, VNI 7"), "{text}");
    });
}

#[test]
fn the_pod_network_is_shown_by_itself() {
    in_netns("status-pods", |directory| {
        shell(
            "ip link add sluice-vxlan0 type vxlan id 7 dstport 4790 nolearning && ip link set sluice-vxlan0 mtu 1400 up && \
             ip route add 10.9.1.0/24 dev sluice-vxlan0 proto 92 via 10.9.1.0 onlink && \
             ip route add 10.9.2.0/24 dev sluice-vxlan0",
            "",
        );
        let (code, text) = told(status(directory, &[]));
        assert_eq!(code, Some(0), "{text}");
        for words in ["1 routes", "VNI 7, UDP port 4790, MTU 1400", "no table inet sluice-pods"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let (code, text) = told(status(directory, &["-o", "json"]));
        assert_eq!(code, Some(0), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["kind"], "Status");
        assert_eq!(value["podNetwork"]["routes"], 1);
        assert_eq!(value["podNetwork"]["table"], false);
        assert_eq!(value["daemon"]["atWork"], false);
    });
}
