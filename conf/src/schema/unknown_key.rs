//! The error about a key that no row has.

use super::KEYS;

/// `unknown key` with the nearest known one: a similar sibling, else the same key elsewhere.
pub(super) fn unknown_key(parent: &str, name: &str) -> String {
    let prefix = if parent.is_empty() { String::new() } else { format!("{parent}.") };
    let siblings = KEYS.iter().filter_map(|(known, _)| known.strip_prefix(prefix.as_str()));
    let nearest = siblings
        .map(|rest| rest.split(['.', '[']).next().unwrap_or(rest))
        .map(|sibling| (strsim::damerau_levenshtein(sibling, name), sibling))
        .min();
    if let Some((distance, sibling)) = nearest
        && distance <= 1 + name.len() / 4
    {
        return format!("unknown key (did you mean {sibling}?)");
    }
    let elsewhere = KEYS.iter().find_map(|(known, _)| {
        let mut path = Vec::new();
        for part in known.split('.') {
            path.push(part.trim_end_matches("[]"));
            if part.trim_end_matches("[]") == name {
                return Some(path.join("."));
            }
        }
        None
    });
    match elsewhere {
        Some(path) => format!("unknown key (it belongs at {path}; is the indentation right?)"),
        None => "unknown key; remove it, or see conf/config.yaml.example for the keys there are".into(),
    }
}
