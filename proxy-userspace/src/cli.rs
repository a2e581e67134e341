//! The command line: `sluice COMMAND`, and that of kube-proxy, which has no commands.

mod flags;
mod pflag;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use flags::{Gate, List, Pattern, RunArgs};

/// Sluice: service proxy for Linux Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str =
    "Without a command, or when started as kube-proxy, the program takes the flags of `sluice run`.

Exit codes:
  0  success, or ended by SIGTERM or SIGINT (rules stay in force); status: the kernel has state of Sluice
  1  runtime failure; the configuration file changed; status: a daemon runs, but the kernel has no state of Sluice
  2  invalid command line or configuration
  3  a requirement is missing (a capability, a kernel feature, a file), or another daemon is running
  4  status: the kernel has no state of Sluice, and no daemon is running
  6  status: another program changed Sluice's state in the kernel, as far as this can be seen without a daemon";

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch Services and EndpointSlices, and program the kernel for them, until SIGTERM.
    Run(Box<RunArgs>),
    /// Show the state of Sluice in the kernel. No daemon is needed.
    ///
    /// This is the nftables table of Services, IPVS virtual servers, eBPF maps with counters and
    /// programs, and the pod network. The exit code is 0 if there is such state, and 4 if there is
    /// none; sluice --help lists the others.
    Status {
        /// Directory of the eBPF backend's maps and programs: sluice.ebpf.bpffs in the
        /// configuration.
        #[arg(long, value_name = "DIR", env = "SLUICE_BPFFS", default_value = crate::config::BPFFS, value_parser = absolute())]
        bpffs: PathBuf,
        /// Output format. The text may change with any release; JSON fields are only ever added.
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: OutputFormat,
    },
    /// Remove all state of Sluice from the kernel.
    ///
    /// While a daemon is running in this network namespace, nothing is removed, and the error names
    /// its process.
    Cleanup {
        /// Also remove what kube-proxy left in the kernel: nftables tables, iptables chains, IPVS
        /// virtual servers, ipsets.
        #[arg(long)]
        kube_proxy: bool,
        /// Directory of the eBPF backend's maps and programs: sluice.ebpf.bpffs in the
        /// configuration.
        #[arg(long, value_name = "DIR", env = "SLUICE_BPFFS", default_value = crate::config::BPFFS, value_parser = absolute())]
        bpffs: PathBuf,
        /// Directory where the daemon writes node settings for the CNI plugin:
        /// sluice.podNetwork.cni.runDir in the configuration.
        #[arg(long, value_name = "DIR", default_value = sluice_cni::spec::RUN)]
        run_dir: PathBuf,
        /// Remove state even while a daemon is running. Connections break, and the daemon writes
        /// its state again.
        #[arg(long)]
        force: bool,
    },
    /// Check a configuration file. Nothing is changed.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version, and the kube-proxy releases whose configuration is accepted.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// Shell that runs the script.
        shell: clap_complete::Shell,
    },
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read a KubeProxyConfiguration, and report every error and every field without effect.
    Check {
        /// KubeProxyConfiguration file, YAML or JSON.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Text for people.
    Text,
    /// JSON for programs.
    Json,
}

/// A directory by its whole path: by a part of it, something else would be found where the command
/// runs.
fn absolute() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if path.is_absolute() { Ok(path) } else { Err("give an absolute path, such as /sys/fs/bpf/sluice") }
    })
}

/// What was typed.
#[derive(Debug)]
pub struct Invocation {
    /// The command with its flags.
    pub command: Command,
    /// Every flag of the command and its value as text.
    pub flags: BTreeMap<String, String>,
    /// Flags that were given.
    pub given: Vec<String>,
}

/// Parses a command line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let arguments = normalize(arguments.into_iter().collect())
        .map_err(|reason| Cli::command().error(ErrorKind::InvalidValue, reason))?;
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut command = Cli::from_arg_matches(&matches)?.command;
    if let Command::Run(args) = &mut command {
        args.without_empty_paths();
    }
    let (flags, given) =
        matches.subcommand().map(|(name, matches)| values(name, matches)).unwrap_or_default();
    Ok(Invocation { command, flags, given })
}

/// What --version prints; nothing if it is false.
pub fn version(value: &str) -> Option<String> {
    let version = env!("CARGO_PKG_VERSION");
    match value {
        // A version to report instead is accepted, and does nothing here.
        set if set.starts_with('v') => None,
        "raw" => Some(format!(
            "sluice {version}, as kube-proxy {SUPPORTS}, {}-{}",
            std::env::consts::OS,
            std::env::consts::ARCH
        )),
        _ => flags::go_bool(value).unwrap_or(true).then(|| format!("sluice {version}")),
    }
}

/// A script that completes commands and flags in a shell.
pub fn completion(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The releases of kube-proxy whose configuration this takes.
pub const SUPPORTS: &str = "1.36 to 1.38";

/// The newest of them, whose defaults of feature gates count.
pub const KUBE_PROXY: &str = "1.38";

/// Whether a command line is that of the daemon, before it is read: signals that end the daemon are
/// not to be missed meanwhile.
pub fn is_run(arguments: &[OsString]) -> bool {
    is_kube_proxys(arguments) || arguments.get(1).is_some_and(|command| command == "run")
}

/// Whether a command line asks for a log in JSON, even if it cannot be understood otherwise.
pub fn asks_for_json(arguments: &[OsString]) -> bool {
    let text = |argument: &OsString| argument.to_str().unwrap_or_default().replace('_', "-");
    let mut texts = arguments.iter().map(text);
    texts.any(|text| text == "--logging-format=json")
        || arguments.windows(2).any(|two| text(&two[0]) == "--logging-format" && two[1] == "json")
}

/// Whether there is no command, which stands for `run`.
fn is_kube_proxys(arguments: &[OsString]) -> bool {
    let called = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let first = arguments.get(1).and_then(|first| first.to_str()).unwrap_or_default();
    called == "kube-proxy" || first.starts_with('-') && !matches!(first, "-h" | "--help" | "-V" | "--version")
}

/// kube-proxy's command line has no commands, and flags that pflag reads.
fn normalize(mut arguments: Vec<OsString>) -> Result<Vec<OsString>, String> {
    if is_kube_proxys(&arguments) {
        arguments.insert(1.min(arguments.len()), "run".into());
    }
    if arguments.get(1).is_none_or(|command| command != "run") {
        return Ok(arguments);
    }
    let command = Cli::command();
    let known = command.find_subcommand("run").into_iter().flat_map(clap::Command::get_arguments);
    let mut flags: Vec<pflag::Flag<'_>> = known.filter_map(flag).collect();
    // Clap adds it later.
    flags.push(pflag::Flag { long: "help", short: Some('h'), alone: true });
    let canonical = pflag::canonical(&arguments[2..], &flags)?;
    // Help is no flag with a value to clap, and the short one leaves out what has no effect.
    let is_short = arguments[2..].iter().any(|argument| argument == "-h");
    let help = if is_short { "-h" } else { "--help" };
    arguments.truncate(2);
    arguments
        .extend(canonical.into_iter().map(|text| if text == "--help=true" { help.into() } else { text }));
    Ok(arguments)
}

fn flag(argument: &clap::Arg) -> Option<pflag::Flag<'_>> {
    let alone = argument.get_num_args().is_some_and(|count| count.min_values() == 0);
    argument.get_long().map(|long| pflag::Flag { long, short: argument.get_short(), alone })
}

/// The flags of a command: all with their values, and the names of those that were given.
fn values(name: &str, matches: &ArgMatches) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut all, mut given) = (BTreeMap::new(), Vec::new());
    let command = Cli::command();
    let arguments = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    for argument in arguments {
        let (id, Some(long)) = (argument.get_id().as_str(), argument.get_long()) else { continue };
        if matches.value_source(id) == Some(ValueSource::CommandLine) {
            given.push(long.to_owned());
        }
        let typed = matches.get_raw(id).map(|values| {
            let texts: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            texts.join(",")
        });
        let default = || DEFAULTS.iter().find(|(flag, _)| *flag == long).map_or("", |(_, value)| value);
        all.insert(long.to_owned(), typed.unwrap_or_else(|| default().to_owned()));
    }
    (all, given)
}

/// What a flag that is not given stands for, where that is not empty.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("bind-address", "0.0.0.0"),
    ("bind-address-hard-fail", "false"),
    ("cleanup", "false"),
    ("cleanup-kube-proxy", "true"),
    ("cni", "false"),
    ("config-sync-period", "15m0s"),
    ("conntrack-max-per-core", "32768"),
    ("conntrack-min", "131072"),
    ("conntrack-tcp-be-liberal", "false"),
    ("conntrack-tcp-timeout-close-wait", "1h0m0s"),
    ("conntrack-tcp-timeout-established", "24h0m0s"),
    ("conntrack-udp-timeout", "0s"),
    ("conntrack-udp-timeout-stream", "0s"),
    ("healthz-bind-address", "0.0.0.0:10256"),
    ("healthz-port", "10256"),
    ("init-only", "false"),
    ("iptables-localhost-nodeports", "true"),
    ("iptables-masquerade-bit", "14"),
    ("iptables-min-sync-period", "1s"),
    ("iptables-sync-period", "30s"),
    ("ipvs-min-sync-period", "1s"),
    ("ipvs-strict-arp", "false"),
    ("ipvs-sync-period", "30s"),
    ("ipvs-tcp-timeout", "0s"),
    ("ipvs-tcpfin-timeout", "0s"),
    ("ipvs-udp-timeout", "0s"),
    ("kube-api-burst", "10"),
    ("kube-api-content-type", "application/vnd.kubernetes.protobuf"),
    ("kube-api-qps", "5"),
    ("log-flush-frequency", "5s"),
    ("log-json-info-buffer-size", "0"),
    ("log-json-split-stream", "false"),
    ("log-text-info-buffer-size", "0"),
    ("log-text-split-stream", "false"),
    ("logging-format", "text"),
    ("masquerade-all", "false"),
    ("metrics-bind-address", "127.0.0.1:10249"),
    ("metrics-port", "10249"),
    ("oom-score-adj", "-999"),
    ("profiling", "false"),
    ("v", "0"),
    ("version", "false"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<(RunArgs, Invocation), clap::Error> {
        let mut invocation = parse(arguments.iter().map(OsString::from))?;
        let other = Command::Status { bpffs: PathBuf::new(), output: OutputFormat::Text };
        match std::mem::replace(&mut invocation.command, other) {
            Command::Run(args) => Ok((*args, invocation)),
            _ => panic!("{arguments:?} is not run"),
        }
    }

    #[test]
    fn kube_proxys_command_line_is_that_of_run() {
        let line =
            ["--config=/c", "--hostname-override", "a", "-v=2", "--masquerade-all=false", "--init-only"];
        for name in [&["/usr/local/bin/kube-proxy"][..], &["sluice"], &["sluice", "run"]] {
            let (args, invocation) = run(&[name, &line].concat()).unwrap();
            assert_eq!(args.config.unwrap().to_str(), Some("/c"));
            assert_eq!(args.v, Some(2));
            assert_eq!((args.dataplane.masquerade_all, args.actions.init_only), (Some(false), Some(true)));
            assert_eq!(invocation.given, ["config", "v", "init-only", "hostname-override", "masquerade-all"]);
            assert_eq!(invocation.flags["config-sync-period"], "15m0s");
            assert_eq!(invocation.flags["hostname-override"], "a");
            let line: Vec<OsString> = [name, &line].concat().iter().map(OsString::from).collect();
            assert!(is_run(&line), "{line:?}");
        }
        for other in [&["sluice"][..], &["sluice", "status"], &["sluice", "cleanup"], &["sluice", "--help"]] {
            let line: Vec<OsString> = other.iter().map(OsString::from).collect();
            assert!(!is_run(&line), "{line:?}");
        }
        assert!(parse(["kube-proxy".into()]).is_ok());
        assert!(parse(["sluice".into()]).is_err());
        assert!(run(&["kube-proxy", "cleanup"]).is_err());
    }

    #[test]
    fn a_log_in_json_is_asked_for_in_two_ways() {
        let asks = |line: &str| asks_for_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["sluice run --logging-format=json --bogus", "kube-proxy --logging_format json"] {
            assert!(asks(line), "{line}");
        }
        for line in ["sluice run --logging-format=text", "kube-proxy --logging-format", "kube-proxy json"] {
            assert!(!asks(line), "{line}");
        }
    }

    #[test]
    fn help_names_all_modes_and_the_short_help_omits_flags_without_effect() {
        let help = |argument: &str| {
            let error = parse(["kube-proxy", argument].map(OsString::from)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DisplayHelp);
            error.to_string()
        };
        let (short, long) = (help("-h"), help("--help"));
        for text in [&short, &long] {
            assert!(text.contains("nftables, ebpf, ipvs, or auto"), "{text}");
        }
        assert!(long.contains("No effect") && long.contains("--kube-api-qps"), "{long}");
        assert!(!short.contains("No effect") && !short.contains("--kube-api-qps"), "{short}");
    }

    #[test]
    fn shells_can_complete_commands_and_flags() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let script = completion(shell);
            for word in ["cleanup", "cluster-cidr"] {
                assert!(script.contains(word), "{word} in {shell}");
            }
        }
    }

    #[test]
    fn cleanup_looks_where_the_configuration_says_unless_told() {
        let bpffs = |arguments: &[&str]| match parse(arguments.iter().map(OsString::from)).unwrap().command {
            Command::Cleanup { bpffs, .. } => bpffs,
            _ => panic!("{arguments:?} is not cleanup"),
        };
        assert_eq!(bpffs(&["sluice", "cleanup"]), Path::new("/sys/fs/bpf/sluice"));
        assert_eq!(bpffs(&["sluice", "cleanup", "--bpffs", "/b"]), Path::new("/b"));
        for command in ["cleanup", "status"] {
            let error = parse(["sluice", command, "--bpffs", "b"].map(OsString::from)).unwrap_err();
            assert!(error.to_string().contains("--bpffs"), "{error}");
        }
    }

    #[test]
    fn values_are_those_of_pflag() {
        let (args, invocation) = run(&[
            "kube-proxy",
            "--nodeport-addresses=\"10.0.0.0/8\"",
            "--conntrack-max-per-core=010",
            "--conntrack-min=1_000",
            "--oom-score-adj",
            "-0x10",
            "--kube-api-qps=0x1p3",
            "--pod-interface-name-prefix",
            "-x",
            "--kubeconfig=",
            "--config=",
            "-v3",
            "",
        ])
        .unwrap();
        assert_eq!(args.dataplane.nodeport_addresses.unwrap(), [List(vec!["10.0.0.0/8".into()])]);
        let tracking = args.tracking;
        assert_eq!((tracking.conntrack_max_per_core, tracking.conntrack_min), (Some(8), Some(1000)));
        assert_eq!((args.node.oom_score_adj, args.client.kube_api_qps), (Some(-16), Some(8.0)));
        assert_eq!(args.dataplane.pod_interface_name_prefix.as_deref(), Some("-x"));
        assert_eq!((args.client.kubeconfig, args.config, args.v), (None, None, Some(3)));
        assert!(invocation.given.contains(&"kubeconfig".to_owned()));
        for bad in [
            "--nodeport-addresses=\"a",
            "--conntrack-min=08",
            "--conntrack-min=1e3",
            "--conntrack-min=3000000000",
            "--kube-api-qps=x",
            "--v=0x3",
            "--vmodule=a=b",
            "--feature-gates=A",
            "---v=3",
            "-x",
            "--conntrack-min",
        ] {
            assert!(run(&["kube-proxy", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_are_written_as_in_go() {
        let list = |items: &[&str]| List(items.iter().map(|item| (*item).to_owned()).collect());
        let (args, _) = run(&["kube-proxy", "-v", "3", "--oom_score_adj=-5", "--v=4", "--version"]).unwrap();
        assert_eq!((args.v, args.node.oom_score_adj), (Some(4), Some(-5)));
        assert_eq!(args.version.as_deref(), Some("true"));
        let (args, _) = run(&[
            "kube-proxy",
            "--nodeport-addresses=10.0.0.0/8,fd00::/8",
            "--nodeport-addresses",
            "1.0.0.0/8",
        ])
        .unwrap();
        assert_eq!(
            args.dataplane.nodeport_addresses.unwrap(),
            [list(&["10.0.0.0/8", "fd00::/8"]), list(&["1.0.0.0/8"])]
        );
        let (args, _) = run(&["kube-proxy", "--feature-gates=A=true,B=f", "--vmodule=a*=1,b=2"]).unwrap();
        assert_eq!(args.node.feature_gates.unwrap(), [Gate("A".into(), true), Gate("B".into(), false)]);
        assert_eq!(args.log.vmodule.unwrap(), [Pattern("a*".into(), 1), Pattern("b".into(), 2)]);
        for bad in ["--masquerade-all=maybe", "--bogus", "extra", "--config-sync-period=5", "--vmodule=x"] {
            assert!(run(&["kube-proxy", bad]).is_err(), "{bad}");
        }
        assert!(run(&["kube-proxy", "--masquerade-all", "false"]).is_err());
    }
}
