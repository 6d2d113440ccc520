//! Puts a delta together from its chunks, whole or not at all.
//!
//! Chunks must come in order, all of one delta before any of the next, starting from the revision
//! the node is at. A delta that breaks a rule of the protocol is refused at once and the rest of it
//! passed over; one with bad resources is refused at its end, so that the control plane learns
//! about all of them.

use std::collections::HashSet;

use prost::Message;
use proto::push;

use super::policy_interner::PolicyInterner;
use super::{key_from_wire, key_to_wire, resource_from_wire};
use crate::delta::{Delta, Versioned};
use crate::id::Key;
use crate::problem::Problem;

/// Most refusals told about one delta.
const ERRORS_MAX: usize = 100;

/// Why a delta is not applied: one resource's problem, or (without a key) the delta's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceError {
    /// Whose problem it is, where that could be read.
    pub key: Option<Key>,
    /// What is wrong.
    pub problem: Problem,
}

impl ResourceError {
    /// As a NACK carries it.
    pub fn to_wire(&self) -> push::Refusal {
        push::Refusal {
            key: self.key.as_ref().map(key_to_wire),
            field: self.problem.field.clone(),
            problem: self.problem.to_string(),
        }
    }

    /// From a NACK. A key that cannot be read is left out: what it says still helps.
    pub fn from_wire(refusal: &push::Refusal) -> ResourceError {
        ResourceError {
            key: refusal.key.as_ref().and_then(|key| key_from_wire(key).ok()),
            problem: Problem::new(&refusal.field, &refusal.problem),
        }
    }
}

/// How much one delta may be before it is refused, whatever it says.
#[derive(Debug, Clone, Copy)]
pub struct DeltaLimits {
    /// All its chunks together, encoded.
    pub bytes: usize,
    /// Upserts and removals together.
    pub resources: usize,
}

impl Default for DeltaLimits {
    /// 8 GiB and four million resources: far above what one node serves, far below no limit.
    fn default() -> DeltaLimits {
        DeltaLimits { bytes: 8 << 30, resources: 4_000_000 }
    }
}

/// Collects the chunks of one delta after the other.
#[derive(Debug)]
pub struct DeltaAssembler {
    at: u64,
    limits: DeltaLimits,
    state: State,
    policies: PolicyInterner,
}

#[derive(Debug)]
enum State {
    Idle,
    Collecting(Box<PartialDelta>),
    /// The rest of a delta that was refused.
    PassingOver {
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
    /// For a node that is at that revision; 0: it holds nothing.
    pub fn new(at: u64) -> DeltaAssembler {
        DeltaAssembler::with_limits(at, DeltaLimits::default())
    }

    /// As [`DeltaAssembler::new`], with other limits.
    pub fn with_limits(at: u64, limits: DeltaLimits) -> DeltaAssembler {
        DeltaAssembler { at, limits, state: State::Idle, policies: PolicyInterner::default() }
    }

    /// Says at which revision the node is now: to be called when a delta was applied. Until then,
    /// the next delta must start where this one did.
    pub fn set_revision(&mut self, revision: u64) {
        self.at = revision;
    }

    /// Takes the next chunk. `Some` when it was the last of a delta, which is now to be applied to
    /// the snapshot of revision [`Delta::from`].
    ///
    /// # Errors
    /// The delta is refused as a whole, for these reasons (at least one, at most 100); none of it
    /// may be applied, and the rest of it will be passed over.
    pub fn push(&mut self, chunk: push::Chunk) -> Result<Option<Delta>, Vec<ResourceError>> {
        let mut partial = match std::mem::replace(&mut self.state, State::Idle) {
            State::PassingOver { from, to } if (chunk.from, chunk.to) == (from, to) => {
                if !chunk.last {
                    self.state = State::PassingOver { from, to };
                }
                return Ok(None);
            }
            State::Idle | State::PassingOver { .. } => Box::new(PartialDelta {
                delta: Delta { from: chunk.from, to: chunk.to, ..Delta::default() },
                ..PartialDelta::default()
            }),
            State::Collecting(partial) => partial,
        };
        let (from, to, last) = (chunk.from, chunk.to, chunk.last);
        let judged = self.check_chunk(&mut partial, &chunk);
        if let Err(problem) = judged.and_then(|()| partial.add_chunk(chunk, &mut self.policies)) {
            if !last {
                self.state = State::PassingOver { from, to };
            }
            return Err(vec![ResourceError { key: None, problem }]);
        }
        if !last {
            self.state = State::Collecting(partial);
            return Ok(None);
        }
        if partial.errors.is_empty() { Ok(Some(partial.delta)) } else { Err(partial.errors) }
    }

    /// The rules of the protocol, and the limits.
    fn check_chunk(&self, partial: &mut PartialDelta, chunk: &push::Chunk) -> Result<(), Problem> {
        let refuse = |why: String| Err(Problem::new("", why));
        let Delta { from, to, .. } = partial.delta;
        if (chunk.from, chunk.to) != (from, to) {
            let other = (chunk.from, chunk.to);
            return refuse(format!("a chunk of delta {other:?} within delta {:?}", (from, to)));
        }
        if from != self.at {
            return refuse(format!("the delta starts from revision {from}, but this node is at {}", self.at));
        }
        if chunk.index != partial.next {
            return refuse(format!("chunk {} came where chunk {} was due", chunk.index, partial.next));
        }
        partial.next = partial.next.saturating_add(1);
        partial.bytes = partial.bytes.saturating_add(chunk.encoded_len());
        if partial.bytes > self.limits.bytes {
            return refuse(format!("the delta is over the limit of {} bytes", self.limits.bytes));
        }
        let resources = partial.keys.len() + chunk.upserts.len() + chunk.removals.len();
        if resources > self.limits.resources {
            return refuse(format!("the delta is over the limit of {} resources", self.limits.resources));
        }
        Ok(())
    }
}

impl PartialDelta {
    fn add_chunk(&mut self, chunk: push::Chunk, policies: &mut PolicyInterner) -> Result<(), Problem> {
        for upsert in chunk.upserts {
            let version = upsert.version;
            let read = upsert
                .resource
                .ok_or_else(|| (None, Problem::new("", "an upsert without a resource")))
                .and_then(resource_from_wire);
            match read {
                Ok(mut resource) => {
                    policies.intern(&mut resource);
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

    /// A key occurs once: otherwise the result would depend on the order.
    fn insert_key(&mut self, key: Key) -> Result<(), Problem> {
        let text = key.to_string();
        if self.keys.insert(key) {
            Ok(())
        } else {
            Err(Problem::new("", format!("{text} occurs twice in the delta")))
        }
    }
}
