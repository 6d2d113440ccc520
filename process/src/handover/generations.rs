//! The chain of processes: the number of this one, and which earlier ones still drain.
//!
//! A process keeps its end of the hand-over's sockets open until it ends. The other end is its life
//! token: successors hold it, and see by it whether the process still runs, without a process id
//! that another process may get.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::link::is_open;

/// An earlier process that has handed over and still runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainingProcess {
    /// Its process id.
    pub pid: u32,
    /// Its number in the chain.
    pub generation: u64,
}

#[derive(Debug, Clone)]
pub(super) struct LifeToken {
    pub(super) process: DrainingProcess,
    pub(super) token: Arc<OwnedFd>,
}

/// The number of this process in the chain of upgrades, and its predecessors.
#[derive(Debug, Clone)]
pub struct Generations {
    number: u64,
    tokens: Vec<LifeToken>,
}

impl Generations {
    /// Of a process that was not started by a predecessor: number 1.
    pub fn first() -> Self {
        Self { number: 1, tokens: Vec::new() }
    }

    pub(super) fn following(predecessor: u64, tokens: Vec<LifeToken>) -> Self {
        Self { number: predecessor.saturating_add(1), tokens }
    }

    /// The number of this process.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The earlier processes that still run, the oldest first.
    pub fn draining(&self) -> Vec<DrainingProcess> {
        self.open_tokens().map(|token| token.process.clone()).collect()
    }

    pub(super) fn open_tokens(&self) -> impl Iterator<Item = &LifeToken> {
        self.tokens.iter().filter(|token| is_open(&token.token))
    }
}
