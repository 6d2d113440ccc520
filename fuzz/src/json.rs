//! Documents: our parser differs from serde_json only in that it accepts raw control characters and
//! rejects repeated members.

use serde_json::Value;

/// A member name that serde_json treats specially.
const PRIVATE: &[u8] = b"$serde_json::private";

/// Parses the bytes with both parsers.
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
