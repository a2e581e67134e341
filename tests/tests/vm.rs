//! VMs, with real kernels: what commands inside return, what happens to those that do not end, and
//! the wire between two.
//!
//! `SLUICE_VM_KERNEL` names the directory of a kernel that `cargo xtask vm kernels` has made;
//! without it they are skipped.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_tests::vm::switch::Switch;
use sluice_tests::vm::{Command, Finished, Kernel, Output, Vm, VmOptions};

const LIMIT: Duration = Duration::from_secs(60);

fn kernel() -> Option<Kernel> {
    let Some(directory) = std::env::var_os("SLUICE_VM_KERNEL") else {
        sluice_skips::skip("vm-kernel", "SLUICE_VM_KERNEL names none");
        return None;
    };
    Some(Kernel::open(Path::new(&directory)).unwrap())
}

/// A directory of a test.
fn directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("sluice-lab-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn commands_return_what_they_did_and_end_in_time() {
    let Some(kernel) = kernel() else { return };
    let output = directory("vm-output");
    let options = VmOptions { output: Some(output.clone()), ..VmOptions::default() };
    let mut vm = Vm::start(&kernel, &options).unwrap();
    let release = vm.run_ok(&Command::new(["uname", "-r"]), LIMIT).unwrap();
    assert_eq!(release.trim(), kernel.release);

    let finished = vm.run(&Command::shell("echo out; echo err >&2; exit 42"), LIMIT).unwrap();
    let expected = Finished { status: 42, stdout: "out\n".to_owned(), stderr: "err\n".to_owned() };
    assert_eq!(finished, expected);
    assert_eq!(vm.run(&Command::shell("kill -TERM $$"), LIMIT).unwrap().status, 128 + 15);
    assert_eq!(vm.run(&Command::new(["/no-such-program"]), LIMIT).unwrap().status, 127);
    let odd = ["printf", "%s|", "a 'b' \"$HOME\"\n", "", "*"];
    assert_eq!(vm.run_ok(&Command::new(odd), LIMIT).unwrap(), "a 'b' \"$HOME\"\n||*|");

    // One that does not end is killed with what it started, and others run beside and after it.
    let mut endless = vm.spawn(&Command::shell("echo begun; sleep 1000 & sleep 1000")).unwrap();
    let mut news = Vec::new();
    let ended = vm.wait(&mut endless, Duration::from_secs(2), |output, bytes| {
        assert_eq!(output, Output::Stdout);
        news.extend_from_slice(bytes);
    });
    assert_eq!((ended.unwrap(), news.as_slice()), (None, b"begun\n".as_slice()));
    assert_eq!(vm.wait(&mut endless, LIMIT, |_, _| {}).unwrap(), Some(128 + 9));
    let error = vm.run(&Command::new(["sleep", "1000"]), Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("did not end within 1s"), "{error:#}");
    // They end soon, not at once; nothing here may be called sleep.
    let gone =
        "for i in $(seq 100); do pgrep -x sleep || exit 0; timeout 0.2 tail -f /dev/null; done; exit 1";
    assert_eq!(vm.run(&Command::shell(gone), LIMIT).unwrap().status, 0);

    // What the host lacks is loaded when it is asked for.
    let line = "ip link add dummy0 type dummy && ip link add wg0 type wireguard && modprobe ip_vs && \
                test -e /proc/net/ip_vs && touch /here /tmp/here && echo kept >/out/file";
    vm.run_ok(&Command::shell(line), LIMIT).unwrap();
    assert_eq!(std::fs::read_to_string(output.join("file")).unwrap(), "kept\n");
    assert!(!Path::new("/here").exists(), "the VM has written to this machine's root");

    let error = vm.run(&Command::shell("echo c >/proc/sysrq-trigger; sleep 60"), LIMIT).unwrap_err();
    assert!(format!("{error:#}").contains("its kernel panicked"), "{error:#}");
    std::fs::remove_dir_all(output).unwrap();
}

#[test]
fn vms_on_a_switch_reach_each_other() {
    let Some(kernel) = kernel() else { return };
    let directory = directory("vm-wire");
    let wire = directory.join("wire.pcap");
    let switch = Switch::start(2, Some(&wire)).unwrap();
    let options: Vec<VmOptions> = (1..)
        .zip(switch.ports())
        .map(|(number, port)| VmOptions {
            name: format!("node-{number}"),
            memory: 512,
            cpus: 1,
            keep: kernel.busybox().parent().map(Path::to_owned).into_iter().collect(),
            ports: vec![port.clone()],
            ..VmOptions::default()
        })
        .collect();
    let mut vms = Vm::start_all(&kernel, &options).unwrap();
    for (number, vm) in (1..).zip(&mut vms) {
        let line = format!("ip address add 192.0.2.{number}/24 dev eth0 && ip link set eth0 up && hostname");
        assert_eq!(vm.run_ok(&Command::shell(&line), LIMIT).unwrap(), format!("node-{number}\n"));
    }
    // What every machine has; 192.0.2.1 sends, 192.0.2.2 answers.
    let ping = "\"$0\" ping -c 1 -w 30 -p 5a 192.0.2.2";
    let ping = Command::new(["/bin/sh", "-c", ping, &kernel.busybox().to_string_lossy()]);
    vms[0].run_ok(&ping, LIMIT).unwrap();
    drop(vms);
    drop(switch);
    let frames = std::fs::read(&wire).unwrap();
    // Source, destination, kind; and this program puts the pattern into the code, too.
    let was_seen = |packet: &[u8]| frames.windows(packet.len()).any(|part| part == packet);
    assert!(was_seen(&[192, 0, 2, 1, 192, 0, 2, 2, 8, 0x5a]), "no request on the wire");
    assert!(was_seen(&[192, 0, 2, 2, 192, 0, 2, 1, 0, 0x5a]), "no answer on the wire");
    std::fs::remove_dir_all(directory).unwrap();
}
