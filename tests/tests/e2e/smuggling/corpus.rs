//! The raw requests, each with what the gateway must forward and answer.
//!
//! In a request `{T}` is its target, `{H}` its Host field with the line's end, `{h}` the host, and
//! `{S}` a whole request that must never be served as one. A character stands for one byte
//! (Latin-1).

mod bodies;
mod framing;
mod heads;

/// A request, or several, on one connection; a canary is sent behind them.
pub(super) struct Case {
    pub(super) name: &'static str,
    bytes: String,
    /// The method and the body of each request that is forwarded, in order. All get a 200.
    pub(super) forwarded: Vec<(&'static str, &'static str)>,
    pub(super) end: End,
    /// The readers that answer 400 to what the gateway forwards.
    pub(super) refused_by: &'static [&'static str],
}

/// How the client's connection ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// The canary is served, and gets its own answer.
    Canary,
    /// The gateway ends it without serving the canary.
    Closed,
    /// The gateway answers with this status and ends it.
    Rejected(&'static str),
    /// The gateway answers with this status, and the canary gets its own answer.
    Answered(&'static str),
}

/// Cases of one category.
#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    /// Rejected with this status; nothing is forwarded.
    fn rejected(&mut self, status: &'static str, rows: &[(&'static str, &str)]) {
        for (name, bytes) in rows {
            self.add(name, bytes, &[], End::Rejected(status));
        }
    }

    /// Forwarded with this method and body, and the canary behind it.
    fn forwarded(&mut self, method: &'static str, body: &'static str, rows: &[(&'static str, &str)]) {
        for (name, bytes) in rows {
            self.add(name, bytes, &[(method, body)], End::Canary);
        }
    }

    /// The last cases are not to the taste of these readers, which answer 400.
    fn refused_by(&mut self, readers: &'static [&'static str], cases: usize) {
        self.0.iter_mut().rev().take(cases).for_each(|case| case.refused_by = readers);
    }

    fn add(&mut self, name: &'static str, bytes: &str, forwarded: &[(&'static str, &'static str)], end: End) {
        self.0.push(Case {
            name,
            bytes: bytes.to_owned(),
            forwarded: forwarded.to_vec(),
            end,
            refused_by: &[],
        });
    }
}

pub(super) fn all() -> Vec<Case> {
    let mut table = Table::default();
    framing::add(&mut table);
    bodies::add(&mut table);
    heads::add(&mut table);
    table.0
}

pub(super) fn target(number: usize) -> String {
    format!("/case-{number}")
}

pub(super) fn canary(number: usize) -> String {
    format!("/case-{number}/canary")
}

impl Case {
    /// The bytes of the case and of its canary.
    pub(super) fn bytes(&self, host: &str, number: usize) -> Vec<u8> {
        let smuggled = "GET {T}/smuggled HTTP/1.1\r\nHost: {h}\r\n\r\n";
        let canary = format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", canary(number));
        let text = self.bytes.replace("{S}", smuggled).replace("{H}", "Host: {h}\r\n");
        let text = text.replace("{T}", &target(number)).replace("{h}", host) + &canary;
        text.chars().map(|character| u8::try_from(character).expect("Latin-1")).collect()
    }
}
