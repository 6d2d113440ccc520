//! Reassembles a delta from its chunks, completely or not at all.
//!
//! Chunks must arrive in order and without those of another delta between, starting from the node's
//! revision. A protocol violation rejects the delta at once and the rest of it is skipped; invalid
//! resources reject it at its end, so that the control plane learns about all of them.

use std::collections::HashSet;

use prost::Message;
use proto::push;

use super::interner::SharedParts;
use super::{key_from_wire, key_to_wire, resource_from_wire};
use crate::id::Key;
use crate::problem::Problem;
use crate::snapshot::{Delta, Versioned};

/// Bounds the reported errors of a delta.
const ERRORS_MAX: usize = 100;

/// Why a delta is rejected: the problem of a resource, or (without a key) of the delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceError {
    /// The resource, if its key could be decoded.
    pub key: Option<Key>,
    /// The problem.
    pub problem: Problem,
}

impl ResourceError {
    /// Encodes the error for a NACK.
    pub fn to_wire(&self) -> push::ResourceError {
        push::ResourceError {
            key: self.key.as_ref().map(key_to_wire),
            field: self.problem.field.clone(),
            problem: self.problem.to_string(),
        }
    }

    /// Decodes the error of a NACK. An invalid key is dropped, because the message still helps.
    pub fn from_wire(error: &push::ResourceError) -> ResourceError {
        ResourceError {
            key: error.key.as_ref().and_then(|key| key_from_wire(key).ok()),
            problem: Problem::new(&error.field, &error.problem),
        }
    }
}

/// Bounds of one delta.
#[derive(Debug, Clone, Copy)]
pub struct DeltaLimits {
    /// The encoded size of all chunks.
    pub bytes: usize,
    /// The number of upserts and removals.
    pub resources: usize,
}

impl Default for DeltaLimits {
    /// 8 GiB and four million resources, far more than one node serves.
    fn default() -> DeltaLimits {
        DeltaLimits { bytes: 8 << 30, resources: 4_000_000 }
    }
}

/// Reassembles one delta after the other.
#[derive(Debug)]
pub struct DeltaAssembler {
    at: u64,
    limits: DeltaLimits,
    state: State,
    shared: SharedParts,
}

#[derive(Debug)]
enum State {
    Idle,
    Collecting(Box<PartialDelta>),
    /// Skips the rest of a rejected delta.
    Skipping {
        from: u64,
        to: u64,
    },
}

#[derive(Debug, Default)]
struct PartialDelta {
    delta: Delta,
    next: u32,
    bytes: usize,
    keys: HashSet<Key>,
    errors: Vec<ResourceError>,
}

impl DeltaAssembler {
    /// Creates an assembler for a node at that revision; 0 for an empty node.
    pub fn new(at: u64) -> DeltaAssembler {
        DeltaAssembler::with_limits(at, DeltaLimits::default())
    }

    /// As [`DeltaAssembler::new`], with other limits.
    pub fn with_limits(at: u64, limits: DeltaLimits) -> DeltaAssembler {
        DeltaAssembler { at, limits, state: State::Idle, shared: SharedParts::default() }
    }

    /// Sets the node's revision after a delta was applied. Until then, the next delta must start
    /// where this one did.
    pub fn set_revision(&mut self, revision: u64) {
        self.at = revision;
    }

    /// Adds the next chunk. `Some` after the last chunk of a delta, which applies to the snapshot
    /// of revision [`Delta::from`].
    ///
    /// # Errors
    ///
    /// The delta is rejected as a whole, for one to 100 errors; the rest of it will be skipped.
    pub fn push(&mut self, chunk: push::Chunk) -> Result<Option<Delta>, Vec<ResourceError>> {
        let mut partial = match std::mem::replace(&mut self.state, State::Idle) {
            State::Skipping { from, to } if (chunk.from, chunk.to) == (from, to) => {
                if !chunk.last {
                    self.state = State::Skipping { from, to };
                }
                return Ok(None);
            }
            State::Idle | State::Skipping { .. } => Box::new(PartialDelta {
                delta: Delta { from: chunk.from, to: chunk.to, ..Delta::default() },
                ..PartialDelta::default()
            }),
            State::Collecting(partial) => partial,
        };
        let (from, to, last) = (chunk.from, chunk.to, chunk.last);
        let checked = self.check_chunk(&mut partial, &chunk);
        if let Err(problem) = checked.and_then(|()| partial.add_chunk(chunk, &mut self.shared)) {
            if !last {
                self.state = State::Skipping { from, to };
            }
            return Err(vec![ResourceError { key: None, problem }]);
        }
        if !last {
            self.state = State::Collecting(partial);
            return Ok(None);
        }
        if partial.errors.is_empty() { Ok(Some(partial.delta)) } else { Err(partial.errors) }
    }

    /// Checks the order of chunks and the limits.
    fn check_chunk(&self, partial: &mut PartialDelta, chunk: &push::Chunk) -> Result<(), Problem> {
        let reject = |why: String| Err(Problem::new("", why));
        let Delta { from, to, .. } = partial.delta;
        if (chunk.from, chunk.to) != (from, to) {
            let other = (chunk.from, chunk.to);
            return reject(format!("a chunk of delta {other:?} within delta {:?}", (from, to)));
        }
        if from != self.at {
            return reject(format!("the delta starts from revision {from}, but this node is at {}", self.at));
        }
        if chunk.index != partial.next {
            return reject(format!("chunk {} came where chunk {} was due", chunk.index, partial.next));
        }
        partial.next = partial.next.saturating_add(1);
        partial.bytes = partial.bytes.saturating_add(chunk.encoded_len());
        if partial.bytes > self.limits.bytes {
            return reject(format!("the delta is over the limit of {} bytes", self.limits.bytes));
        }
        let resources = partial.keys.len() + chunk.upserts.len() + chunk.removals.len();
        if resources > self.limits.resources {
            return reject(format!("the delta is over the limit of {} resources", self.limits.resources));
        }
        Ok(())
    }
}

impl PartialDelta {
    fn add_chunk(&mut self, chunk: push::Chunk, shared: &mut SharedParts) -> Result<(), Problem> {
        for upsert in chunk.upserts {
            let version = upsert.version;
            let read = upsert
                .resource
                .ok_or_else(|| (None, Problem::new("", "an upsert without a resource")))
                .and_then(resource_from_wire);
            match read {
                Ok(mut resource) => {
                    shared.intern(&mut resource);
                    self.insert_key(resource.key())?;
                    self.delta.upserts.push(Versioned { version, resource });
                }
                Err((key, problem)) if self.errors.len() < ERRORS_MAX => {
                    self.errors.push(ResourceError { key, problem });
                }
                Err(_) => {}
            }
        }
        for key in chunk.removals {
            let key = key_from_wire(&key)?;
            self.insert_key(key.clone())?;
            self.delta.removals.push(key);
        }
        Ok(())
    }

    /// Rejects a duplicate key, whose result would depend on the order.
    fn insert_key(&mut self, key: Key) -> Result<(), Problem> {
        let text = key.to_string();
        if self.keys.insert(key) {
            Ok(())
        } else {
            Err(Problem::new("", format!("{text} occurs twice in the delta")))
        }
    }
}
