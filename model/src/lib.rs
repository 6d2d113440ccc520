//! What a resource means: documents, resources, snapshots and deltas. Used by both planes.
