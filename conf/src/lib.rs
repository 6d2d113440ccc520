//! The configuration file both planes read: APISIX's keys and ours, with lines, defaults and suggestions.
