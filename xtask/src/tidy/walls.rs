//! What crates and rooms must not use: rules of docs/architecture.md that visibility cannot
//! express.

use std::collections::BTreeMap;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, Path, UseTree};

use super::Finding;
use super::tree::Tree;

/// What must not be used in a part of the tree.
struct Wall {
    /// A directory with its slash; or, without one, a module with all below it.
    inside: String,
    /// Paths of items that begin so stay outside.
    never: Vec<String>,
    /// This file is inside, and may.
    except: Option<&'static str>,
    why: &'static str,
}

impl Wall {
    fn new(inside: &str, never: &[&str], why: &'static str) -> Wall {
        let never = never.iter().map(|path| (*path).to_owned()).collect();
        Wall { inside: inside.to_owned(), never, except: None, why }
    }
}

/// Where the rooms of the daemon are.
const ROOMS: &str = "proxy-userspace/src/";

/// The rooms that are features: none knows another, so that each can be added, changed and read by
/// itself.
const FEATURES: [&str; 2] = ["network", "service"];

/// The rooms that features are built on, which know no feature.
const GROUND: [&str; 12] = [
    "cli",
    "config",
    "feature",
    "go_number",
    "go_yaml",
    "http",
    "node",
    "observe",
    "output",
    "random",
    "state",
    "watch",
];

/// What is above the features: it puts them together, walks them, or names their errors.
const ABOVE: [&str; 6] = ["exit", "features", "lib", "main", "run", "tools"];

/// Modules of proxy-core that do not.
const BASE_OF_CORE: [&str; 6] = ["diff", "lang", "lib", "list", "net", "slots"];

/// Modules of proxy-core that know what packets are handled for.
const FEATURES_OF_CORE: [&str; 11] = [
    "crate::ebpf",
    "crate::event",
    "crate::group",
    "crate::index",
    "crate::ipvs",
    "crate::kind",
    "crate::loopback",
    "crate::model",
    "crate::nft",
    "crate::plan",
    "crate::pod_network",
];

/// Those of them that features and the rooms below could use, and must not.
const KNOW_FEATURES: [&str; 3] = ["exit", "features", "tools"];

fn walls() -> Vec<Wall> {
    let pure = [
        "log",
        "std::env",
        "std::fs",
        "std::io",
        "std::process",
        "std::thread",
        "std::time::Instant",
        "std::time::SystemTime",
        "tokio",
        "tracing",
    ];
    let small = ["aya", "sluice_common", "sluice_core", "sluice_sys", "tokio"];
    let plans = ["sluice_core::plan", "sluice_core::model", "sluice_core::index", "sluice_core::event"];
    let in_room = |room: &str| format!("{ROOMS}{room}");
    let mut walls = vec![
        Wall::new(
            "proxy-core/src/",
            &pure,
            "proxy-core only makes decisions, without I/O: pass what it needs as values",
        ),
        Wall::new(
            "proxy-core/src/lang",
            &FEATURES_OF_CORE,
            "lang has what every feature says to the kernel, and knows none of them",
        ),
        Wall::new(
            "proxy-core/src/pod_network",
            &[
                "crate::ebpf",
                "crate::event",
                "crate::group",
                "crate::index",
                "crate::ipvs",
                "crate::kind",
                "crate::loopback",
                "crate::nft",
                "crate::plan",
            ],
            "the pod network works with any service proxy, and without one",
        ),
        Wall::new("proxy-link/src/", &small, "the plugin uses proxy-link, and must stay small"),
        Wall::new("proxy-sys/src/", &plans, "ports to the kernel know neither Services nor plans"),
        Wall::new(
            "proxy-ebpf/src/packet",
            &["crate::path", "crate::stage", "crate::verdict"],
            "packet has the bytes of a packet: stages decide what becomes of them",
        ),
        Wall::new(
            "proxy-ebpf/src/stage",
            &["crate::path"],
            "a stage is one decision, and does not know when it is asked",
        ),
        Wall::new(
            "proxy-ebpf/src/path",
            &["aya_ebpf::helpers", "crate::maps"],
            "path has the order of stages, and nothing else",
        ),
        Wall {
            except: Some("proxy-ebpf/src/verdict.rs"),
            ..Wall::new(
                "proxy-ebpf/src/",
                &["aya_log_ebpf", "crate::maps::COUNTERS", "sluice_common::counters::Counter"],
                "only verdict.rs counts decisions and reports them: return a verdict",
            )
        },
        Wall::new(ROOMS, &["crate::run"], "run puts the parts together: only main.rs may depend on it"),
        Wall::new(
            &in_room("state"),
            &["crate::node"],
            "the objects are the same for every part that uses them",
        ),
        Wall::new(
            &in_room("service/backend"),
            &["crate::service::reconcile", "crate::watch"],
            "a backend applies plans to the kernel, and must not depend on their source",
        ),
    ];
    for room in FEATURES {
        let others = FEATURES.iter().filter(|other| **other != room).chain(&KNOW_FEATURES);
        walls.push(Wall {
            inside: in_room(room),
            never: others.map(|other| format!("crate::{other}")).collect(),
            except: None,
            why: "a feature knows no other one: what both need belongs to a room below them, and what connects \
                  them to run",
        });
    }
    for room in GROUND {
        let above = FEATURES.iter().chain(&KNOW_FEATURES);
        walls.push(Wall {
            inside: in_room(room),
            never: above.map(|other| format!("crate::{other}")).collect(),
            except: None,
            why: "features are built on this room, so it knows none of them",
        });
    }
    walls
}

/// All walls.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = check_walls(tree, &walls());
    findings.extend(without_wall(tree));
    findings
}

/// Rooms that no wall is built around, and modules of the core of which nothing says whether `lang`
/// may use them.
fn without_wall(tree: &Tree) -> Vec<Finding> {
    let rooms: Vec<&str> = FEATURES.iter().chain(&GROUND).chain(&ABOVE).copied().collect();
    let of_core = FEATURES_OF_CORE.iter().filter_map(|path| path.strip_prefix("crate::"));
    let of_core: Vec<&str> = of_core.chain(BASE_OF_CORE).collect();
    let mut findings = not_among(tree, ROOMS, &rooms, "FEATURES");
    findings.extend(not_among(tree, "proxy-core/src/", &of_core, "FEATURES_OF_CORE"));
    findings
}

fn not_among(tree: &Tree, above: &str, known: &[&str], list: &str) -> Vec<Finding> {
    let files = tree.ending(".rs").filter_map(|(path, _)| Some((path, path.strip_prefix(above)?)));
    let module = |inside: &str| inside.split(['/', '.']).next().unwrap_or_default().to_owned();
    files
        .filter(|(_, inside)| !known.contains(&module(inside).as_str()))
        .map(|(path, inside)| Finding {
            path: path.to_owned(),
            line: 1,
            what: format!("nothing says what {:?} may use: see {list} in {}", module(inside), file!()),
        })
        .collect()
}

fn check_walls(tree: &Tree, walls: &[Wall]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".rs") {
        let holds = |wall: &&Wall| is_inside(path, &wall.inside) && wall.except != Some(path);
        let walls: Vec<&Wall> = walls.iter().filter(holds).collect();
        if walls.is_empty() {
            continue;
        }
        let used = match used(text, &module(path)) {
            Ok(used) => used,
            Err(error) => {
                let line = error.span().start().line;
                findings.push(Finding {
                    path: path.to_owned(),
                    line,
                    what: format!("not valid Rust: {error}"),
                });
                continue;
            }
        };
        for wall in walls {
            for (line, item) in &used {
                if wall.never.iter().any(|never| is_reached(item, never)) {
                    let what = format!("{item}: {}", wall.why);
                    findings.push(Finding { path: path.to_owned(), line: *line, what });
                }
            }
        }
    }
    findings.dedup();
    findings
}

pub(super) fn is_inside(path: &str, wall: &str) -> bool {
    path.strip_prefix(wall).is_some_and(|rest| wall.ends_with('/') || rest.starts_with(['/', '.']))
}

/// Whether a file that names an item reaches what it must not. By `a::*` it reaches all below `a`.
fn is_reached(item: &str, never: &str) -> bool {
    is_below(item, never)
        || item.strip_suffix("::*").is_some_and(|all| is_below(never, all) || is_below(all, never))
}

fn is_below(item: &str, above: &str) -> bool {
    item.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The module of a file: `x/src/a/b.rs` is `crate::a::b`.
fn module(path: &str) -> Vec<String> {
    let inside = path.split_once("src/").map_or(path, |(_, inside)| inside).trim_end_matches(".rs");
    let parts = inside.split('/').filter(|part| !matches!(*part, "lib" | "main" | "mod"));
    ["crate"].into_iter().chain(parts).map(str::to_owned).collect()
}

/// What a file outside of its tests names, by full paths where they begin with `self` or `super`,
/// and in which line.
fn used(text: &str, module: &[String]) -> syn::Result<Vec<(usize, String)>> {
    let file = syn::parse_file(text)?;
    let mut paths = Paths { module: module.to_vec(), used: Vec::new(), names: BTreeMap::new() };
    paths.visit_file(&file);
    // A name may be used above where it is given.
    let given = std::mem::take(&mut paths.names);
    let full = |path: String| match path.split_once("::").map(|(first, rest)| (given.get(first), rest)) {
        Some((Some(first), rest)) => format!("{first}::{rest}"),
        _ => path,
    };
    Ok(paths.used.into_iter().map(|(line, path)| (line, full(path))).collect())
}

struct Paths {
    module: Vec<String>,
    used: Vec<(usize, String)>,
    /// What `use` calls by names of one part.
    names: BTreeMap<String, String>,
}

impl Paths {
    fn note(&mut self, span: Span, mut parts: Vec<String>) {
        if matches!(parts.first().map(String::as_str), Some("self" | "super")) {
            let mut from = self.module.clone();
            while let Some(first @ ("self" | "super")) = parts.first().map(String::as_str) {
                if first == "super" {
                    from.pop();
                }
                parts.remove(0);
            }
            parts.splice(0..0, from);
        }
        self.used.push((span.start().line, parts.join("::")));
    }

    /// Notes what has a name from here on: its own, if no other.
    fn give(&mut self, span: Span, parts: Vec<String>, name: Option<String>) {
        let name = name.or_else(|| parts.last().cloned());
        self.note(span, parts);
        if let (Some(name), Some((_, path))) = (name, self.used.last()) {
            self.names.insert(name, path.clone());
        }
    }

    /// Notes paths in what a macro is given, which need not be Rust.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut begin, mut colons) = (Span::call_site(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(begin, &mut path);
                        begin = ident.span();
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.note_tokens(group.stream());
                    colons = 0;
                }
                _ => colons = 0,
            }
        }
        self.end(begin, &mut path);
    }

    fn end(&mut self, begin: Span, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.note(begin, path);
        }
    }

    fn note_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.note_tree(&path.tree, &with(path.ident.to_string())),
            UseTree::Name(name) if name.ident == "self" => self.give(tree.span(), before.to_vec(), None),
            UseTree::Name(name) => self.give(tree.span(), with(name.ident.to_string()), None),
            UseTree::Rename(rename) if rename.ident == "self" => {
                self.give(tree.span(), before.to_vec(), Some(rename.rename.to_string()));
            }
            UseTree::Rename(rename) => {
                self.give(tree.span(), with(rename.ident.to_string()), Some(rename.rename.to_string()));
            }
            UseTree::Glob(_) => self.note(tree.span(), with("*".to_owned())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(tree, before)),
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    let of_tests = |attribute: &Attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<Path>().is_ok_and(|path| path.is_ident("test"))
    };
    attributes.iter().any(of_tests)
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_test(&item.attrs) {
            self.note_tree(&item.tree, &[]);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if is_test(&item.attrs) {
            return;
        }
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        visit::visit_macro(self, item);
        self.note_tokens(item.tokens.clone());
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.segments.len() > 1 {
            self.note(path.span(), path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let pure = Wall::new("a/src/", &["std::fs", "log"], "pure");
        let apart = Wall::new("a/src/one/", &["crate::two"], "apart");
        let tree = Tree::of(&[(path, text)]);
        check_walls(&tree, &[pure, apart]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn features_know_neither_each_other_nor_what_is_above_them() {
        let found = |path: &str, text: &str| {
            check(&Tree::of(&[(&format!("{ROOMS}{path}"), text)])).iter().map(|f| f.line).collect::<Vec<_>>()
        };
        for feature in FEATURES {
            for other in FEATURES.iter().filter(|other| **other != feature) {
                let text =
                    format!("use crate::{other}::X;\nuse crate::node;\nfn f() {{ crate::{other}::g(); }}\n");
                assert_eq!(found(&format!("{feature}.rs"), &text), [1, 3]);
                assert_eq!(found(&format!("{feature}/deep/x.rs"), &text), [1, 3]);
                assert_eq!(found(&format!("{feature}/x.rs"), &format!("use super::super::{other}::X;")), [1]);
            }
            for text in ["use crate::tools::x;", "use crate::run::X;"] {
                assert_eq!(found(&format!("{feature}/x.rs"), text), [1], "{text}");
            }
            for room in GROUND {
                assert_eq!(
                    found(&format!("{room}/x.rs"), &format!("use crate::{feature}::X;")),
                    [1],
                    "{room}"
                );
            }
            for above in ["tools/x.rs", "features.rs"] {
                assert_eq!(found(above, &format!("use crate::{feature}::X;")), [0; 0], "{above}");
            }
        }
    }

    #[test]
    fn a_room_without_a_wall_is_found() {
        let path = format!("{ROOMS}policy/x.rs");
        let findings = check(&Tree::of(&[(&path, "")]));
        assert!(findings.len() == 1 && findings[0].what.contains("\"policy\""), "{findings:?}");
    }

    #[test]
    fn names_that_modules_get_by_use_and_paths_in_macros_are_followed() {
        let text = "use std::fs as disk;\nuse std as s;\nuse std::*;\nfn f() { s::fs::read(\"x\"); }\n\
                    fn g() { println!(\"{}\", std::fs::read_to_string(\"x\").len()) }\nuse other::{self, fs};\n\
                    fn h() { fs::x(); assert!([log::a()].is_empty()); }\n";
        assert_eq!(
            findings("a/src/x.rs", text),
            [
                "a/src/x.rs:1: std::fs: pure",
                "a/src/x.rs:3: std::*: pure",
                "a/src/x.rs:4: std::fs::read: pure",
                "a/src/x.rs:5: std::fs::read_to_string: pure",
                "a/src/x.rs:7: log::a: pure",
            ]
        );
    }

    #[test]
    fn every_way_to_name_something_is_seen() {
        let text = "use std::{fmt, fs::{self, File}};\nfn f() { log::info!(\"x\"); }\n\
                    fn g() -> std::fs::File { todo() }\nuse std::fs as disk;\nuse logger::other;\n";
        assert_eq!(
            findings("a/src/x.rs", text),
            [
                "a/src/x.rs:1: std::fs: pure",
                "a/src/x.rs:1: std::fs::File: pure",
                "a/src/x.rs:2: log::info: pure",
                "a/src/x.rs:3: std::fs::File: pure",
                "a/src/x.rs:4: std::fs: pure"
            ]
        );
        assert_eq!(findings("b/src/x.rs", text), [""; 0]);
        assert_eq!(findings("a/src/x.rs", "use logger::log;\nfn f() { log::info!(); }\n"), [""; 0]);
    }

    #[test]
    fn paths_by_super_are_followed_and_tests_may() {
        let text = "use super::super::two::X;\nmod inner { use super::super::super::two; }\n\
                    #[cfg(test)]\nmod tests { use crate::two::Y; }\nuse super::three;\n";
        assert_eq!(
            findings("a/src/one/deep.rs", text),
            ["a/src/one/deep.rs:1: crate::two::X: apart", "a/src/one/deep.rs:2: crate::two: apart"]
        );
    }

    /// A wall around what has been renamed stops nobody.
    #[test]
    fn every_wall_stands_on_files_of_the_repository() {
        let tree = Tree::read().expect("git lists the files");
        for Wall { inside, never, except, .. } in walls() {
            assert!(tree.ending(".rs").any(|(path, _)| is_inside(path, &inside)), "{inside}");
            assert!(except.is_none_or(|path| tree.has(path)), "{except:?}");
            let (package, _) = inside.split_once("/src/").expect("a path of a package's code");
            for item in never.iter().filter_map(|item| item.strip_prefix("crate::")) {
                let module = item.split("::").next().unwrap_or_default();
                let file = format!("{package}/src/{module}.rs");
                assert!(tree.has(&file), "{inside}: there is no {file}");
            }
        }
    }

    #[test]
    fn a_new_module_of_the_core_needs_a_place() {
        let new = [("proxy-core/src/policy.rs", ""), ("proxy-core/src/net.rs", "")];
        let findings = without_wall(&Tree::of(&new));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.contains("policy") && findings[0].what.contains("FEATURES_OF_CORE"));
    }

    #[test]
    fn the_rooms_of_the_ebpf_programs_are_apart() {
        let broken = [
            ("packet/icmp.rs", "use crate::stage::route;\nuse super::super::verdict::Verdict;\n"),
            ("stage/flow/claim.rs", "use crate::path::ingress;\nuse super::super::super::path::egress;\n"),
            ("path/forward.rs", "fn f() { crate::maps::FLOWS.get(1); aya_ebpf::helpers::f(); }\n"),
            ("stage/route.rs", "use sluice_common::counters::Counter;\nfn f() { aya_log_ebpf::info!(1); }\n"),
        ];
        for (path, text) in broken {
            let path = format!("proxy-ebpf/src/{path}");
            assert_eq!(check(&Tree::of(&[(&path, text)])).len(), 2, "{path}");
        }
        let whole = [
            ("packet.rs", "use crate::maps::FRAGMENTS;\n"),
            ("stage/route.rs", "use super::flow;\nuse crate::packet::is;\nuse crate::verdict::Verdict;\n"),
            ("path/ingress.rs", "use super::forward;\nuse crate::stage::route;\n"),
            ("verdict.rs", "use sluice_common::counters::Counter;\nuse crate::maps::COUNTERS;\n"),
        ];
        for (path, text) in whole {
            let path = format!("proxy-ebpf/src/{path}");
            assert_eq!(check(&Tree::of(&[(&path, text)])), [], "{path}");
        }
    }

    #[test]
    fn the_language_of_the_kernel_is_apart_from_all_features() {
        let broken = |path: &str, item: &str| {
            let text = format!("use {item}::X;\n");
            check(&Tree::of(&[(path, &text)])).iter().any(|finding| finding.what.starts_with(item))
        };
        for item in FEATURES_OF_CORE {
            for path in ["proxy-core/src/lang.rs", "proxy-core/src/lang/nftables/set.rs"] {
                assert!(broken(path, item), "{item} in {path}");
            }
            assert!(!broken("proxy-core/src/nft/lower.rs", item), "{item}");
        }
        for item in ["crate::net", "crate::diff"] {
            assert!(!broken("proxy-core/src/lang/nftables/set.rs", item), "{item}");
        }
        assert!(broken("proxy-core/src/pod_network/guard.rs", "crate::nft"));
        assert!(!broken("proxy-core/src/pod_network/guard.rs", "crate::lang"));
    }

    #[test]
    fn what_is_no_rust_is_said() {
        assert!(findings("a/src/x.rs", "fn {").concat().contains("not valid Rust"));
    }
}
