//! How the paths of requests are read: three switches of `apisix` (contract 1.3).

use super::Reader;
use crate::settings::PathSettings;

impl Reader<'_> {
    pub(super) fn paths(&mut self) -> PathSettings {
        PathSettings {
            match_uri_encoded_slash: self.flag("apisix.match_uri_encoded_slash"),
            normalize_uri_like_servlet: self.flag("apisix.normalize_uri_like_servlet"),
            delete_uri_tail_slash: self.flag("apisix.delete_uri_tail_slash"),
        }
    }
}
