//! The same experiments in two modes: `nftables`, whose packets take the kernel's own way and which
//! says what is right, and `ebpf`. What differs is a fault, unless `docs/differences.md` names it
//! and `torture-differences.yaml` leads there.

mod differences;
mod experiments;
mod judged;
mod settings;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::agent::trial::{Socket, Trial, What};
use crate::lab::{Lab, LabOptions};
use crate::proxy::ProxyProgram;
use crate::target::From;
use crate::{interrupt, needs, patience};
use differences::Differences;
use experiments::{Experiment, Frontend, asked};
use settings::Setting;

/// The mode that says what is right, and the one that is judged.
pub const MODES: [&str; 2] = ["nftables", "ebpf"];

/// What to run.
#[derive(Debug)]
pub struct Options {
    /// The lab, of whichever mode
    pub lab: LabOptions,
    /// Experiments whose names have one of these in them; all when empty
    pub only: Vec<String>,
    /// Those alone that take seconds and have to be equal
    pub short: bool,
    /// The text of `docs/differences.md`
    pub documented: String,
}

/// What became of one experiment.
#[derive(Debug)]
struct Compared {
    name: String,
    seen: [String; 2],
    /// Whether mode nftables did what the experiment expects
    is_valid: bool,
}

/// What became of one experiment in one mode.
#[derive(Debug)]
struct Seen {
    text: String,
    is_right: bool,
}

impl Compared {
    fn differs(&self) -> bool {
        self.seen[0] != self.seen[1]
    }
}

/// Runs the experiments and prints what became of them; whether all is as documented.
pub fn run(options: &Options) -> Result<bool> {
    let known = Differences::of_the_project(&options.documented)?;
    let mut results = Vec::new();
    for setting in settings::settings() {
        let chosen = choose(&setting, options, &known);
        if chosen.is_empty() {
            continue;
        }
        let begun = Instant::now();
        let [right, seen] = in_both_modes(&setting, &chosen, &options.lab)?;
        for (experiment, seen) in chosen.iter().zip(right.into_iter().zip(seen)) {
            let (name, is_valid) = (experiment.name.clone(), seen.0.is_right);
            let result = Compared { name, seen: [seen.0.text, seen.1.text], is_valid };
            show(&result, &known);
            results.push(result);
        }
        println!("{}: {} experiments, {:.1} s", setting.name, chosen.len(), begun.elapsed().as_secs_f64());
    }
    ensure!(!results.is_empty(), "no experiment is selected");
    Ok(judge(&results, &known))
}

fn choose(setting: &Setting, options: &Options, known: &Differences) -> Vec<Experiment> {
    let v6 = needs::has_ipv6();
    let wanted = |experiment: &Experiment| {
        (v6 || !experiment.v6)
            && (!options.short || experiment.short && known.reason(&experiment.name).is_none())
            && (options.only.is_empty() || options.only.iter().any(|part| experiment.name.contains(part)))
    };
    experiments::of(setting).into_iter().filter(wanted).collect()
}

/// A lab is used from the thread that made it: one for each mode.
fn in_both_modes(setting: &Setting, chosen: &[Experiment], lab: &LabOptions) -> Result<[Vec<Seen>; 2]> {
    std::thread::scope(|scope| {
        let running = MODES.map(|mode| scope.spawn(move || in_mode(mode, setting, chosen, lab)));
        let [right, seen] = running.map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        Ok([right?, seen?])
    })
}

fn in_mode(mode: &str, setting: &Setting, chosen: &[Experiment], lab: &LabOptions) -> Result<Vec<Seen>> {
    let proxy = ProxyProgram { name: mode.to_owned(), ..lab.proxy.clone() };
    let mut lab = Lab::create(&settings::topology()?, LabOptions { proxy, ..lab.clone() })?;
    let context = || format!("{} in mode {mode}", setting.name);
    lab.apply(&(settings::objects() + setting.objects)).with_context(context)?;
    prepare(&lab, setting).with_context(context)?;
    lab.start_proxy("node-a", &Value::Null).with_context(context)?;
    let done = until_ready(&mut lab)
        .and_then(|()| {
            chosen.iter().map(|experiment| perform(&mut lab, experiment)).collect::<Result<Vec<_>>>()
        })
        .and_then(|seen| lab.check_proxies().map(|()| seen));
    done.with_context(|| format!("{}\n{}", context(), lab.proxy_logs(10).into_values().collect::<String>()))
}

/// Runs the commands of a setting.
fn prepare(lab: &Lab, setting: &Setting) -> Result<()> {
    for (place, script) in &setting.commands {
        lab.shell(place, script)?;
    }
    Ok(())
}

/// Waits until every kind of frontend answers, or refuses.
fn until_ready(lab: &mut Lab) -> Result<()> {
    lab.await_first_syncs()?;
    let end = Instant::now() + patience::stretched(Duration::from_secs(20));
    loop {
        let one = |v6| Frontend::External.of("one", v6);
        let ready =
            [false, true].into_iter().filter(|v6| !v6 || needs::has_ipv6()).try_fold(true, |all, v6| {
                let sends = vec![asked(one(v6), 100, 100)];
                let trial = Trial { wait_ms: 300, what: What::Datagrams { socket: Socket::Plain, sends } };
                // How clients fare is what experiments are about.
                let seen = lab.agent(&From::Pod("p2".to_owned()))?.trial(trial)?;
                anyhow::Ok(all && seen.iter().all(|word| word.starts_with("p1 saw")))
            })?;
        if ready {
            return Ok(());
        }
        lab.check_proxies()?;
        if Instant::now() > end {
            bail!("no Service answers");
        }
        interrupt::sleep(Duration::from_millis(100))?;
    }
}

/// Does one experiment, so many times as it says.
fn perform(lab: &mut Lab, experiment: &Experiment) -> Result<Seen> {
    if let Some((place, script)) = &experiment.before {
        lab.shell(place, script)?;
    }
    let wait = patience::stretched(experiment.wait);
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let mut seen = Vec::new();
    for (number, what) in experiment.tries.iter().enumerate() {
        if number > 0 && experiment.restarts {
            lab.kill_proxy("node-a")?;
            lab.start_proxy("node-a", &Value::Null)?;
            until_ready(lab)?;
        }
        let trial = Trial { wait_ms, what: what.clone() };
        seen.push(lab.agent(&experiment.from)?.trial(trial).with_context(|| experiment.name.clone())?);
    }
    Ok(Seen { text: experiment.judged.text(&seen), is_right: experiment.judged.is_right(&seen) })
}

/// Prints a row of the table.
fn show(result: &Compared, known: &Differences) {
    let verdict = match (result.differs(), known.reason(&result.name)) {
        _ if !result.is_valid => "INVALID",
        (false, _) => "equal",
        (true, Some(_)) => "documented",
        (true, None) => "DIFFERENT",
    };
    println!("{verdict:10} {:56} {}", result.name, result.seen[0]);
    if result.differs() {
        println!("{:67} ebpf: {}", "", result.seen[1]);
    }
}

/// Prints the end of the table; whether all is as documented, and the oracle was right each time.
fn judge(results: &[Compared], known: &Differences) -> bool {
    let (valid, invalid): (Vec<_>, Vec<_>) = results.iter().partition(|result| result.is_valid);
    for result in &invalid {
        println!(
            "{}: mode nftables itself did not behave as expected: the experiment is invalid",
            result.name
        );
    }
    let names = |differs: bool| {
        valid.iter().filter(move |result| result.differs() == differs).map(|result| result.name.as_str())
    };
    let (equal, different): (Vec<_>, Vec<_>) = (names(false).collect(), names(true).collect());
    let gone = known.gone(&equal, &different);
    for gone in &gone {
        println!(
            "no difference any more: {gone}: remove it from torture-differences.yaml and docs/differences.md"
        );
    }
    let unnamed = different.iter().filter(|name| known.reason(name).is_none()).count();
    let documented = different.len() - unnamed;
    println!(
        "{} experiments: {} equal, {documented} with a documented difference, {unnamed} with another, {} invalid",
        results.len(),
        equal.len(),
        invalid.len()
    );
    gone.is_empty() && unnamed == 0 && invalid.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(seen: [&str; 2], is_valid: bool) -> Compared {
        Compared { name: "plain/v4/udp".to_owned(), seen: seen.map(str::to_owned), is_valid }
    }

    #[test]
    fn equal_answers_count_only_if_they_are_right() {
        let none = Differences::default();
        assert!(judge(&[compared(["p1 saw a", "p1 saw a"], true)], &none));
        assert!(!judge(&[compared(["p1 saw a", "timeout"], true)], &none));
        assert!(!judge(&[compared(["timeout", "timeout"], false)], &none));
    }
}
