//! Names and prose: comments in 100 columns, no word that the glossary bans, one type a name,
//! and test names that fit on a line.

use std::collections::BTreeMap;

use super::{assert_none, sources, workspace};

/// Columns of a line with nothing but a comment. rustfmt wraps code, but not these.
const COMMENT_COLUMNS: usize = 100;
/// Letters of a test's name.
const TEST_NAME_LETTERS: usize = 60;

#[test]
fn comments_fit_in_their_columns() {
    let mut broken = Vec::new();
    for source in sources("rs") {
        for (number, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COMMENT_COLUMNS && comment(line).is_some_and(|comment| !is_link(comment)) {
                broken.push(format!("{}:{}: {columns} columns", source.path, number + 1));
            }
        }
    }
    assert_none("wrap comments at 100 columns", &broken);
}

/// The comment of a line, behind its code if there is any. A quote behind the mark ends a string
/// that contains it.
fn comment(line: &str) -> Option<&str> {
    let opens = |at: &usize| {
        let (code, comment) = line.split_at(*at);
        code.chars().next_back().is_none_or(char::is_whitespace)
            && code.matches('"').count() % 2 == 0
            && (code.trim().is_empty() || !comment.contains('"'))
    };
    let marks = ["//", "/*"].iter().flat_map(|mark| line.match_indices(mark)).map(|(at, _)| at);
    marks.filter(opens).min().map(|at| &line[at..])
}

/// A comment of one word cannot be wrapped.
fn is_link(comment: &str) -> bool {
    comment.trim_start_matches(['/', '!']).split_whitespace().count() == 1
}

#[test]
fn comments_are_found() {
    assert_eq!(comment("let a = 1; // one"), Some("// one"));
    assert_eq!(comment("    /* one */"), Some("/* one */"));
    assert_eq!(comment("    /// a \"quoted\" word"), Some("/// a \"quoted\" word"));
    assert_eq!(comment("let a = \"http://a // b\";"), None);
    assert_eq!(comment("  a line of a string with http://a"), None);
}

#[test]
fn banned_words_are_not_used() {
    let page = std::fs::read_to_string(workspace().join("docs/GLOSSARY.md")).expect("the page exists");
    let banned = banned(&page);
    assert!(banned.len() > 20, "the glossary's column of banned words was not found: {banned:?}");
    let mut broken = Vec::new();
    for source in sources("rs").into_iter().filter(|source| source.path.contains("/src/")) {
        for (number, line) in source.text.lines().enumerate() {
            for word in words(line) {
                let singular = word.strip_suffix('s').unwrap_or(&word);
                if let Some(instead) = banned.get(word.as_str()).or_else(|| banned.get(singular)) {
                    let place = format!("{}:{}", source.path, number + 1);
                    broken.push(format!("{place}: `{word}`: write {instead}"));
                }
            }
        }
    }
    assert_none("docs/GLOSSARY.md bans these words", &broken);
}

/// Banned word -> the word to write, from the rows `| word | meaning | banned, banned |`.
fn banned(page: &str) -> BTreeMap<String, String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'))
        .filter_map(|row| <[&str; 3]>::try_from(row.split('|').map(str::trim).collect::<Vec<_>>()).ok())
        .filter(|[word, _, _]| *word != "word" && !word.starts_with('-'))
        .flat_map(|[word, _, banned]| {
            let banned = banned.split(',').map(str::trim).filter(|banned| !banned.is_empty());
            banned.map(|banned| (banned.to_lowercase(), word.to_owned())).collect::<Vec<_>>()
        })
        .collect()
}

/// The words of a line in lower case; `HangUp` and `hang_up` are the words `hang` and `up`, and
/// `TLSHangUp` has the word `tls`, too.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut before = ' ';
    let mut letters = line.chars().chain([' ']).peekable();
    while let Some(letter) = letters.next() {
        let ends_acronym = before.is_uppercase() && letters.peek().is_some_and(|next| next.is_lowercase());
        let starts = letter.is_uppercase() && (before.is_lowercase() || ends_acronym);
        if (!letter.is_alphabetic() || starts) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if letter.is_alphabetic() {
            word.extend(letter.to_lowercase());
        }
        before = letter;
    }
    words
}

#[test]
fn words_are_split() {
    assert_eq!(
        words("let hang_up = HangUp::new(); // Nobody's TLSPump"),
        ["let", "hang", "up", "hang", "up", "new", "nobody", "s", "tls", "pump"]
    );
    let page =
        "| word | means | not |\n|---|---|---|\n| client | who connects | caller, guest |\n| a | b | |\n";
    let expected = [("caller", "client"), ("guest", "client")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(banned(page), expected.into());
}

#[test]
fn types_of_a_crate_have_names_of_their_own() {
    let mut types: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for source in sources("rs").into_iter().filter(|source| source.path.contains("/src/")) {
        let Some((name, _)) = source.path.split_once("/src/") else { continue };
        let file = syn::parse_file(source.code()).unwrap_or_else(|error| panic!("{}: {error}", source.path));
        for ident in types_of(&file.items) {
            types.entry((name.to_owned(), ident)).or_default().push(source.path.clone());
        }
    }
    let broken: Vec<_> = types
        .into_iter()
        .filter(|(_, files)| files.len() > 1)
        .map(|((_, name), files)| format!("{name}: {}", files.join(", ")))
        .collect();
    assert_none("two types of one crate have one name: rename one", &broken);
}

/// The names of the types in `items` and in the modules among them.
fn types_of(items: &[syn::Item]) -> Vec<String> {
    let names = |item: &syn::Item| match item {
        syn::Item::Struct(item) => vec![item.ident.to_string()],
        syn::Item::Enum(item) => vec![item.ident.to_string()],
        syn::Item::Trait(item) => vec![item.ident.to_string()],
        syn::Item::Type(item) => vec![item.ident.to_string()],
        syn::Item::Union(item) => vec![item.ident.to_string()],
        syn::Item::Mod(item) => types_of(item.content.as_ref().map_or(&[], |(_, items)| items)),
        _ => Vec::new(),
    };
    items.iter().flat_map(names).collect()
}

#[test]
fn test_names_are_short() {
    let mut broken = Vec::new();
    for source in sources("rs") {
        let mut is_test = false;
        for line in source.text.lines().map(str::trim_start) {
            if let Some(name) = super::function_name(line) {
                if is_test && name.len() > TEST_NAME_LETTERS {
                    broken.push(format!("{}: {name}: {} letters", source.path, name.len()));
                }
                is_test = false;
            }
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        }
    }
    assert_none("a test's name says what is tested in at most 60 letters", &broken);
}
