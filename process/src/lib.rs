//! What both programs need of the operating system as server processes. Knows nothing of settings,
//! documents or connections.

#![warn(missing_docs)]

pub mod bounded_read;
pub mod core_dumps;
pub mod descriptors;
pub mod signals;
pub mod throttle;

/// The commit this is built from: 12 digits, or what COUNTERSIGN_COMMIT said, or `unknown`.
pub const COMMIT: &str = env!("COUNTERSIGN_COMMIT");

/// What `--version` says after a program's name: version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("COUNTERSIGN_COMMIT"), ")");
/// The same of a build that was optimised with a profile of itself.
pub const VERSION_PROFILED: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("COUNTERSIGN_COMMIT"), ", profile-guided)");
