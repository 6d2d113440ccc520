//! Message bodies: of requests as clients send them, of responses as clients get them.

pub(crate) mod asked;
pub(crate) mod response;
