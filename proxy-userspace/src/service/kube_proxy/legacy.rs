//! Chains in the kernel's own iptables (not its nf_tables variant). The iptables programs delete
//! them; where they are missing or fail, the jumps to the chains are undone without them, so that
//! they have no effect.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use sluice_core::net::Family;
use sluice_sys::iptables::{disconnect, has_chain, legacy_tables};

use super::names::{is_chain, is_entry};
use super::plan::TABLES;
use super::{Step, StepError};

/// Removes kube-proxy's chains, if the kernel has any.
pub(super) fn remove(family: Family) -> Option<Step> {
    let tables = match tables(family) {
        Ok(tables) if tables.is_empty() => return None,
        Ok(tables) => tables,
        Err(error) => {
            return Some(Step { what: format!("{family} iptables chains"), result: Err(error.into()) });
        }
    };
    let what =
        format!("{family} iptables chains of kube-proxy (legacy variant, tables {})", tables.join(", "));
    Some(Step { what, result: remove_from(family, &tables) })
}

/// The tables with chains of kube-proxy.
fn tables(family: Family) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for table in legacy_tables(family)?.into_iter().filter(|table| TABLES.contains(&table.as_str())) {
        if has_chain(family, &table, is_chain)? {
            found.push(table);
        }
    }
    Ok(found)
}

fn remove_from(family: Family, tables: &[String]) -> Result<(), StepError> {
    let deleted = delete(family, tables);
    if deleted.is_err() {
        for table in tables {
            disconnect(family, table, is_entry)?;
        }
    }
    deleted
}

/// Deletes jumps and chains with the iptables programs.
fn delete(family: Family, tables: &[String]) -> Result<(), StepError> {
    let (plain, legacy) = match family {
        Family::V4 => ("iptables", "iptables-legacy"),
        Family::V6 => ("ip6tables", "ip6tables-legacy"),
    };
    let Some(program) = [legacy, plain].into_iter().find(|program| is_legacy(program)) else {
        return Err(StepError::NoProgram(format!(
            "{legacy}-save | grep -v KUBE- | {legacy}-restore (this also removes the kubelet's chains, \
             which the kubelet writes again)"
        )));
    };
    for table in tables {
        let saved = run(&format!("{program}-save"), &["-t", table], "")?;
        run(&format!("{program}-restore"), &["--noflush", "-w", "5"], &restore_input(&saved))?;
    }
    if self::tables(family)?.is_empty() {
        return Ok(());
    }
    let message =
        "some of kube-proxy's chains are kept, because rules of other programs jump to them".to_owned();
    Err(StepError::Program { program: program.to_owned(), message })
}

fn is_legacy(program: &str) -> bool {
    run(&format!("{program}-save"), &["--version"], "").is_ok_and(|version| !version.contains("nf_tables"))
}

/// Runs a program and returns what it writes.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, StepError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(StepError::Program { program: program.to_owned(), message })
}

/// From what iptables-save wrote to what iptables-restore has to read: the jumps from the built-in
/// chains to kube-proxy's go, then its rules, then its chains. Chains that rules of others lead to
/// stay as they are, with all that they lead to.
fn restore_input(saved: &str) -> String {
    let (mut theirs, mut built_in) = (BTreeSet::new(), BTreeSet::new());
    for line in saved.lines() {
        let Some((name, policy)) = line.strip_prefix(':').and_then(|line| line.split_once(' ')) else {
            continue;
        };
        if !policy.starts_with('-') {
            built_in.insert(name);
        } else if is_chain(name) {
            theirs.insert(name);
        }
    }
    let rules: Vec<(&str, &str, &str)> = saved
        .lines()
        .filter_map(|line| line.strip_prefix("-A "))
        .filter_map(|rule| Some((rule, rule.split(' ').next()?, target(rule)?)))
        .filter(|(.., target)| theirs.contains(target))
        .collect();
    let is_theirs = |chain: &str, target: &str| match built_in.contains(chain) {
        true => is_entry(target),
        false => theirs.contains(chain),
    };
    let mut keep: Vec<&str> = rules
        .iter()
        .filter(|(_, chain, target)| !is_theirs(chain, target))
        .map(|(.., target)| *target)
        .collect();
    let mut kept = BTreeSet::new();
    while let Some(name) = keep.pop() {
        if kept.insert(name) {
            keep.extend(rules.iter().filter(|(_, chain, _)| *chain == name).map(|(.., target)| *target));
        }
    }
    let table = saved.lines().find(|line| line.starts_with('*')).unwrap_or_default();
    let go: Vec<&&str> = theirs.difference(&kept).collect();
    let jumps = rules.iter().filter(|(_, chain, target)| built_in.contains(chain) && is_entry(target));
    let mut input = format!("{table}\n");
    input.extend(go.iter().map(|name| format!(":{name} - [0:0]\n")));
    input.extend(jumps.map(|(rule, ..)| format!("-D {rule}\n")));
    input.extend(go.iter().map(|name| format!("-X {name}\n")));
    input + "COMMIT\n"
}

/// Where a rule jumps or goes to.
fn target(rule: &str) -> Option<&str> {
    let (_, rest) = rule.split_once(" -j ").or_else(|| rule.split_once(" -g "))?;
    rest.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_kube_proxys_is_in_the_input() {
        let saved = "# Generated\n*nat\n:PREROUTING ACCEPT [1:2]\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
            :KUBE-KUBELET-CANARY - [0:0]\n:CNI-A - [0:0]\n\
            -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
            -A PREROUTING -j CNI-A\n-A CNI-A -j KUBE-MARK-MASQ\n-A PREROUTING -s 10.9.0.0/16 -j KUBE-MARK-MASQ\n\
            -A KUBE-SERVICES -j KUBE-MARK-MASQ\nCOMMIT\n";
        assert_eq!(
            restore_input(saved),
            "*nat\n:KUBE-SERVICES - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\nCOMMIT\n"
        );
    }
}
