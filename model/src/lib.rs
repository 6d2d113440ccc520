//! What a resource means. Both planes use this crate, so what the Admin API checks IS what a data plane
//! serves: an accepted document is a checked resource, and no data plane has a reason to refuse it.
//!
//! The walk through the crate: document (Admin JSON) -> resource (checked, typed) -> snapshot
//! (all of them, immutable, with the two lookups of the hot path) -> delta (what changed) -> wire
//! (as protobuf, and back). No IO, no clock: time is always a parameter.

pub mod id;
pub mod problem;

pub mod name;
pub mod pattern;
pub mod uri;

// `resource` needs pki's types: declared as soon as they are there.

pub use id::{Id, Key, Kind};
pub use name::Name;
pub use pattern::{HostPattern, NamePattern, SniPattern};
pub use problem::Problem;
pub use uri::UriPattern;
