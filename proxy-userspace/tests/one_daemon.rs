//! One daemon on a node: what a second one, a cleanup, a signal and a reader that has gone do to
//! it. Each test has a network namespace of its own.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
mod daemon;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use daemon::{CONFIG, Daemon, configured, in_netns, shell};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
#[cfg(feature = "ebpf")]
use sluice_tests::lab::cgroup;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

fn signal(daemon: &Daemon, which: Signal) {
    kill(Pid::from_raw(daemon.child.id().try_into().unwrap()), which).unwrap();
}

/// A configuration of another mode.
fn in_mode(directory: &Path, mode: &str, more: &str) -> PathBuf {
    let path = directory.join(format!("{mode}.conf"));
    std::fs::write(&path, CONFIG.replace("mode: nftables", &format!("mode: {mode}")) + more).unwrap();
    path
}

/// No cleanup of a test may find pins of the machine.
fn sluice(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(SLUICE);
    command.args(arguments).env("SLUICE_BPFFS", directory.join("bpf/sluice")).env_remove("RUST_LOG");
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a test with a mount namespace too, with a bpf filesystem, a cgroup, and directories for
/// runtimes that are its own. Without a cgroup2 filesystem: a skip that says so.
#[cfg(feature = "ebpf")]
fn with_ebpf(name: &'static str, test: impl FnOnce(&Path, &Path) + Send + 'static) {
    let Some(cgroups) = cgroup::root() else {
        sluice_skips::skip("cgroup2", "no such filesystem can be written");
        return;
    };
    let cgroup = cgroups.join(format!("sluice-{name}-{}", std::process::id()));
    std::fs::create_dir(&cgroup).unwrap();
    let _removed_at_last = Cgroup(cgroup.clone());
    in_mounts(name, move |directory| {
        let bpf = directory.join("bpf");
        std::fs::create_dir(&bpf).unwrap();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        test(directory, &cgroup);
        nix::mount::umount2(&bpf, nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

#[cfg(feature = "ebpf")]
struct Cgroup(PathBuf);

#[cfg(feature = "ebpf")]
impl Drop for Cgroup {
    fn drop(&mut self) {
        cgroup::remove(&self.0);
    }
}

fn in_mounts(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    in_netns(name, move |directory| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        test(directory);
    });
}

#[cfg(feature = "ebpf")]
fn ebpf_config(directory: &Path, cgroup: &Path) -> PathBuf {
    let (bpffs, cgroup) = (directory.join("bpf/sluice"), cgroup.display());
    let more =
        format!("sluice: {{ebpf: {{bpffs: {}, cgroupRoot: {cgroup}, flows: 1024}}}}\n", bpffs.display());
    in_mode(directory, "ebpf", &more)
}

#[test]
fn a_second_daemon_of_any_mode_names_the_first_and_ends() {
    in_netns("second", |directory| {
        let mut first = Daemon::start(directory, &configured(directory), &[]);
        let begun = Instant::now();
        let config = |mode| in_mode(directory, mode, "clusterCIDR: 10.9.0.0/16\n");
        let mut others = ["nftables", "ipvs", "ebpf"].map(|mode| {
            (mode, Daemon::spawn(directory, &format!("log-{mode}"), &config(mode), &["--healthz-port=0"]))
        });
        for (mode, other) in &mut others {
            assert_eq!(
                other.exit_code(),
                Some(3),
                "{mode}: {}",
                std::fs::read_to_string(&other.log).unwrap()
            );
            let log = std::fs::read_to_string(&other.log).unwrap();
            assert!(log.contains(&format!("process {}", first.child.id())), "{mode}: {log}");
        }
        let waited = begun.elapsed();
        assert!((9..15).contains(&waited.as_secs()), "{waited:?}");
        assert!(first.child.try_wait().unwrap().is_none());
        let log = std::fs::read_to_string(&first.log).unwrap();
        assert!(!log.contains("another program"), "{log}");
    });
}

#[test]
fn a_successor_begins_when_its_predecessor_has_ended_in_whatever_way() {
    in_netns("successor", |directory| {
        let config = configured(directory);
        let first = Daemon::start(directory, &config, &[]);
        let mut second = Daemon::spawn(directory, "log2", &config, &["--healthz-port=0", "--metrics-port=0"]);
        second.wait_for(&format!("process {}", first.child.id()));
        signal(&first, Signal::SIGTERM);
        second.wait_for("ruleset in place");
        signal(&second, Signal::SIGKILL);
        let begun = Instant::now();
        let mut third = Daemon::spawn(directory, "log3", &config, &[]);
        third.wait_for("ruleset in place");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn cleanup_beside_a_daemon_removes_nothing_unless_forced() {
    in_mounts("beside", |directory| {
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::create_dir_all("/run/sluice").unwrap();
        std::fs::write("/run/sluice/pod-network.json", "{}").unwrap();
        let mut daemon = Daemon::start(directory, &configured(directory), &[]);
        let ruleset = || shell("nft -a list ruleset", "");
        let before = ruleset();
        for arguments in [&["cleanup"][..], &["cleanup", "--kube-proxy"], &["run", "--cleanup"]] {
            let output = sluice(directory, arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(3), "{arguments:?}: {output:?}");
            assert!(text(&output).contains(&format!("process {}", daemon.child.id())), "{output:?}");
            assert!(!text(&output).contains("removed table"), "{output:?}");
        }
        assert_eq!(ruleset(), before);
        assert!(Path::new("/run/sluice/pod-network.json").exists());
        let output = sluice(directory, &["cleanup", "--force"]).output().unwrap();
        assert!(output.status.success() && text(&output).contains("removed table inet sluice"), "{output:?}");
        daemon.wait_for("another program changed");
        assert!(daemon.child.try_wait().unwrap().is_none());
        signal(&daemon, Signal::SIGTERM);
        assert_eq!(daemon.exit_code(), Some(0));
        let output = sluice(directory, &["cleanup"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(shell("nft list tables", ""), "");
    });
}

#[test]
fn after_a_cleanup_the_plugin_starts_no_pods_and_what_is_left_is_named() {
    in_mounts("status", |directory| {
        for (at, make) in [("/run", "/run/sluice"), ("/etc", "/etc/cni/net.d")] {
            mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            std::fs::create_dir_all(make).unwrap();
        }
        let elsewhere = directory.join("run");
        std::fs::create_dir(&elsewhere).unwrap();
        let list = serde_json::json!({
            "cniVersion": "1.1.0", "name": "sluice",
            "plugins": [{"type": "sluice-cni", "runDir": elsewhere, "dataDir": directory.join("data")}],
        });
        let conflist = "/etc/cni/net.d/10-sluice.conflist";
        std::fs::write(conflist, list.to_string()).unwrap();
        let node = r#"{"podCidrs": ["10.244.1.0/24"], "mtu": 1450}"#;
        let files = [PathBuf::from("/run/sluice/pod-network.json"), elsewhere.join("pod-network.json")];
        for file in &files {
            std::fs::write(file, node).unwrap();
        }
        let config = serde_json::json!({
            "cniVersion": "1.1.0", "name": "sluice", "type": "sluice-cni", "runDir": elsewhere,
            "dataDir": directory.join("data"),
        });
        let status = || {
            let plugin = Path::new(SLUICE).with_file_name("sluice-cni");
            if !plugin.exists() {
                sluice_skips::skip("sluice-cni", "it is not beside sluice, so its STATUS is not asked for");
                return None;
            }
            let input = directory.join("input");
            std::fs::write(&input, config.to_string()).unwrap();
            let mut command = Command::new(plugin);
            command.env("CNI_COMMAND", "STATUS").env("CNI_PATH", "/opt/cni/bin");
            Some(command.stdin(File::open(input).unwrap()).output().unwrap())
        };
        assert!(status().is_none_or(|output| output.status.success()), "{:?}", status());
        let output = sluice(directory, &["cleanup"]).output().unwrap();
        assert!(output.status.success() && text(&output).contains(conflist), "{output:?}");
        assert!(Path::new(conflist).exists());
        for file in &files {
            assert!(!file.exists(), "{file:?} is left: {output:?}");
        }
        let is_not_available =
            |output: &Output| text(output).contains("\"code\": 50") || text(output).contains("\"code\":50");
        assert!(status().is_none_or(|output| is_not_available(&output)), "{:?}", status());
    });
}

#[test]
fn commands_complete_although_their_output_cannot_be_written() {
    in_netns("stdout", |directory| {
        let table = "table inet sluice { }; table inet sluice-pods { }";
        // The reader of a pipe has gone; the disk is full; there is no stdout.
        let broken = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            Stdio::from(writer)
        };
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let closed = r#"exec "$0" "$@" >&-"#;
        let commands: [&[&str]; 7] = [
            &["cleanup"],
            &["cleanup", "--kube-proxy"],
            &["status"],
            &["--help"],
            &["run", "--help"],
            &["--version"],
            &["run", "--version"],
        ];
        for arguments in commands {
            for how in ["broken", "full", "closed", "all broken"] {
                shell("nft -f -", table);
                let mut command = sluice(directory, arguments);
                if how == "closed" {
                    let program = command.get_program().to_owned();
                    command = Command::new("sh");
                    command.args(["-c", closed]).arg(program).args(arguments);
                    command.env("SLUICE_BPFFS", directory.join("bpf/sluice"));
                }
                let stdout = if how == "full" { full() } else { broken() };
                command.stdout(stdout).stderr(if how == "all broken" { broken() } else { Stdio::piped() });
                let output = command.spawn().unwrap().wait_with_output().unwrap();
                let told = text(&output);
                assert!(!told.contains("panicked"), "{arguments:?} {how}: {told}");
                let code = output.status.code();
                let may_fail = how == "full" && arguments[0] != "cleanup";
                // The tables are empty, which is not as sluice writes them.
                let right = if arguments[0] == "status" { 6 } else { 0 };
                assert!(
                    code == Some(right) || may_fail && code == Some(1),
                    "{arguments:?} {how}: {output:?}"
                );
                if arguments[0] == "cleanup" {
                    assert_eq!(shell("nft list tables", ""), "", "{arguments:?} {how}");
                }
            }
        }
    });
}

#[test]
fn a_daemon_keeps_running_when_its_log_cannot_be_written() {
    in_netns("log", |directory| {
        let config = configured(directory);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = sluice(directory, &["run", "--hostname-override=n1", "--config"]);
        command.arg(config).arg("--manifests").arg(directory.join("manifests")).stderr(Stdio::from(writer));
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !shell("nft list tables", "").contains("table inet sluice") {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(50));
        }
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

/// Waits until a process is the daemon's own: before that the kernel and the loader have it, and no
/// program could answer.
fn wait_for_main(daemon: &Daemon) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let catches_term = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
        mask & 1 << (Signal::SIGTERM as u64 - 1) != 0
    };
    while !catches_term() {
        assert!(std::time::Instant::now() < end, "it never catches SIGTERM");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends a daemon so many milliseconds after its start.
fn ended_after(daemon: &mut Daemon, milliseconds: u64) {
    wait_for_main(daemon);
    std::thread::sleep(Duration::from_millis(milliseconds));
    signal(daemon, Signal::SIGTERM);
    let status = daemon.child.wait().unwrap();
    let log = std::fs::read_to_string(&daemon.log).unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "after {milliseconds} ms: {log}");
}

#[test]
fn a_daemon_ends_cleanly_on_a_signal_during_its_start() {
    in_netns("early", |directory| {
        let config = configured(directory);
        for milliseconds in [0, 5, 10, 20, 40, 80, 120, 160, 240, 500] {
            ended_after(&mut Daemon::spawn(directory, "log", &config, &[]), milliseconds);
        }
        let _first = Daemon::start(directory, &config, &[]);
        ended_after(&mut Daemon::spawn(directory, "log2", &config, &["--healthz-port=0"]), 500);
    });
}

#[cfg(feature = "ebpf")]
#[test]
fn a_daemon_ends_cleanly_on_a_signal_while_it_loads_programs() {
    with_ebpf("loading", |directory, cgroup| {
        let config = ebpf_config(directory, cgroup);
        for milliseconds in [0, 20, 50, 100, 200, 400, 800] {
            ended_after(&mut Daemon::spawn(directory, "log", &config, &[]), milliseconds);
        }
    });
}

/// A Service with an endpoint that listens, and the Node.
#[cfg(feature = "ebpf")]
fn a_service(directory: &Path) -> std::net::TcpListener {
    let objects = "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: \
                   192.0.2.1}]}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: \
                   {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80}]}}\n---\n{apiVersion: \
                   discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: web-a, namespace: default, \
                   labels: {kubernetes.io/service-name: web}}, ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.1]}]}\n";
    std::fs::write(directory.join("manifests/all.yaml"), objects).unwrap();
    shell("ip address add 10.0.0.1/32 dev lo", "");
    std::net::TcpListener::bind("10.0.0.1:8080").unwrap()
}

/// Whether a process of the cgroup reaches the Service. There is no route to it but through the
/// programs.
#[cfg(feature = "ebpf")]
fn is_served(cgroup: &Path) -> bool {
    let line = "echo $$ > \"$0/cgroup.procs\" && exec 3<>/dev/tcp/10.96.0.1/80";
    Command::new("bash").args(["-c", line]).arg(cgroup).stderr(Stdio::null()).status().unwrap().success()
}

#[cfg(feature = "ebpf")]
fn health(page: &str) -> String {
    use std::io::{Read, Write};
    let mut answer = String::new();
    let mut connection = std::net::TcpStream::connect("127.0.0.1:10256").unwrap();
    write!(connection, "GET {page} HTTP/1.0\r\n\r\n").unwrap();
    connection.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

/// Waits until it is so; returns after how long.
#[cfg(feature = "ebpf")]
fn until(what: &str, log: &Path, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        let log = || std::fs::read_to_string(log).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10), "not {what}: {}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
    begun.elapsed()
}

#[cfg(feature = "ebpf")]
#[test]
fn pins_that_are_removed_under_a_daemon_come_back_or_health_is_red() {
    with_ebpf("pins", |directory, cgroup| {
        let (bpf, pins) = (directory.join("bpf"), directory.join("bpf/sluice"));
        let _endpoint = a_service(directory);
        let mut daemon = Daemon::start(directory, &ebpf_config(directory, cgroup), &[]);
        let log = daemon.log.clone();
        until("served", &log, || is_served(cgroup));
        until("green", &log, || health("/healthz") == "200");
        let remove = || {
            // The daemon may still be at work in it, so that a file goes under the hands of whoever
            // removes it.
            until("removed", &log, || std::fs::remove_dir_all(&pins).is_ok());
            until("out of service", &log, || !is_served(cgroup));
        };
        for by_whom in ["somebody", "cleanup"] {
            if by_whom == "somebody" {
                remove();
            } else {
                let output = sluice(directory, &["cleanup", "--force"]).output().unwrap();
                assert!(output.status.success(), "{output:?}");
            }
            let took = until("served again", &log, || is_served(cgroup));
            println!("served {took:?} after the removal by {by_whom}");
            until("green", &log, || health("/healthz") == "200");
        }
        let told = std::fs::read_to_string(&log).unwrap();
        assert!(told.contains("another program removed pins") && !told.contains("ERROR"), "{told}");

        // Nothing can be made again.
        remove();
        let remount = |flags| {
            let none: Option<&str> = None;
            mount(none, &bpf, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, none).unwrap();
        };
        remount(MsFlags::MS_RDONLY);
        until("red", &log, || health("/healthz") == "503");
        assert_eq!(health("/livez"), "200");
        let red = std::fs::read_to_string(&log).unwrap();
        assert!(red.contains("cannot find or repair foreign changes"), "{red}");
        std::thread::sleep(Duration::from_secs(2));
        let red = std::fs::read_to_string(&log).unwrap();
        assert!(!red.contains("old rules stay in force"), "{red}");
        assert_eq!(red.matches("ruleset in place").count(), 1, "{red}");
        remount(MsFlags::empty());
        until("served again", &log, || is_served(cgroup));
        until("green", &log, || health("/healthz") == "200");

        // The pins hold what is in force, and the successor goes on with it.
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        assert!(is_served(cgroup));
        let _next = Daemon::start(directory, &ebpf_config(directory, cgroup), &[]);
        assert!(is_served(cgroup));
    });
}
