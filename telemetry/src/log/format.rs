//! The lines of the error log: text, or one JSON object each.
//!
//! Invariant: an event is one line, whatever its fields contain: control characters are escaped. In
//! an object the keys `time`, `level`, `target` and `message` are the log's own.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The keys that a field of an event cannot have.
const OWN_KEYS: [&str; 4] = ["time", "level", "target", "message"];
/// The target of lines that are no events: a panic, an error that ends the program, lost lines.
const OWN_TARGET: &str = "telemetry::log";

static FORMAT: OnceLock<LogFormat> = OnceLock::new();
/// Whether lines have colours: the log is a terminal.
static HAS_COLOURS: AtomicBool = AtomicBool::new(false);

/// The form of the programs' own log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, target, message and fields.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The names in the order of the variants.
    pub const NAMES: [&str; 2] = ["text", "json"];
}

impl FromStr for LogFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat(name.to_owned())),
        }
    }
}

/// A name of no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no format of the log: write text or json")]
pub struct UnknownFormat(String);

/// Sets the format of this process, once.
pub(super) fn set(format: LogFormat) {
    let _first_one_stays = FORMAT.set(format);
}

pub(super) fn set_colours(has_colours: bool) {
    HAS_COLOURS.store(has_colours, Ordering::Relaxed);
}

fn current() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}

/// A line that is no event, with its line break. As text it is the bare message, whose line breaks
/// stay.
pub(super) fn line(level: Level, message: &dyn Display) -> String {
    line_as(current(), level, message)
}

fn line_as(format: LogFormat, level: Level, message: &dyn Display) -> String {
    let message = message.to_string();
    match format {
        LogFormat::Text => escape(&message, |char| char == '\n' || char == '\t') + "\n",
        LogFormat::Json => {
            let mut object = object(level, OWN_TARGET);
            object.insert("message".to_owned(), message.into());
            json_line(object)
        }
    }
}

/// The line about lines that the error log has lost.
pub(super) fn dropped_line(missing: u64) -> String {
    let text = format_args!(
        "{missing} log lines were dropped: the log could not be written, or its reader was too slow"
    )
    .to_string();
    line(Level::WARN, &text)
}

/// A formatted event as one line.
pub(super) fn as_one_line(event: &str) -> String {
    let text = event.strip_suffix('\n').unwrap_or(event);
    // Values are without escape characters: tracing-subscriber removes them.
    let has_colours = HAS_COLOURS.load(Ordering::Relaxed);
    escape(text, |char| char == '\x1b' && has_colours) + "\n"
}

/// Replaces control characters that are not allowed.
fn escape(text: &str, allowed: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len() + 1);
    for char in text.chars() {
        if char.is_control() && !allowed(char) {
            escaped.extend(char.escape_default());
        } else {
            escaped.push(char);
        }
    }
    escaped
}

fn object(level: Level, target: &str) -> Map<String, Value> {
    let time = format!("{:.6}", Timestamp::now());
    Map::from_iter([
        ("time".to_owned(), time.into()),
        ("level".to_owned(), level.as_str().into()),
        ("target".to_owned(), target.into()),
    ])
}

fn json_line(object: Map<String, Value>) -> String {
    let json = Value::Object(object).to_string();
    if !json.chars().any(char::is_control) {
        return json + "\n";
    }
    // JSON allows DEL and the C1 controls within strings; a terminal may act on them.
    let mut escaped = String::with_capacity(json.len() + 16);
    for char in json.chars() {
        if char.is_control() {
            // A write to a string does not fail.
            let _infallible = write!(escaped, "\\u{:04x}", u32::from(char));
        } else {
            escaped.push(char);
        }
    }
    escaped + "\n"
}

/// Formats events in the format of the process.
#[derive(Debug, Default)]
pub(super) struct EventFormat {
    text: Format<Full>,
    /// In place of that of the process.
    #[cfg(test)]
    format: Option<LogFormat>,
}

impl EventFormat {
    #[cfg(not(test))]
    fn format(&self) -> LogFormat {
        current()
    }

    #[cfg(test)]
    fn format(&self) -> LogFormat {
        self.format.unwrap_or_else(current)
    }
}

impl<S, N> FormatEvent<S, N> for EventFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.format() == LogFormat::Text {
            return self.text.format_event(context, writer, event);
        }
        let metadata = event.metadata();
        let mut fields = JsonFields(object(*metadata.level(), metadata.target()));
        event.record(&mut fields);
        writer.write_str(&json_line(fields.0))
    }
}

struct JsonFields(Map<String, Value>);

impl JsonFields {
    fn insert(&mut self, field: &Field, value: Value) {
        let name = field.name();
        let name = name.strip_prefix("r#").unwrap_or(name);
        let is_own = OWN_KEYS.contains(&name) && name != "message";
        let key = if is_own { format!("field_{name}") } else { name.to_owned() };
        self.0.insert(key, value);
    }
}

impl Visit for JsonFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // Infinity and NaN are no JSON numbers.
        let number = serde_json::Number::from_f64(value);
        self.insert(field, number.map_or_else(|| value.to_string().into(), Value::Number));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What the log has after these events.
    fn logged(format: LogFormat, events: impl FnOnce()) -> String {
        let lines = Arc::<Mutex<String>>::default();
        let writer = {
            let lines = Arc::clone(&lines);
            move || Lines(Arc::clone(&lines))
        };
        let format = EventFormat { text: Format::default(), format: Some(format) };
        let layer =
            tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).event_format(format);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        lines.lock().unwrap().clone()
    }

    struct Lines(Arc<Mutex<String>>);

    impl std::io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push_str(&as_one_line(std::str::from_utf8(line).unwrap()));
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str =
        "a\"b\\c\n2026-01-01T00:00:00Z  INFO forged: line\r\x1b[2J\x00\x7f\u{9b}31m\u{fffd}é";

    fn hostile_events() {
        let error = std::io::Error::other(HOSTILE);
        tracing::warn!(subject = HOSTILE, %error, ?error, time = HOSTILE, level = 7, "client {HOSTILE}");
    }

    #[test]
    fn a_hostile_value_forges_no_line_of_text() {
        let text = logged(LogFormat::Text, hostile_events);
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.contains("forged: line") && line.contains('é'), "{line}");
    }

    #[test]
    fn a_hostile_value_forges_no_json_line() {
        let text = logged(LogFormat::Json, || {
            hostile_events();
            tracing::error!(target: "other", count = 3, ratio = 0.5, none = f64::NAN, ok = true, low = -1, "end");
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() == 2 && !text.replace('\n', "").chars().any(char::is_control), "{text}");
        let hostile = &lines[0];
        assert_eq!(hostile["message"], format!("client {HOSTILE}"));
        assert_eq!(hostile["subject"], HOSTILE);
        assert_eq!(hostile["level"], "WARN");
        assert_eq!((&hostile["field_time"], &hostile["field_level"]), (&HOSTILE.into(), &7.into()));
        assert!(hostile["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
        assert_eq!(hostile["time"].as_str().unwrap().len(), "2026-01-01T00:00:00.000000Z".len());
        assert!(hostile["target"].as_str().unwrap().starts_with("telemetry::log"));
        let end = &lines[1];
        assert_eq!((&end["target"], &end["count"], &end["ratio"]), (&"other".into(), &3.into(), &0.5.into()));
        assert_eq!((&end["none"], &end["ok"], &end["low"]), (&"NaN".into(), &true.into(), &(-1).into()));
    }

    #[test]
    fn lines_that_are_no_events_follow_the_format() {
        let text = line_as(LogFormat::Text, Level::ERROR, &"first\nsecond \x1b[2J");
        assert_eq!(text, "first\nsecond \\u{1b}[2J\n");
        let json = line_as(LogFormat::Json, Level::ERROR, &"first\nsecond");
        assert_eq!(json.matches('\n').count(), 1);
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["level"], &json["message"]), (&"ERROR".into(), &"first\nsecond".into()));
        assert!(dropped_line(7).starts_with("7 log lines were dropped"));
    }

    #[test]
    fn formats_have_names() {
        let parsed = LogFormat::NAMES.map(|name| name.parse());
        assert_eq!(parsed, [Ok(LogFormat::Text), Ok(LogFormat::Json)]);
        assert!("xml".parse::<LogFormat>().unwrap_err().to_string().contains("text or json"));
    }
}
