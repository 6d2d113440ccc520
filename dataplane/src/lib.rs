//! The data plane: terminates TLS, verifies clients, routes and proxies.
//!
//! One thread a core, each with its own io_uring runtime; one more for the push client, which keeps
//! the snapshot up to date. The folders are declared in the order of their imports: each uses only
//! those before it (`tests/tests/tidy/layers.rs`). `docs/WALKS.md` follows a connection through
//! them.

mod runtime;

mod lifecycle;

mod observability;

mod io;

mod tls;

mod http;

mod upstream;

mod filters;

mod reporting;

mod tcp;

mod proxy;

mod trace_export;

mod push_client;

mod config;

mod status;

mod server;

pub use server::{command, main};

/// The closed list of `model`, by which the control plane explains.
use model::reason;

/// Single stages, for benches, fuzz targets and integration tests.
pub mod testing {
    pub mod config {
        pub use crate::config::{record_layer, worker_config};
    }
    pub mod runtime {
        pub use crate::runtime::{Driver, Listener, Reader, ShutdownHandle, Writer, block_on, spawn};
    }

    pub mod filters {
        pub use crate::filters::{headers, identity, path, rewrite, variables};
    }
    pub mod http {
        pub use crate::http::request;
    }
    pub mod io {
        pub use crate::io::{buffered, connection_info, proxy_protocol};
    }
    pub mod lifecycle {
        pub use crate::lifecycle::{ShutdownStage, ShutdownWatch, handles};
    }
    pub mod observability {
        pub use crate::observability::metrics;
    }
    pub mod proxy {
        pub use crate::proxy::{connection, listener, worker, worker_thread};
    }
    pub mod push_client {
        pub use crate::push_client::{
            PushClientError, PushClientHandle, PushClientOptions, SnapshotSource, SyncStatus, start,
        };
    }
    pub mod reporting {
        pub use crate::reporting::trace;
    }
    pub mod tls {
        pub use crate::tls::{
            PlaintextState, Subsystem, client_hello, client_verifier, handshake, handshake_state, params,
            record, site_config, sni_reader, stream, transport,
        };
    }
    pub mod upstream {
        pub use crate::upstream::balancer::Balancer;
        pub use crate::upstream::client::NodeAttempts;
        pub use crate::upstream::client_tls::{ClientTlsConfigs, TrustDefaults};
        pub use crate::upstream::exchange::upstream_request;
        pub use crate::upstream::host_header::upstream_host;
        pub use crate::upstream::request_body::RequestBody;
        pub use crate::upstream::resolver::Resolver;
    }
}
