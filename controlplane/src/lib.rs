//! The control plane: Admin API, store and push.
//!
//! A change passes `admin` (authentication, routing), `change` (draft, check, commit), `store` and
//! `publish`, which sends it to the data planes. Stages return values; only `server` knows all of
//! them. `explain` and `lint` answer questions about the current snapshot. A module imports only
//! modules before it; `docs/ARCHITECTURE.md` has the order.

mod listener_errors;

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

pub use cli::{command, main};

/// What integration tests drive: single stages, without a process.
pub mod testing {
    pub mod admin {
        pub use crate::admin::access::{Access, ApiKey};
        pub use crate::admin::addresses::AllowedAddresses;
        pub use crate::admin::operation::{Effect, Operation, operations};
        pub use crate::admin::reply::ResponseHeaders;
        pub use crate::admin::tls::ReloadingTls;
        pub use crate::admin::{AdminApi, AdminServer, BoundListener, Limits};
    }
    pub mod change {
        pub use crate::change::{
            AcceptedChanges, Action, ChangeError, ChangePipeline, ChangeRequest, RejectedChanges,
            RequestPrecondition, WriteOptions,
        };
    }
    pub mod current_snapshot {
        pub use crate::current_snapshot::{CurrentSnapshot, ListenerSettings};
    }
    pub mod publish {
        pub use crate::publish::deny_list::DeniedNode;
        pub use crate::publish::fleet::NodeView;
        pub use crate::publish::{
            DeniedNodes, Fleet, FleetStatus, LiveSettings, PublishConfig, PublishError, Publisher, PushTls,
            StoreAcceptance, start, store_watcher,
        };
    }
    pub mod store {
        pub use crate::store::{
            Batch, CommitResult, Condition, DocumentList, EmbeddedStore, EventStream, InternalEntry,
            InternalKey, Mutation, MutationResult, Page, Precondition, RecentDocuments, ReportEntries,
            ReportEntry, Store, StoreError, StoredDocument, WatchError,
        };
    }
}
