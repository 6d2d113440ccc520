//! Message bodies: of requests as clients send them, of responses as clients get them.

pub mod asked;
pub mod response;
