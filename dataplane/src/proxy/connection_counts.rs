//! The open TLS connections of a worker, counted by site and client, for operators.
//!
//! Invariant: the worker counts in batches, so that requests between them are not delayed, and what
//! it gives is bounded.

use std::collections::HashMap;

use model::admission::ClientVerification;
use model::{Id, Snapshot, truncated};

use super::client_auth::ClientAuthState;

/// Most groups that a worker gives.
const GROUPS_MAX: usize = 1_000;
/// Most bytes of a subject.
const SUBJECT_MAX: usize = 512;

/// Who a connection is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// `None`: no site has the server name any more.
    pub site: Option<Id>,
    pub client: ClientKey,
}

/// The client of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// The SHA-256 of a verified certificate.
    Verified([u8; 32]),
    /// A certificate was sent, and is not accepted.
    Rejected,
    Anonymous,
}

/// The connections of one site and client.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// The subject of a verified certificate.
    pub subject: Option<String>,
    pub connections: u64,
}

/// The connections of a worker.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// The largest groups.
    pub groups: Vec<(GroupKey, Group)>,
    /// How many groups are left out, and their connections.
    pub other_groups: u64,
    pub other_connections: u64,
}

/// Counts connections.
#[derive(Default)]
pub(super) struct Counting(HashMap<GroupKey, Group>);

impl Counting {
    pub(super) fn add(&mut self, client: &ClientAuthState, snapshot: &Snapshot) {
        let site = snapshot.site(&client.sni).map(|ssl| ssl.id.clone());
        let verification = client.verification();
        let (key, subject) = match &*verification {
            ClientVerification::Verified(verified) => {
                let identity = verified.identity();
                (ClientKey::Verified(*identity.fingerprint_sha256()), Some(identity.subject()))
            }
            ClientVerification::Rejected(_) => (ClientKey::Rejected, None),
            ClientVerification::NoCertificate | ClientVerification::NotRequested => {
                (ClientKey::Anonymous, None)
            }
        };
        let group = self.0.entry(GroupKey { site, client: key }).or_insert_with(|| {
            let subject = subject.map(|subject| truncated(subject, SUBJECT_MAX).into_owned());
            Group { subject, connections: 0 }
        });
        group.connections += 1;
    }

    /// The counts, bounded.
    pub(super) fn finish(self) -> ConnectionCounts {
        let mut groups: Vec<_> = self.0.into_iter().collect();
        groups.sort_unstable_by_key(|(_, group)| std::cmp::Reverse(group.connections));
        let others = groups.split_off(groups.len().min(GROUPS_MAX));
        ConnectionCounts {
            groups,
            other_groups: others.len() as u64,
            other_connections: others.iter().map(|(_, group)| group.connections).sum(),
        }
    }
}
