//! Documents: what our parser accepts beyond serde_json are raw control characters, and what it
//! refuses are repeated members.

use serde_json::Value;

/// A member name that serde_json reads in a way of its own.
const PRIVATE: &[u8] = b"$serde_json::private";

/// Parses the bytes both ways.
pub fn check(data: &[u8]) {
    if data.windows(PRIVATE.len()).any(|window| window == PRIVATE) {
        return;
    }
    match (model::json::parse(data), serde_json::from_slice::<Value>(data)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs),
        (Ok(_), Err(error)) => {
            assert!(data.iter().any(|byte| matches!(byte, 0x01..=0x1f)), "accepted, against {error}");
        }
        (Err(error), Ok(_)) => assert!(error.to_string().starts_with("the member"), "{error}"),
        (Err(_), Err(_)) => {}
    }
}
