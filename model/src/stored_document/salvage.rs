//! Salvages the matchers of a text that APISIX may accept as a document and [`crate::json::parse`]
//! rejects: invalid UTF-8, duplicate members, lone surrogates, deep nesting, `0x10`, a missing end.
//!
//! The reader follows lua-cjson, where the last of duplicate members counts. Invariant: a salvaged
//! document only blocks ([`super::compile_salvaged`]) and is never served; members other than the
//! matchers are not copied, because they may hold private keys.

use serde_json::{Map, Number, Value};

/// The members that select traffic, of all kinds.
const MATCHERS: [&str; 15] = [
    "type",
    "sni",
    "snis",
    "uri",
    "uris",
    "host",
    "hosts",
    "methods",
    "remote_addr",
    "remote_addrs",
    "server_addr",
    "server_port",
    "priority",
    "status",
    "service_id",
];

/// Nesting depth that is read within a matcher; no matcher is nested deeper.
const LEVELS: usize = 4;

/// The readable part of a text that is no valid document.
#[derive(Clone, Debug, PartialEq)]
pub struct SalvagedDocument {
    /// An object with the matchers only.
    matchers: Value,
    /// Whether the text is one complete object, which APISIX may obey.
    whole: bool,
}

impl SalvagedDocument {
    /// Reads a stored value; `None` unless an object begins.
    pub fn read(text: &[u8]) -> Option<Self> {
        let mut reader = Reader { rest: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) };
        reader.eat(b'{').then(|| {
            let mut members = Map::new();
            let whole = reader.members(&mut members, LEVELS, &|name| MATCHERS.contains(&name));
            Self { matchers: Value::Object(members), whole: whole && reader.peek().is_none() }
        })
    }

    /// The matchers, as an object.
    pub fn matchers(&self) -> &Value {
        &self.matchers
    }

    /// Whether the text is one complete object.
    pub fn is_complete(&self) -> bool {
        self.whole
    }
}

/// A lenient JSON reader. Methods that return a `bool` tell whether the element was complete.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next byte after whitespace.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let matches = self.peek() == Some(byte);
        if matches {
            self.take(1);
        }
        matches
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at_checked(count).unwrap_or((self.rest, &[]));
        self.rest = rest;
        taken
    }

    /// Reads the wanted members of an object, after its `{`.
    fn members(
        &mut self,
        into: &mut Map<String, Value>,
        levels: usize,
        wanted: &dyn Fn(&str) -> bool,
    ) -> bool {
        if self.eat(b'}') {
            return true;
        }
        loop {
            let Some(name) = self.string() else { return false };
            let name = text(name);
            if !self.eat(b':') {
                return false;
            }
            let whole = if wanted(&name) {
                let (value, whole) = self.value(levels);
                into.insert(name, value);
                whole
            } else {
                self.skip()
            };
            match (whole, self.eat(b',')) {
                (true, true) => {}
                (whole, _) => return whole && self.eat(b'}'),
            }
        }
    }

    /// Reads the items of an array, after its `[`.
    fn items(&mut self, into: &mut Vec<Value>, levels: usize) -> bool {
        if self.eat(b']') {
            return true;
        }
        loop {
            let (item, whole) = self.value(levels);
            into.push(item);
            match (whole, self.eat(b',')) {
                (true, true) => {}
                (whole, _) => return whole && self.eat(b']'),
            }
        }
    }

    fn value(&mut self, levels: usize) -> (Value, bool) {
        match self.peek() {
            Some(b'{' | b'[') if levels == 0 => (Value::Null, self.skip()),
            Some(b'{') => {
                let mut members = Map::new();
                self.take(1);
                let whole = self.members(&mut members, levels - 1, &|_| true);
                (Value::Object(members), whole)
            }
            Some(b'[') => {
                let mut items = Vec::new();
                self.take(1);
                let whole = self.items(&mut items, levels - 1);
                (Value::Array(items), whole)
            }
            Some(b'"') => self.string().map_or((Value::Null, false), |found| (text(found).into(), true)),
            Some(_) => {
                let word = self.word();
                (plain(word), !word.is_empty())
            }
            None => (Value::Null, false),
        }
    }

    /// Skips a value of any depth.
    fn skip(&mut self) -> bool {
        let mut open = 0_usize;
        loop {
            match self.peek() {
                None => return false,
                Some(b'"') if self.string().is_none() => return false,
                Some(b'"') => {}
                Some(b'{' | b'[') => {
                    self.take(1);
                    open += 1;
                }
                Some(b'}' | b']') if open == 0 => return false,
                Some(b'}' | b']') => {
                    self.take(1);
                    open -= 1;
                }
                Some(b',' | b':') if open == 0 => return false,
                Some(b',' | b':') => drop(self.take(1)),
                Some(_) => drop(self.word()),
            }
            if open == 0 {
                return true;
            }
        }
    }

    /// The raw text between two quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        if !self.eat(b'"') {
            return None;
        }
        let mut escaped = false;
        let end = self.rest.iter().position(|byte| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        })?;
        let body = self.take(end);
        self.take(1);
        Some(body)
    }

    /// A number, `true`, `null`, or any other text up to the next delimiter.
    fn word(&mut self) -> &'a [u8] {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b",:]}[{\"".contains(byte);
        let end = self.rest.iter().position(ends).unwrap_or(self.rest.len());
        self.take(end)
    }
}

/// Unescapes a string. Invalid UTF-8 and lone surrogates become U+FFFD.
fn text(body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let mut units: Vec<u16> = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        let meant = match escaped.unwrap_or(c) {
            'u' if escaped.is_some() => {
                let digits = chars.as_str().get(..4).unwrap_or_default();
                chars = chars.as_str().get(digits.len()..).unwrap_or_default().chars();
                // Surrogates are paired by `from_utf16_lossy` below.
                units.push(u16::from_str_radix(digits, 16).unwrap_or(0xfffd));
                continue;
            }
            'b' if escaped.is_some() => '\u{8}',
            't' if escaped.is_some() => '\t',
            'n' if escaped.is_some() => '\n',
            'f' if escaped.is_some() => '\u{c}',
            'r' if escaped.is_some() => '\r',
            itself => itself,
        };
        units.extend_from_slice(meant.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16_lossy(&units)
}

/// Parses a bare word as lua-cjson does, with hexadecimal and unbounded numbers.
fn plain(word: &[u8]) -> Value {
    let word = String::from_utf8_lossy(word);
    let number = |text: &str| {
        let (sign, digits) = text.strip_prefix('-').map_or((1.0, text), |digits| (-1.0, digits));
        let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
        let size = match hexadecimal {
            Some(digits) => u64::from_str_radix(digits, 16).ok().map(|number| number as f64),
            None => digits.parse::<f64>().ok(),
        };
        size.map(|size| sign * size)
    };
    match &*word {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        // Integers stay integers, because ports and ids are read as such.
        other => other.parse::<i64>().map(Value::from).unwrap_or_else(|_| {
            let bounded = number(other).map(|number| number.clamp(f64::MIN, f64::MAX));
            let whole = bounded.filter(|number| number.fract() == 0.0 && number.abs() < 9e15);
            let exact = whole.map(|number| Number::from(number as i64));
            exact.or_else(|| bounded.and_then(Number::from_f64)).map_or(Value::Null, Value::Number)
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: impl AsRef<[u8]>) -> (Value, bool) {
        let salvaged = SalvagedDocument::read(text.as_ref()).unwrap();
        (salvaged.matchers, salvaged.whole)
    }

    #[test]
    fn matchers_are_read_as_lua_cjson_reads_them() {
        let deep = format!("{{\"vars\": {}1{}, \"uri\": \"/a\"}}", "[".repeat(100_000), "]".repeat(100_000));
        for (text, expected) in [
            (&b"{\"desc\": \"caf\xe9\", \"uri\": \"/a\"}"[..], json!({"uri": "/a"})),
            (br#"{"uri": "/old", "key": "k", "uri": "/a"}"#, json!({"uri": "/a"})),
            (br#"{"desc": "\ud800", "uri": "\/\u0061"}"#, json!({"uri": "/a"})),
            (
                br#"{"uri": "\ud800a", "u\u0072is": ["\ud83d\ude00\\\"\n"]}"#,
                json!({"uri": "\u{fffd}a", "uris": ["\u{1f600}\\\"\n"]}),
            ),
            (deep.as_bytes(), json!({"uri": "/a"})),
            (
                br#"{"priority": 0x10, "server_port": 443, "status": 0x0}"#,
                json!({"priority": 16, "server_port": 443, "status": 0}),
            ),
            (br#"{"priority": 1e999, "x": NaN, "y": -Infinity}"#, json!({"priority": f64::MAX})),
            (
                b"\xef\xbb\xbf {\"snis\": [\"a.test\", \"b.test\"], \"hosts\": null}\r\n",
                json!({"snis": ["a.test", "b.test"], "hosts": null}),
            ),
        ] {
            assert_eq!(read(text), (expected, true), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn truncated_text_gives_the_matchers_before_its_end() {
        for (text, expected) in [
            (r#"{"uri": "/a", "plugins": {"key-a"#, json!({"uri": "/a"})),
            (r#"{"uri": "/a", "hosts": ["a.test", "b"#, json!({"uri": "/a", "hosts": ["a.test", null]})),
            (r#"{"uri": "/a"} x"#, json!({"uri": "/a"})),
            (r#"{"uri": "/a" "host": "b"}"#, json!({"uri": "/a"})),
            ("{", json!({})),
        ] {
            assert_eq!(read(text), (expected, false), "{text}");
        }
        for none in ["", "init_dir", "[1]", "\"x\"", "null", "7"] {
            assert_eq!(SalvagedDocument::read(none.as_bytes()), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(text in "[{}\\[\\],:\"\\\\u0-9a-e \u{0}é-]{0,60}") {
            SalvagedDocument::read(format!("{{\"uri\":{text}").as_bytes());
        }

        /// The lenient reader agrees with the strict parser on valid JSON.
        #[test]
        fn valid_json_is_read_like_by_the_strict_parser(uri in any::<String>(), hosts in prop::collection::vec(any::<String>(), 0..3), priority in any::<i32>()) {
            let document = json!({"uri": uri, "hosts": hosts, "priority": priority});
            prop_assert_eq!(read(document.to_string()), (document, true));
        }
    }
}
