//! What a certificate means: parsing, keys, paths, revocation and policy. No IO and no TLS engine.
