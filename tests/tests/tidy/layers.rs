//! Imports go one way: a folder of a plane uses only the folders before it, and no modules of a
//! crate use each other in a circle. `docs/ARCHITECTURE.md` shows the order.
//!
//! Sources are parsed, so comments and strings do not count; unit tests may import what they like.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

use super::{assert_none, sources, workspace};

/// The folders and top-level files of each plane, in the order of their imports.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "dataplane",
        &[
            "runtime",
            "lifecycle",
            "observability",
            "io",
            "tls",
            "http",
            "upstream",
            "filters",
            "reporting",
            "tcp",
            "proxy",
            "trace_export",
            "push_client",
            "config",
            "status",
            "server",
        ],
    ),
    (
        "controlplane",
        &[
            "listener_errors",
            "store",
            "compile",
            "change",
            "inventory",
            "publish",
            "current_snapshot",
            "explain",
            "lint",
            "admin",
            "server",
            "cli",
        ],
    ),
];

/// Crates whose modules have no circles. A child may use its ancestors: they hold what its
/// siblings share.
const WITHOUT_CIRCLES: &[&str] = &[
    "pki",
    "telemetry",
    "process",
    "mtls",
    "proto",
    "model",
    "conf",
    "controlplane",
    "dataplane",
    "bench",
    "bench/compare",
    "tests",
];

/// For each module of a crate (`tls::record`), the modules it imports from.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn folders_import_only_from_those_before_them() {
    let mut broken = Vec::new();
    for (name, layers) in LAYERS {
        for (module, imported) in imports(name) {
            let folder = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
            let place = |module: &str| layers.iter().position(|layer| *layer == folder(module));
            if module.is_empty() {
                continue; // lib.rs declares the folders
            }
            let Some(own) = place(&module) else {
                broken.push(format!("{name}: `{module}` has no place in the order"));
                continue;
            };
            let later = imported.iter().filter(|used| place(used).is_some_and(|used| used > own));
            broken.extend(later.map(|used| format!("{name}: `{module}` imports from `{used}`")));
        }
    }
    assert_none("move what both need to the earlier folder, or pass it in as plain data", &broken);
}

#[test]
fn modules_import_each_other_in_no_circle() {
    let broken: Vec<_> = WITHOUT_CIRCLES
        .iter()
        .flat_map(|name| {
            let imports = imports(name);
            circles(&imports).into_iter().map(move |circle| format!("{name}: {}", circle.join(" <-> ")))
        })
        .collect();
    assert_none("modules of a circle can only be understood together: move what both need", &broken);
}

#[test]
fn the_document_shows_the_order() {
    let page = std::fs::read_to_string(workspace().join("docs/ARCHITECTURE.md")).expect("the page exists");
    let rows: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let mut broken = Vec::new();
    for (name, layers) in LAYERS {
        let shown: Vec<&str> = rows
            .iter()
            .filter_map(|row| row.strip_prefix(&format!("{name}/src/"))?.split_once('`'))
            .map(|(layer, _)| layer)
            .collect();
        if shown != *layers {
            broken.push(format!("{name}: the page has {shown:?}, the order is {layers:?}"));
        }
    }
    assert_none("docs/ARCHITECTURE.md has a row for each folder, in the order of imports", &broken);
}

/// What a crate exports for its tests and benches bypasses the order.
#[test]
fn no_module_uses_the_exports_for_tests() {
    let uses = |source: &super::Source| source.code().contains("crate::testing");
    let code = sources("rs").into_iter().filter(|source| source.path.contains("/src/"));
    let broken: Vec<_> = code.filter(uses).map(|source| source.path).collect();
    assert_none("import from the module itself, not from `testing`", &broken);
}

#[test]
fn imports_are_found() {
    let modules = ["", "a", "a::b", "c", "c::d"].map(str::to_owned).into();
    let root = syn::parse_file("pub(crate) use c::d::X as Y; use a::Z; pub use c::*;").expect("Rust");
    let exports = [(String::new(), exports(&root.items))].into();
    let found = |module: &str, text: &str| {
        let file = syn::parse_file(text).expect("Rust");
        paths(module, &modules, &exports, without_tests(file.items)).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(found("a::b", "use crate::Y;"), ["c", "c::d"]);
    assert_eq!(found("a", "use self::super::c::d::X;"), ["c::d"]);
    assert_eq!(found("a", "#[cfg(not(test))] mod x { use crate::c::X; }"), ["c"]);
    assert_eq!(found("a::b", "use crate::{c::{d::X, Y}, a};"), ["a", "c", "c::d"]);
    assert_eq!(found("a::b", "use super::Z; fn f() { super::super::c::d::g() }"), ["a", "c::d"]);
    assert_eq!(found("a", "fn f() { println!(\"{}\", crate::c::X); b::g() }"), ["a::b", "c"]);
    assert_eq!(found("c", "#[cfg(test)] mod tests { use crate::a; } // crate::a"), [""; 0]);
}

#[test]
fn circles_are_found() {
    let imports = |edges: &[(&str, &[&str])]| -> Imports {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        edges.iter().map(|(module, used)| ((*module).to_owned(), own(used))).collect()
    };
    let circle = imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &["a"])]);
    assert_eq!(circles(&circle), [["a", "b", "c"]]);
    let ancestor = imports(&[("a", &["a::b"]), ("a::b", &["a"]), ("c", &["a"])]);
    assert!(circles(&ancestor).is_empty());
}

/// The imports of every module of a crate, without its unit tests.
fn imports(name: &str) -> Imports {
    let folder = format!("{name}/src/");
    let files: BTreeMap<String, String> = sources("rs")
        .into_iter()
        .filter(|source| !source.is_tests())
        .filter_map(|source| Some((module(source.path.strip_prefix(&folder)?), source.text)))
        .collect();
    let modules: BTreeSet<String> = files.keys().cloned().collect();
    let parsed: Vec<_> = files
        .iter()
        .map(|(module, text)| {
            let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {module}: {error}"));
            (module.clone(), file)
        })
        .collect();
    let exports = parsed.iter().map(|(module, file)| (module.clone(), exports(&file.items))).collect();
    let imported =
        |module: &str, file: syn::File| paths(module, &modules, &exports, without_tests(file.items));
    parsed.into_iter().map(|(module, file)| (module.clone(), imported(&module, file))).collect()
}

/// For each module, the names that it re-exports and the paths they stand for; `*` for a glob.
type Exports = BTreeMap<String, Vec<(String, Vec<String>)>>;

fn exports(items: &[syn::Item]) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for item in items {
        if let syn::Item::Use(item) = item
            && !matches!(item.vis, syn::Visibility::Inherited)
        {
            leaves(&item.tree, &mut Vec::new(), &mut found);
        }
    }
    found
}

fn leaves(tree: &syn::UseTree, prefix: &mut Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    let with = |prefix: &[String], name: &syn::Ident| [prefix, &[name.to_string()]].concat();
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            leaves(&path.tree, prefix, found);
            prefix.pop();
        }
        syn::UseTree::Name(name) => found.push((name.ident.to_string(), with(prefix, &name.ident))),
        syn::UseTree::Rename(rename) => found.push((rename.rename.to_string(), with(prefix, &rename.ident))),
        syn::UseTree::Glob(_) => found.push(("*".to_owned(), prefix.clone())),
        syn::UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, prefix, found)),
    }
}

/// `tls/record.rs` is `tls::record`; `lib.rs` and `main.rs` are the root, an empty name.
fn module(path: &str) -> String {
    let path = path.trim_end_matches(".rs");
    if matches!(path, "lib" | "main") { String::new() } else { path.replace('/', "::") }
}

fn without_tests(items: Vec<syn::Item>) -> TokenStream {
    let is_test = |attribute: &syn::Attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    };
    let tested = |item: &syn::Item| match item {
        syn::Item::Mod(item) => item.attrs.iter().any(is_test),
        syn::Item::Fn(item) => item.attrs.iter().any(is_test),
        syn::Item::Impl(item) => item.attrs.iter().any(is_test),
        syn::Item::Use(item) => item.attrs.iter().any(is_test),
        _ => false,
    };
    items.into_iter().filter(|item| !tested(item)).map(ToTokens::into_token_stream).collect()
}

/// The modules that the paths in `tokens` name, seen from `module`. A path through a re-export
/// counts for the module that re-exports and for the module that defines the item.
fn paths(
    module: &str,
    modules: &BTreeSet<String>,
    exports: &Exports,
    tokens: TokenStream,
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    scan(tokens, &mut |segments| {
        // At most as many re-exports as there are modules, whatever leads to what.
        let mut waiting = vec![absolute(module, segments)];
        for _ in 0..modules.len() {
            let Some(path) = waiting.pop() else { break };
            let length = (0..=path.len()).rev().find(|length| modules.contains(&path[..*length].join("::")));
            let Some(length) = length else { continue };
            let owner = path[..length].join("::");
            for (name, target) in exports.get(&owner).into_iter().flatten() {
                match path.get(length) {
                    Some(used) if used == name => {
                        waiting.push([&absolute(&owner, target)[..], &path[length + 1..]].concat());
                    }
                    Some(_) if name == "*" => {
                        waiting.push([&absolute(&owner, target)[..], &path[length..]].concat());
                    }
                    _ => {}
                }
            }
            found.insert(owner);
        }
    });
    found.remove(module);
    found.retain(|used| !used.is_empty());
    found
}

/// A path from the root of the crate.
fn absolute(module: &str, segments: &[String]) -> Vec<String> {
    let mut own: Vec<String> =
        module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let relative = segments.iter().take_while(|segment| matches!(segment.as_str(), "self" | "super")).count();
    match segments.first().map(String::as_str) {
        Some("crate") => segments[1..].to_vec(),
        Some("self" | "super") => {
            let supers = segments[..relative].iter().filter(|segment| *segment == "super").count();
            own.truncate(own.len().saturating_sub(supers));
            [&own[..], &segments[relative..]].concat()
        }
        _ => [&own[..], segments].concat(), // a child, or no module of ours
    }
}

/// Calls `found` with every path of at least two segments, those of `use` trees spelt out.
fn scan(tokens: TokenStream, found: &mut impl FnMut(&[String])) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => {
                scan(group.stream(), found);
                at += 1;
            }
            TokenTree::Ident(_) => at = path(&tokens, at, &mut Vec::new(), found),
            _ => at += 1,
        }
    }
}

/// Reads one path that starts at `at`, a group of a `use` tree at its end included; gives its end.
fn path(
    tokens: &[TokenTree],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut impl FnMut(&[String]),
) -> usize {
    let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    let length = prefix.len();
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        prefix.push(ident.to_string());
        at += 1;
        if !(colon(at) && colon(at + 1)) {
            break;
        }
        at += 2;
        if let Some(TokenTree::Group(group)) = tokens.get(at) {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut next = 0;
            while next < inner.len() {
                let ident = matches!(inner[next], TokenTree::Ident(_));
                next = if ident { path(&inner, next, prefix, found) } else { next + 1 };
            }
            at += 1;
            break;
        }
    }
    if prefix.len() > 1 {
        found(prefix);
    }
    prefix.truncate(length);
    at
}

/// The sets of modules that reach each other, a child's imports from its ancestors left out.
fn circles(imports: &Imports) -> Vec<Vec<String>> {
    let is_ancestor = |used: &str, module: &str| module.starts_with(&format!("{used}::"));
    let reached: BTreeMap<&String, BTreeSet<&String>> = imports
        .keys()
        .map(|start| {
            let mut seen = BTreeSet::new();
            let mut waiting = vec![start];
            while let Some(module) = waiting.pop() {
                let used = imports.get(module).into_iter().flatten();
                let used = used.filter(|used| !is_ancestor(used, module));
                waiting.extend(used.filter(|used| seen.insert(*used)));
            }
            (start, seen)
        })
        .collect();
    let mut circles = BTreeSet::new();
    for (module, seen) in &reached {
        if seen.contains(module) {
            let both =
                seen.iter().filter(|other| reached.get(*other).is_some_and(|back| back.contains(module)));
            circles.insert(both.map(|module| (*module).clone()).collect::<Vec<_>>());
        }
    }
    circles.into_iter().collect()
}
