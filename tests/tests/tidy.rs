//! Rules about the source, checked like any other behaviour, so no review has to repeat them.
//!
//! Each rule says what to do instead. An exception is named here with its reason, and goes once
//! nothing needs it.

#[path = "tidy/cases.rs"]
mod cases;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/words.rs"]
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// Files up to this many lines have a `//!` comment of one line or more, longer ones two or more.
const SMALL_FILE_LINES: usize = 200;
/// Most lines of a file, without its tests. About 400 is the aim.
const FILE_LINES: usize = 500;
/// Lines of a function, from its signature to its closing brace.
const FUNCTION_LINES: usize = 70;

/// Opens the unit tests of a file.
const UNIT_TESTS: &str = "\n#[cfg(test)]\nmod tests";

/// Words that mark unfinished work or a left-over, and what to do about them.
const BANNED: &[(&str, &str)] = &[
    (concat!("to", "do!("), "write it, or leave the feature out and say so in the docs"),
    (concat!("unimple", "mented!("), "write it, or return a typed error"),
    (concat!("db", "g!("), "use tracing, or remove it"),
    (concat!("FIX", "ME"), "mend it now"),
    (concat!("XX", "X:"), "mend it now"),
    (concat!("#[", "ignore"), "a test that does not run proves nothing"),
];

/// Ways to let time pass; a test waits for an event instead.
const SLEEPS: &[&str] = &[concat!("thread::", "sleep"), concat!("time::", "sleep"), concat!("rt::", "sleep")];

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

impl Source {
    /// The text before the unit tests, which stand last ([`unit_tests_stand_last`]).
    fn code(&self) -> &str {
        if self.is_tests() {
            return "";
        }
        self.text.split_once(UNIT_TESTS).map_or(&self.text, |(code, _)| code)
    }

    fn tests(&self) -> &str {
        if self.is_tests() {
            return &self.text;
        }
        self.text.split_once(UNIT_TESTS).map_or("", |(_, tests)| tests)
    }

    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

/// Every file of the workspace with this extension, build output left out.
fn sources(extension: &str) -> Vec<Source> {
    let root = workspace();
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the workspace can be read") {
            let path = entry.expect("the workspace can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                let skipped = name.starts_with('.') || name == "target" || name.starts_with("demo-run");
                if !skipped {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).expect("a source is UTF-8");
                let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no .{extension} file was found in {}", root.display());
    found
}

fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn every_file_says_what_it_owns() {
    let broken: Vec<_> = sources("rs")
        .into_iter()
        .filter(|source| !source.path.ends_with("/tests.rs")) // these belong to the file they test
        .filter(|source| {
            let lines = source.text.lines().take_while(|line| line.starts_with("//!")).count();
            lines < if source.code().lines().count() <= SMALL_FILE_LINES { 1 } else { 2 }
        })
        .map(|source| source.path)
        .collect();
    assert_none("a file opens with a few `//!` lines: what it owns, where it stands, its invariant", &broken);
}

#[test]
fn unit_tests_stand_last() {
    let mut broken = Vec::new();
    for source in sources("rs").into_iter().filter(|source| source.text.contains(UNIT_TESTS)) {
        let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.path));
        if !matches!(file.items.last(), Some(syn::Item::Mod(last)) if last.ident == "tests") {
            broken.push(source.path);
        }
    }
    assert_none("what stands behind the unit tests is not read as code: move it before them", &broken);
}

#[test]
fn files_are_short() {
    let mut broken = Vec::new();
    for source in sources("rs") {
        let lines = source.code().lines().count();
        if lines > FILE_LINES {
            broken.push(format!("{}: {lines} lines without tests", source.path));
        }
    }
    assert_none("split a long file by subject", &broken);
}

#[test]
fn functions_are_short() {
    let mut broken = Vec::new();
    for source in sources("rs") {
        for (name, lines) in functions(&source.text) {
            if lines > FUNCTION_LINES {
                broken.push(format!("{}::{name}: {lines} lines", source.path));
            }
        }
    }
    assert_none("split a long function", &broken);
}

/// Name and length of every function. Relies on rustfmt: a body ends with a brace at the
/// signature's indentation.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = &line[..line.len() - trimmed.len()];
        let Some(name) = function_name(trimmed) else { continue };
        let end = lines[start..]
            .iter()
            .position(|line| line.strip_prefix(indent).is_some_and(|rest| rest == "}" || rest == "};"));
        // A declaration without a body, or a body on one line, ends before any brace of its own.
        let declared = lines[start..].iter().position(|line| line.ends_with(';') || line.ends_with('}'));
        let opened = lines[start..].iter().position(|line| line.ends_with('{'));
        if let (Some(end), Some(opened)) = (end, opened)
            && declared.is_none_or(|declared| opened < declared)
        {
            found.push((name, end + 1));
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let visible = line.strip_prefix("pub(").and_then(|rest| Some(rest.split_once(") ")?.1));
    let mut rest = visible.unwrap_or(line);
    for prefix in ["pub ", "const ", "async ", "extern \"C\" "] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let name: String =
        rest.strip_prefix("fn ")?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    Some(name)
}

#[test]
fn function_lengths_are_counted() {
    let text = "fn one() -> u8 { 1 }\nfn two(\n    a: u8,\n) {\n    a\n}\ntrait T {\n    fn declared(&self);\n    async fn four() {\n        {\n        }\n    }\n}\n";
    assert_eq!(functions(text), [("two".to_owned(), 5), ("four".to_owned(), 4)]);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut broken = Vec::new();
    for source in sources("rs") {
        for (number, line) in source.text.lines().enumerate() {
            for (word, instead) in BANNED {
                if line.contains(word) {
                    broken.push(format!("{}:{}: `{word}`: {instead}", source.path, number + 1));
                }
            }
        }
    }
    assert_none("words that mark unfinished work", &broken);
}

#[test]
fn unsafe_code_is_nowhere() {
    let keyword = concat!("un", "safe ");
    let mut broken = Vec::new();
    for source in sources("rs") {
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let opens = ["{", "fn", "impl", "trait", "extern"];
            if opens.iter().any(|next| code.contains(&format!("{keyword}{next}"))) {
                broken.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    assert_none("no crate of ours has code the compiler cannot check; find a safe wrapper", &broken);
    let unlinted: Vec<_> = sources("toml")
        .into_iter()
        .filter(|manifest| manifest.path.matches('/').count() == 1 && manifest.path.ends_with("/Cargo.toml"))
        .filter(|manifest| {
            !manifest.text.contains("[lints]\nworkspace = true")
                && !manifest.text.contains("unsafe_code = \"forbid\"")
        })
        .map(|manifest| manifest.path)
        .collect();
    assert_none("every crate takes the workspace's lints", &unlinted);
}

#[test]
fn tests_do_not_sleep() {
    let mut broken = Vec::new();
    for source in sources("rs") {
        let tested = if source.path.starts_with("tests/") { source.text.as_str() } else { source.tests() };
        for line in tested.lines() {
            if SLEEPS.iter().any(|sleep| line.contains(sleep)) {
                broken.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none(
        "a test waits for an event (a channel, a ready line, an acknowledged revision), never for time",
        &broken,
    );
}

#[test]
fn modules_have_no_mod_rs() {
    let broken: Vec<_> = sources("rs")
        .into_iter()
        .map(|source| source.path)
        .filter(|path| path.ends_with("/mod.rs"))
        .collect();
    assert_none("write `foo.rs` beside `foo/`", &broken);
}

#[test]
fn no_key_or_certificate_is_stored() {
    let mut broken = Vec::new();
    for extension in ["pem", "crt", "key", "p12", "der"] {
        broken.extend(files_named(extension));
    }
    assert_none("issue what a test needs with `pki::ca`; no certificate is checked in", &broken);
}

fn files_named(extension: &str) -> Vec<String> {
    let output = std::process::Command::new("git")
        .args(["ls-files", &format!("*.{extension}")])
        .current_dir(workspace())
        .output();
    // Outside a checkout (an unpacked archive) there is no list of tracked files, and nothing to
    // judge.
    let Ok(output) = output else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_crate_uses_only_what_stands_before_it() {
    let order =
        ["pki", "telemetry", "process", "proto", "model", "mtls", "conf", "controlplane", "dataplane"];
    let mut broken = Vec::new();
    for manifest in sources("toml") {
        let Some((folder, "Cargo.toml")) = manifest.path.split_once('/') else { continue };
        let Some(place) = order.iter().position(|name| *name == folder) else { continue };
        let used = manifest.text.split("[dev-dependencies]").next().unwrap_or_default();
        for later in &order[place..] {
            let planes = ["controlplane", "dataplane"];
            let plane_uses_plane = planes.contains(&folder) && planes.contains(later) && folder != *later;
            if used.lines().any(|line| line.starts_with(&format!("{later}.")))
                || plane_uses_plane && used.contains(&format!("\n{later}."))
            {
                broken.push(format!("{}: {later}", manifest.path));
            }
        }
    }
    assert_none(
        "pki <- telemetry <- process <- proto <- model <- mtls <- conf <- the planes, which do not use each other",
        &broken,
    );
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = workspace();
    let mut broken = Vec::new();
    for document in sources_or_none("md") {
        let folder = Path::new(&document.path).parent().unwrap_or(Path::new("")).to_owned();
        for target in links(&document.text) {
            let path = target.split('#').next().unwrap_or_default();
            let external = path.contains("://") || path.starts_with("mailto:");
            if !external && !path.is_empty() && !root.join(&folder).join(path).exists() {
                broken.push(format!("{}: ({target})", document.path));
            }
        }
    }
    assert_none("a link leads to a file of the repository", &broken);
}

#[test]
fn files_that_documents_name_exist() {
    let files: Vec<_> = sources("rs").into_iter().map(|source| source.path).collect();
    let mut broken = Vec::new();
    for document in sources_or_none("md") {
        // A measured result names the files of its time.
        let quoted = document.text.split('`').skip(1).step_by(2);
        let named = quoted.filter(|name| name.ends_with(".rs") && !name.contains([' ', '*', '{', '<']));
        let exists =
            |name: &str| files.iter().any(|file| file == name || file.ends_with(&format!("/{name}")));
        let missing = named.filter(|name| !exists(name));
        if !document.path.starts_with("bench/results/") {
            broken.extend(missing.map(|name| format!("{}: `{name}`", document.path)));
        }
    }
    assert_none("a document names a file where it is now, by its path or the end of it", &broken);
}

fn sources_or_none(extension: &str) -> Vec<Source> {
    let has_any = ["README.md", "docs"].iter().any(|name| workspace().join(name).exists());
    if has_any { sources(extension) } else { Vec::new() }
}

/// The targets of `[text](target)`, outside code blocks.
fn links(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for part in line.split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                found.push(target);
            }
        }
    }
    found
}
