//! The push protocol between the planes: the generated code of `proto/*.proto`, and nothing else.
//!
//! `model::wire` converts the messages; besides it only the two ends of the stream
//! (`controlplane::publish`, `dataplane::push_client`) build or read them.

/// `countersign.push.v1`
pub mod push {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
    tonic::include_proto!("countersign.push.v1");

    /// Omits the key.
    impl std::fmt::Debug for KeyPair {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("KeyPair").field("chain", &self.chain).finish_non_exhaustive()
        }
    }

    /// Omits the secret.
    impl std::fmt::Debug for TicketSecret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("TicketSecret").field("from", &self.from).finish_non_exhaustive()
        }
    }
}
