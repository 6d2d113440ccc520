//! Which events are logged: RUST_LOG, the level of the settings, or a filter set at run time.
//!
//! Invariant: a filter that was set at run time lasts until the settings are applied again.

use tracing::Level;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// The filter without RUST_LOG and without a level in the settings.
const DEFAULT_LEVEL: Level = Level::INFO;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Neither a level nor `target=level`.
    #[error(
        "{0:?} is no level: write off, error, warn, info, debug or trace, or a list such as info,dataplane::push_client=debug"
    )]
    Level(String),
    /// tracing-subscriber does not accept it.
    #[error("{text:?} is no filter: {error}")]
    Syntax {
        /// The text.
        text: String,
        /// Why.
        error: String,
    },
}

/// The filter of the process.
pub(super) struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// That of RUST_LOG, which goes before the settings.
    environment: Option<String>,
}

impl Filter {
    /// The filter of RUST_LOG or the default, and the text of an unusable RUST_LOG.
    pub(super) fn from_env() -> (Self, reload::Layer<EnvFilter, Registry>, Option<FilterError>) {
        let text = std::env::var_os("RUST_LOG").map(|text| text.to_string_lossy().into_owned());
        let (environment, unusable) = match text.filter(|text| !text.is_empty()) {
            None => (None, None),
            Some(text) => match EnvFilter::try_new(&text) {
                Ok(_) => (Some(text), None),
                Err(error) => (None, Some(FilterError::Syntax { text, error: error.to_string() })),
            },
        };
        let filter = EnvFilter::new(environment.as_deref().unwrap_or(DEFAULT_LEVEL.as_str()));
        let (layer, handle) = reload::Layer::new(filter);
        (Self { handle, environment }, layer, unusable)
    }

    /// Applies the level of the settings.
    pub(super) fn apply_settings(&self, level: Option<Level>) {
        let level = level.unwrap_or(DEFAULT_LEVEL);
        let filter = EnvFilter::new(self.environment.as_deref().unwrap_or(level.as_str()));
        let _never_fails = self.handle.reload(filter);
    }

    /// Sets a filter until the settings are applied again.
    pub(super) fn set(&self, text: &str) -> Result<(), FilterError> {
        let _never_fails = self.handle.reload(parse(text)?);
        Ok(())
    }

    pub(super) fn text(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Parses a level or a list of directives. EnvFilter takes each word that is no level for a target.
fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            return Err(FilterError::Level(directive.to_owned()));
        }
    }
    EnvFilter::try_new(text)
        .map_err(|error| FilterError::Syntax { text: text.to_owned(), error: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_a_list() {
        for (text, shown) in
            [("debug", "debug"), ("OFF", "off"), ("info,dataplane=trace", "dataplane=trace,info")]
        {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
        for text in ["", "notice", "debgu", "info,", "dataplane", "dataplane=loud", "info;debug"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("is no level: write off, error"), "{text}: {error}");
        }
        assert!(parse("[=debug").is_err());
    }
}
