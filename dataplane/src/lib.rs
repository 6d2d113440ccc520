//! The data plane: terminates TLS, verifies clients, routes and proxies.
//!
//! One thread a core, each with its own io_uring runtime; one more for the push client, which keeps
//! the snapshot up to date. The folders stand in the order of their imports: each uses only those
//! before it (`tests/tests/tidy/layers.rs` checks that). `docs/WALKS.md` follows a connection
//! through them.

mod runtime;

mod lifecycle;

mod observability;

mod io;

mod tls;

mod http;

mod upstream;

mod filters;

mod tcp;

mod proxy;

mod push_client;

mod config;

mod status;

mod server;

/// Why things end badly: the closed list of `model`, which the control plane explains by.
use model::reason;
pub use server::main;

/// What benches, fuzz targets and integration tests drive: single stages, without a process.
pub mod testing {
    pub mod config {
        pub use crate::config::*;
    }
    pub mod runtime {
        pub use crate::runtime::*;
    }

    pub mod filters {
        pub use crate::filters::{headers, identity, path, rewrite, variables};
    }
    pub mod http {
        pub use crate::http::request;
    }
    pub mod io {
        pub use crate::io::{buffered, connection_info};
    }
    pub mod lifecycle {
        pub use crate::lifecycle::shutdown;
    }
    pub mod observability {
        pub use crate::observability::metrics;
    }
    pub mod proxy {
        pub use crate::proxy::{connection, listener, worker, worker_thread};
    }
    pub mod push_client {
        pub use crate::push_client::{
            PushClientError, PushClientHandle, PushClientOptions, SnapshotHandle, SnapshotSource, SyncStatus,
            TicketRingHandle, start,
        };
    }
    pub mod tls {
        pub use crate::tls::{
            client_hello, client_verifier, handshake, params, record, site_config, stream, ticket, transport,
        };
    }
    pub mod upstream {
        pub use crate::upstream::{
            balancer, client, client_tls, exchange, host_header, request_body, resolver,
        };
    }
}
