//! `docs/CASES.md` is complete and true.
//!
//! Every case of the sections is a row, and every test that a row names is in the sources.

use std::collections::BTreeSet;

use super::{assert_none, sources};

/// The sections of the page and how many cases each has.
const SECTIONS: &[(char, usize)] = &[
    ('A', 20),
    ('B', 6),
    ('C', 19),
    ('D', 2),
    ('E', 4),
    ('F', 4),
    ('G', 14),
    ('H', 24),
    ('I', 13),
    ('J', 4),
    ('K', 11),
    ('L', 11),
    ('M', 12),
    ('N', 4),
    ('O', 2),
    ('P', 2),
    ('Q', 4),
    ('R', 2),
    ('S', 3),
    ('T', 2),
    ('U', 6),
    ('V', 4),
    ('W', 7),
    ('X', 6),
    ('Y', 11),
];

/// The paragraphs of the contract's sections that the page has, each in one row or several.
const CONTRACT: &[&str] =
    &["6.1", "6.2", "6.3", "6.4", "6.5", "8", "10.1", "10.2", "10.3", "10.4", "10.5", "10.6", "10.7"];

/// `| case | what | test | note |`, split.
fn rows(page: &str) -> Vec<[&str; 4]> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|')).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        <[&str; 4]>::try_from(cells).unwrap_or_else(|cells| panic!("four cells a row: {cells:?}"))
    });
    cells.filter(|[case, ..]| *case != "case").collect()
}

fn page() -> String {
    let found = sources("md").into_iter().find(|source| source.path == "docs/CASES.md");
    found.expect("docs/CASES.md is there").text
}

/// The names of all tests.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources("rs") {
        let mut lines = source.text.lines().map(str::trim_start);
        while let Some(line) = lines.next() {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                // Further attributes may stand in between.
                names.extend(lines.by_ref().take(4).find_map(super::function_name));
            }
        }
    }
    names
}

#[test]
fn every_case_is_a_test_or_a_reason() {
    let page = page();
    let rows = rows(&page);
    let numbered =
        SECTIONS.iter().flat_map(|(letter, count)| (1..=*count).map(move |n| format!("{letter}{n}")));
    let expected: Vec<String> = numbered.collect();
    let cases = rows.iter().map(|[case, ..]| *case).filter(|case| *case != "-");
    let (mut contract, written): (Vec<_>, Vec<_>) =
        cases.partition(|case| case.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(written, expected, "docs/CASES.md: one row a case, in order");
    contract.dedup();
    assert_eq!(contract, CONTRACT, "docs/CASES.md: the contract's paragraphs, in order");

    let tests = tests();
    let mut broken = Vec::new();
    for [case, what, test, note] in rows {
        let row = format!("{case} ({what})");
        if test == "difference" {
            if note.len() < 20 {
                broken.push(format!("{row}: a difference needs its reason"));
            }
            continue;
        }
        for name in test.split(',').map(|name| name.trim().trim_matches('`')) {
            if !tests.contains(name) {
                broken.push(format!("{row}: there is no test `{name}`"));
            }
        }
    }
    assert_none("docs/CASES.md names what is there", &broken);
}

#[test]
fn a_false_row_would_be_found() {
    assert!(tests().contains("every_case_is_a_test_or_a_reason"));
    assert!(!tests().contains("rows"), "only tests count");
    assert_eq!(
        rows("| case | what | test | note |\n|---|---|---|---|\n| A1 | x | `y` | |\n"),
        [["A1", "x", "`y`", ""]]
    );
}

/// `case_a05_...`
fn is_numbered(test: &str) -> bool {
    let letter =
        test.strip_prefix("case_").and_then(|rest| rest.strip_prefix(|c: char| c.is_ascii_lowercase()));
    letter.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
}

/// Every test that carries a number is named by a row, so a rename or a split cannot lose it.
#[test]
fn every_numbered_test_is_in_the_table() {
    let page = page();
    let missing: Vec<String> = tests()
        .into_iter()
        .filter(|test| is_numbered(test) && !page.contains(&format!("`{test}`")))
        .collect();
    assert_none("name the test in docs/CASES.md, in the rows of its cases", &missing);
}
