//! The arguments of a request's query. Of several with one name the first counts.

use std::collections::HashMap;

/// Decoded arguments, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(HashMap<String, String>);

impl Query {
    /// Reads `a=1&b=x%20y`; bytes that are not UTF-8 are replaced. An argument without `=` is
    /// empty.
    pub fn parse(text: Option<&str>) -> Self {
        let mut arguments = HashMap::new();
        for (name, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
            arguments.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        Self(arguments)
    }

    /// The names of the arguments.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The first argument of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
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
        assert_eq!(Query::parse(None).get("a"), None);
    }
}
