//! The control plane: Admin API, store and push.
//!
//! A change walks `admin` (who asks, what) -> `change` (draft, check, commit) -> `store` ->
//! `publish` -> the data planes. Stages hand values back; only `boot` knows all of them. Beside the
//! walk, `explain` and `lint` answer questions about what is `served`.

mod error_counters;

mod store;

mod compile;

mod change;

mod inventory;

mod publish;

mod current_snapshot;

mod explain;

mod lint;

mod admin;

mod server;

mod cli;

mod proof;

pub use cli::main;

/// What integration tests drive: single stages, without a process.
pub mod testing {
    pub mod admin {
        pub use crate::admin::access::{Access, ApiKey};
        pub use crate::admin::nodes::FleetStatus;
        pub use crate::admin::reply::ResponseHeaders;
        pub use crate::admin::tls::ReloadingTls;
        pub use crate::admin::{AdminApi, AdminServer, Limits};
    }
    pub mod change {
        pub use crate::change::{ChangeError, ChangePipeline, CommittedChange, WriteOptions};
    }
    pub mod current_snapshot {
        pub use crate::current_snapshot::{CurrentSnapshot, ListenerSettings};
    }
    pub mod publish {
        pub use crate::publish::deny_list::DeniedNode;
        pub use crate::publish::fleet::NodeView;
        pub use crate::publish::{
            DeniedNodes, Fleet, PublishConfig, PublishError, Publisher, PushTls, StoreAcceptance, start,
            store_watcher,
        };
    }
    pub mod store {
        pub use crate::store::{
            CommitResult, DocumentList, EmbeddedStore, EventStream, InternalEntry, InternalKey, Mutation,
            Page, Precondition, ReportEntries, ReportEntry, Store, StoreError, StoredDocument, WatchError,
        };
    }
}
