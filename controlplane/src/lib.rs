//! The control plane: Admin API, store and push.
