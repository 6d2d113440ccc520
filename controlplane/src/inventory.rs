//! Counts the documents of a store by kind, and how many of their private keys the keyring opens.
//!
//! `check` and `doctor` report the counts. The start fails when the keyring opens less than half of
//! the sealed keys, or the keys of less than half of the sites, because the data planes would
//! reject these sites. Invariant: no key is kept or shown.

use std::fmt;

use model::{Key, Kind, Loss};
use pki::Keyring;

use crate::change::private_keys::private_key_texts;
use crate::compile;
use crate::store::StoredDocument;

/// The keyring does not open more than half of the sealed keys, or the keys of more than half of
/// the sites.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{setting}: {keys} private keys in the store, those of {sites} sites, cannot be opened with it ({resource} is \
     the first): the data planes would reject these sites and upstreams. Put the entry that sealed them back behind the first one \
     (countersign.keyring_file, another settings file or the environment of the last start has it). To go on without these keys, start \
     with --accept-unreadable-keys, then delete the documents or PUT them with new keys"
)]
pub struct KeyringMismatch {
    /// The setting with the keyring.
    pub setting: &'static str,
    /// Sealed keys that do not open, of all sealed keys.
    pub keys: Loss,
    /// Enabled sites with such a key, of all enabled sites.
    pub sites: Loss,
    /// The first document with such a key.
    pub resource: Key,
}

/// The counts of one store.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    kinds: [usize; Kind::ALL.len()],
    sealed: UsableCount<()>,
    /// Enabled ssls of `type: server`; a site is usable if every sealed key opens.
    sites: Loss,
    references: UsableCount<String>,
}

/// How many of a number of things are usable.
#[derive(Debug)]
struct UsableCount<T> {
    total: usize,
    usable: usize,
    /// The first unusable one, and its cause.
    first: Option<(Key, T)>,
}

impl<T> Default for UsableCount<T> {
    fn default() -> Self {
        Self { total: 0, usable: 0, first: None }
    }
}

impl<T> UsableCount<T> {
    fn add(&mut self, key: &Key, usable: Result<(), T>) {
        self.total += 1;
        match usable {
            Ok(()) => self.usable += 1,
            Err(cause) if self.first.is_none() => self.first = Some((key.clone(), cause)),
            Err(_) => {}
        }
    }

    fn unusable(&self) -> usize {
        self.total - self.usable
    }
}

impl Inventory {
    /// Counts the documents. Decrypts every sealed key, so do not call it on a runtime thread.
    pub(crate) fn count(items: &[StoredDocument], keyring: &Keyring) -> Self {
        let mut inventory = Self::default();
        for item in items {
            let kind = Kind::ALL.iter().position(|kind| *kind == item.key.kind);
            if let Some(count) = kind.and_then(|at| inventory.kinds.get_mut(at)) {
                *count += 1;
            }
            let unusable_before = inventory.sealed.unusable();
            for text in private_key_texts(item.key.kind, &item.document).filter(|text| is_sealed(text)) {
                let opens = keyring.open(text).is_ok_and(|opened| opened.starts_with(PEM_PREFIX));
                inventory.sealed.add(&item.key, if opens { Ok(()) } else { Err(()) });
            }
            if is_site(item) {
                inventory.sites.total += 1;
                inventory.sites.lost += usize::from(inventory.sealed.unusable() > unusable_before);
            }
            if let Some(resolved) = compile::check_references(item) {
                inventory.references.add(&item.key, resolved);
            }
        }
        inventory
    }

    /// Checks the keyring.
    ///
    /// # Errors
    /// When more than half of the sealed keys, or the keys of more than half of the sites, do not
    /// open.
    pub(crate) fn check_keyring(&self, setting: &'static str) -> Result<(), KeyringMismatch> {
        let keys = Loss { lost: self.sealed.unusable(), total: self.sealed.total };
        match &self.sealed.first {
            Some((resource, ())) if keys.is_majority() || self.sites.is_majority() => {
                Err(KeyringMismatch { setting, keys, sites: self.sites, resource: resource.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The problems with a part of the documents.
    pub(crate) fn warnings(&self, setting: &'static str) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some((resource, ())) =
            self.sealed.first.as_ref().filter(|_| self.check_keyring(setting).is_ok())
        {
            warnings.push(format!(
                "{setting}: {} of {} private keys in the store cannot be opened with it ({resource} is the first); \
                 the data planes reject these sites and upstreams until the entry that sealed them is back",
                self.sealed.unusable(),
                self.sealed.total,
            ));
        }
        if let Some((resource, problem)) = &self.references.first {
            warnings.push(format!(
                "{} of {} documents with references to the environment cannot be resolved ({resource} is the first: {problem}); the data \
                 planes reject them until the control plane is started with these variables",
                self.references.unusable(),
                self.references.total,
            ));
        }
        warnings
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kinds.iter().all(|count| *count == 0)
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Kind::ALL.iter().zip(self.kinds).filter(|(_, count)| *count > 0);
        let counts: Vec<_> = counts.map(|(kind, count)| format!("{count} {}", kind.plural())).collect();
        if counts.is_empty() { f.write_str("no documents") } else { f.write_str(&counts.join(", ")) }
    }
}

/// An enabled ssl of `type: server`.
fn is_site(item: &StoredDocument) -> bool {
    let member = |name: &str| item.document.get(name);
    item.key.kind == Kind::Ssl
        && member("type").is_none_or(|kind| kind != "client")
        && member("status").is_none_or(|status| status != 0)
}

/// The start of a private key in clear.
const PEM_PREFIX: &str = "---";

/// Whether a private-key field can hold a sealed key: base64 of whole cipher blocks. Other texts do
/// not concern the keyring.
fn is_sealed(text: &str) -> bool {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    bytes.is_ok_and(|bytes| bytes.len() >= 2 * CIPHER_BLOCK && bytes.len() % CIPHER_BLOCK == 0)
}

/// Bytes of a block of AES.
const CIPHER_BLOCK: usize = 16;

#[cfg(test)]
mod tests {
    use model::Id;
    use serde_json::{Value, json};

    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nnot one, but long enough\n-----END PRIVATE KEY-----\n";

    fn ring(entry: &str) -> Keyring {
        Keyring::new(vec![entry.to_owned()]).unwrap()
    }

    fn stored(kind: Kind, id: &str, document: Value) -> StoredDocument {
        let key = Key::new(kind, Id::parse(id).unwrap());
        StoredDocument {
            key,
            document,
            create_revision: 1,
            mod_revision: 1,
            stale_extensions: false,
            salvaged: None,
        }
    }

    const SETTING: &str = "countersign.keyring_file";

    fn ssl(id: &str, key: &str) -> StoredDocument {
        stored(Kind::Ssl, id, json!({"cert": "c", "key": key, "sni": "a.test"}))
    }

    #[test]
    fn documents_are_counted_by_kind() {
        let route = stored(Kind::Route, "1", json!({"uri": "/*"}));
        let inventory = Inventory::count(&[ssl("1", KEY), ssl("2", KEY), route], &Keyring::empty());
        assert_eq!(inventory.to_string(), "2 ssls, 1 routes");
        assert!(
            inventory.check_keyring(SETTING).is_ok()
                && inventory.warnings(SETTING).is_empty()
                && !inventory.is_empty()
        );
        assert!(Inventory::count(&[], &Keyring::empty()).is_empty());
    }

    #[test]
    fn keyring_mismatch_is_an_error_partial_match_a_warning() {
        let (own, other) = (ring("0123456789abcdef"), ring("fedcba9876543210"));
        let upstream = json!({"nodes": {}, "tls": {"client_cert": "c", "client_key": own.seal(KEY)}});
        let items = [
            ssl("clear", KEY),
            ssl("own", &own.seal(KEY)),
            stored(Kind::Route, "r", json!({"uri": "/*", "upstream": upstream})),
        ];
        assert!(Inventory::count(&items, &own).check_keyring(SETTING).is_ok());
        for wrong in [&other, &Keyring::empty()] {
            let error = Inventory::count(&items, wrong).check_keyring(SETTING).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(SETTING)
                    && text.contains("2 of 2 private keys")
                    && text.contains("ssls/own"),
                "{text}"
            );
        }
        let mixed = [ssl("own", &own.seal(KEY)), ssl("other", &other.seal(KEY))];
        let inventory = Inventory::count(&mixed, &own);
        assert!(inventory.check_keyring(SETTING).is_ok());
        assert!(
            inventory.warnings(SETTING)[0].contains("1 of 2")
                && inventory.warnings(SETTING)[0].contains("ssls/other")
        );
    }

    #[test]
    fn a_keyring_that_opens_a_minority_is_an_error() {
        let (lost, kept) = (ring("0123456789abcdef"), ring("fedcba9876543210"));
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|id| ssl(id, &lost.seal(KEY)));
        let mut items = vec![ssl("kept", &kept.seal(KEY)), b, c, d];
        let text = Inventory::count(&items, &kept).check_keyring(SETTING).unwrap_err().to_string();
        for part in ["3 of 4 private keys", "3 of 4 sites", "ssls/b", "--accept-unreadable-keys"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(Inventory::count(&items, &lost).check_keyring(SETTING).is_ok(), "1 of 4 is a warning");
        // Usable keys of upstreams do not compensate for the sites.
        let upstream = |id: &str| {
            let tls = json!({"client_cert": "c", "client_key": kept.seal(KEY)});
            stored(Kind::Upstream, id, json!({"nodes": {}, "tls": tls}))
        };
        items.extend(["1", "2", "3", "4"].map(upstream));
        let text = Inventory::count(&items, &kept).check_keyring(SETTING).unwrap_err().to_string();
        assert!(text.contains("3 of 8 private keys") && text.contains("3 of 4 sites"), "{text}");
        // A disabled site and a client identity do not count as sites.
        let disabled = |id: &str, name: &str, value: Value| {
            let mut item = ssl(id, &lost.seal(KEY));
            item.document[name] = value;
            item
        };
        let (disabled, identity) =
            (disabled("off", "status", json!(0)), disabled("identity", "type", json!("client")));
        let mut half = vec![a, ssl("kept", &kept.seal(KEY)), ssl("clear", KEY), disabled, identity];
        half.extend(["1", "2", "3"].map(upstream));
        assert!(Inventory::count(&half, &kept).check_keyring(SETTING).is_ok());
    }

    #[test]
    fn texts_that_are_not_sealed_keys_are_not_counted() {
        let items = ["", "no key at all", "$env://KEY/member", "QUJD"].map(|text| ssl("1", text));
        for item in items {
            let inventory = Inventory::count(std::slice::from_ref(&item), &ring("0123456789abcdef"));
            assert_eq!(inventory.sealed.total, 0, "{}", item.document);
        }
    }

    #[test]
    fn unresolved_references_are_counted() {
        let gone = |id: &str| ssl(id, "$env://COUNTERSIGN_TEST_NOT_SET");
        let none = Inventory::count(&[gone("1"), gone("2")], &Keyring::empty());
        assert!(
            none.check_keyring(SETTING).is_ok() && none.warnings(SETTING)[0].contains("2 of 2 documents")
        );
        let some = Inventory::count(&[ssl("there", "$env://PATH"), gone("2")], &Keyring::empty());
        assert!(some.warnings(SETTING)[0].contains("1 of 2") && some.warnings(SETTING)[0].contains("ssls/2"));
    }
}
