//! The part of a long list that an answer has: `page` and `page_size`, as in the Admin API.

use http::{HeaderName, HeaderValue};
use serde_json::Value;
use telemetry::status::PageReply;

use super::json_reply;

/// Most entries of an answer, and how many it has without `page_size`.
const SIZE_MAX: usize = 10_000;
/// How many entries there are altogether.
const TOTAL: HeaderName = HeaderName::from_static("x-total-count");

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageQuery {
    page: usize,
    size: usize,
}

impl PageQuery {
    /// # Errors
    /// What is wrong with the query.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut parsed = Self { page: 1, size: SIZE_MAX };
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let number = || value.parse::<usize>().ok().filter(|number| *number > 0);
            match name.as_ref() {
                "page" => parsed.page = number().ok_or("page: expected a number from 1 on")?,
                "page_size" => {
                    let size = number().filter(|size| *size <= SIZE_MAX);
                    parsed.size = size.ok_or_else(|| format!("page_size: expected 1 to {SIZE_MAX}"))?;
                }
                _ => return Err("the arguments are page and page_size".to_owned()),
            }
        }
        Ok(parsed)
    }

    /// The entries of this page.
    pub(super) fn of<T>(self, entries: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        entries.skip(self.page.saturating_sub(1).saturating_mul(self.size)).take(self.size)
    }

    /// A list of these entries, with the number of all in a header.
    pub(super) fn reply(self, total: usize, entries: impl Iterator<Item = Value>) -> PageReply {
        let mut answer = json_reply(&self.of(entries).collect());
        answer.headers_mut().insert(TOTAL, HeaderValue::from(total));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded() {
        let page = |query| PageQuery::parse(Some(query));
        let of = |query, count| page(query).unwrap().of(0..count).collect::<Vec<usize>>();
        assert_eq!(of("page=2&page_size=2", 5), [2, 3]);
        assert_eq!(of("page=4&page_size=2", 5), [0; 0]);
        assert_eq!(of("", 20_000).len(), SIZE_MAX);
        assert_eq!(of("page=18446744073709551615", 5), [0; 0]);
        for query in ["page=0", "page_size=10001", "page=x", "pages=1"] {
            assert!(page(query).is_err(), "{query}");
        }
    }
}
