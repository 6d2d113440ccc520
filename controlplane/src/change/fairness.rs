//! Pauses in the checks of many documents, which never wait: other tasks run in between.

/// Yields after every 64th document.
pub(super) async fn let_others_run(index: usize) {
    if index % 64 == 63 {
        tokio::task::yield_now().await;
    }
}
