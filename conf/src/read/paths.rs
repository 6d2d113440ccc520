//! How the paths of requests are read: three switches of `apisix` (contract 1.3).

use super::Reader;
use crate::settings::PathSettings;
use crate::value;

impl Reader<'_> {
    pub(super) fn paths(&mut self) -> PathSettings {
        PathSettings {
            match_uri_encoded_slash: self.need("apisix.match_uri_encoded_slash", value::boolean),
            normalize_uri_like_servlet: self.need("apisix.normalize_uri_like_servlet", value::boolean),
            delete_uri_tail_slash: self.need("apisix.delete_uri_tail_slash", value::boolean),
        }
    }
}
