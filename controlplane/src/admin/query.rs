//! The arguments of a request's query. Of several with one name the first counts.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

/// Characters of a name that a warning repeats, and warnings of one query.
const NAME_MAX: usize = 24;
const UNKNOWN_MAX: usize = 8;

/// Decoded arguments, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    arguments: HashMap<String, String>,
    /// The names of those that are given more than once.
    repeated: BTreeSet<String>,
}

impl Query {
    /// Reads `a=1&b=x%20y`; bytes that are not UTF-8 are replaced. An argument without `=` is
    /// empty.
    pub fn parse(text: Option<&str>) -> Self {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
            match query.arguments.entry(name.into_owned()) {
                Entry::Vacant(slot) => drop(slot.insert(value.into_owned())),
                Entry::Occupied(first) => drop(query.repeated.insert(first.key().clone())),
            }
        }
        query
    }

    /// The first of `names` that is given more than once.
    pub fn repeated<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names.iter().copied().find(|name| self.repeated.contains(*name))
    }

    /// The names of the arguments.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arguments.keys().map(String::as_str)
    }

    /// Warnings of the arguments that are neither `known` nor the caller's key. A long name may be
    /// a pasted key, and is not repeated.
    pub fn unknown(&self, known: &[&str]) -> Vec<String> {
        let mut unknown: Vec<_> =
            self.names().filter(|name| *name != "api_key" && !known.contains(name)).collect();
        unknown.sort_unstable();
        let warning = |name: &str| {
            let length = name.chars().count();
            if length > NAME_MAX {
                return format!("an unknown argument of {length} characters has no effect");
            }
            let near = known.iter().filter(|known| is_near(known, name));
            let near = near.min_by_key(|known| strsim::damerau_levenshtein(known, name));
            let meant = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            format!("unknown argument {name} has no effect{meant}")
        };
        unknown.into_iter().take(UNKNOWN_MAX).map(warning).collect()
    }

    /// The first argument of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.arguments.get(name).map(String::as_str)
    }
}

fn is_near(known: &str, name: &str) -> bool {
    strsim::damerau_levenshtein(known, &name.to_ascii_lowercase()) <= 1 + known.len() / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_decoded_and_the_first_of_a_name_counts() {
        let query = Query::parse(Some("a=1&b=x%20y+z&a=2&flag&=&filter=service_id%3D1%26upstream_id%3D2"));
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.get("b"), Some("x y z"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("filter"), Some("service_id=1&upstream_id=2"));
        assert_eq!(query.get("none"), None);
        assert_eq!((query.repeated(&["b", "flag"]), query.repeated(&["b", "a"])), (None, Some("a")));
        assert_eq!(Query::parse(None).get("a"), None);
    }

    #[test]
    fn an_unknown_argument_is_named_with_the_one_that_was_meant() {
        let unknown = |text| Query::parse(Some(text)).unknown(&["dry_run", "ttl", "wait"]);
        assert_eq!(unknown("dry_run=true&ttl=1&api_key=secret&wait"), Vec::<String>::new());
        for near in ["dryrun", "dry-run", "dryRun", "DRY_RUN", "dr_yrun"] {
            let expected = format!("unknown argument {near} has no effect (did you mean dry_run?)");
            assert_eq!(unknown(near), [expected]);
        }
        assert_eq!(
            unknown("tll=1&pretty"),
            [
                "unknown argument pretty has no effect",
                "unknown argument tll has no effect (did you mean ttl?)"
            ]
        );
        let key = "edd1c9f034335f136f87ad84b625c8f1";
        assert_eq!(unknown(key), ["an unknown argument of 32 characters has no effect"]);
    }
}
