//! What both programs need of the operating system as server processes. Independent of settings,
//! documents and connections.

#![warn(missing_docs)]

pub mod bounded_read;
pub mod control_socket;
pub mod core_dumps;
pub mod descriptors;
pub mod handover;
pub mod signals;
pub mod socket_activation;
pub mod throttle;
pub mod unix_path;
pub mod user;

/// The commit of [`VERSION`].
pub const COMMIT: &str = env!("COUNTERSIGN_COMMIT");
/// The output of `--version` after the program's name: version and commit. The commit has 12
/// digits, or is the value of COUNTERSIGN_COMMIT, or `unknown`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("COUNTERSIGN_COMMIT"), ")");
/// The same for a profile-guided build.
pub const VERSION_PROFILED: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("COUNTERSIGN_COMMIT"), ", profile-guided)");
