//! Converts resources, keys and deltas to protobuf and back.
//!
//! [`chunks()`] splits a delta into messages of bounded size, and a [`DeltaAssembler`] reassembles
//! it completely or not at all. Received resources are checked like documents: the stream is
//! authenticated, but the control plane may have bugs. Law: `resource_from_wire(resource.into()) ==
//! resource`.

mod assembler;
mod chunks;
mod decode;
mod encode;
mod interner;
mod older_nodes;
mod tickets;

pub use assembler::{DeltaAssembler, DeltaLimits, ResourceError};
pub use chunks::{Chunks, chunks};
pub(crate) use decode::resource_from_wire;
pub use older_nodes::{without_plugins, without_upstreams};
use proto::push;
pub use tickets::{tickets_from_wire, tickets_to_wire};

use crate::id::{Id, Key, Kind};
use crate::problem::Problem;

/// Encodes a key.
pub fn key_to_wire(key: &Key) -> push::Key {
    let kind = match key.kind {
        Kind::Ssl => push::Kind::Ssl,
        Kind::Upstream => push::Kind::Upstream,
        Kind::Service => push::Kind::Service,
        Kind::PluginConfig => push::Kind::PluginConfig,
        Kind::Route => push::Kind::Route,
        Kind::StreamRoute => push::Kind::StreamRoute,
        Kind::GlobalRule => push::Kind::GlobalRule,
    };
    push::Key { kind: kind.into(), id: key.id.to_string() }
}

/// Decodes a key.
///
/// # Errors
///
/// An unknown kind, or an invalid id.
pub fn key_from_wire(key: &push::Key) -> Result<Key, Problem> {
    let kind = match push::Kind::try_from(key.kind) {
        Ok(push::Kind::Ssl) => Kind::Ssl,
        Ok(push::Kind::Upstream) => Kind::Upstream,
        Ok(push::Kind::Service) => Kind::Service,
        Ok(push::Kind::PluginConfig) => Kind::PluginConfig,
        Ok(push::Kind::Route) => Kind::Route,
        Ok(push::Kind::StreamRoute) => Kind::StreamRoute,
        Ok(push::Kind::GlobalRule) => Kind::GlobalRule,
        Ok(push::Kind::Unspecified) | Err(_) => {
            return Err(Problem::new("key.kind", format!("kind {} of resource is unknown", key.kind))
                .with_hint("is the control plane of a newer version than the data plane?"));
        }
    };
    Ok(Key::new(kind, Id::parse(&key.id)?))
}

/// The revision that the first delta of a stream starts from, for a node at revision `current.1` of
/// the store `current.0` and a control plane at `newest`. Both ends compute it from `Hello` and
/// `Welcome`. It never exceeds the control plane's revision; which resources the delta contains is
/// decided by versions.
pub fn first_delta_base(current: (&str, u64), newest: (&str, u64)) -> u64 {
    if current.0 == newest.0 && current.1 <= newest.1 { current.1 } else { 0 }
}

#[cfg(test)]
mod tests;
