//! The deny-list of data planes: certificates that must not connect or stay connected, whatever CA
//! signed them.
//!
//! Owns the list, its store entry and how an entry matches. The list is an internal entry of the
//! store: every control plane over the store enforces it, and it survives restarts. The control
//! plane that changes it enforces it at once, the others within [`REFRESH_INTERVAL`]. Invariant: an
//! unreadable list leaves the last one in force, and a control plane does not start before it has
//! read the list.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXUPPER;
use model::{has_private_key_armor, redact};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::store::{InternalKey, Store, StoreError};

/// The longest delay until a change made through another control plane takes effect here.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
const ENTRIES_MAX: usize = 1000;
const DESC_BYTES: usize = 256;
/// Bytes of a serial number: RFC 5280 4.1.2.2 allows 20.
const SERIAL_BYTES: usize = 64;
/// Compare-and-swap attempts against other writers of the list.
const CAS_ATTEMPTS: usize = 8;

/// A denied certificate: by serial number, by public key, or by both (each matches alone).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeniedNode {
    /// Hexadecimal, as `dataplanes` and `controlplane pki show` print it. Colons and case are
    /// ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, 64 hexadecimal digits: matches after a renewal that
    /// keeps the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spki_sha256: Option<String>,
    /// A description, at most 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desc: Option<String>,
}

/// Why an entry or the list is invalid.
#[derive(Debug, thiserror::Error)]
pub enum DenyListError {
    /// A member of the entry is invalid.
    #[error("{field}: {problem}")]
    Entry { field: &'static str, problem: String },
    #[error("the deny-list has {ENTRIES_MAX} entries already: remove those whose certificates have expired")]
    Full,
    #[error("the stored deny-list of data planes cannot be read: {0}")]
    Damaged(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DeniedNode {
    /// Normalizes the digits.
    ///
    /// # Errors
    /// [`DenyListError::Entry`] names the invalid member.
    pub fn validate(self) -> Result<Self, DenyListError> {
        let invalid = |field, problem: String| Err(DenyListError::Entry { field, problem });
        if self.serial.is_none() && self.spki_sha256.is_none() {
            return invalid("serial", "serial or spki_sha256 must be given".to_owned());
        }
        if self.desc.as_deref().is_some_and(has_private_key_armor) {
            return invalid(
                "desc",
                "the text holds a private key: leave it out, the list is stored in clear".to_owned(),
            );
        }
        if self.desc.as_ref().is_some_and(|desc| desc.len() > DESC_BYTES) {
            return invalid("desc", format!("is longer than {DESC_BYTES} bytes"));
        }
        let serial = self.serial.map(|text| {
            let digits = normalize_hex(&text).filter(|digits| digits.len() <= 2 * SERIAL_BYTES);
            digits.ok_or_else(|| DenyListError::Entry {
                field: "serial",
                problem: format!("{text:?} is not a serial number in hexadecimal digits"),
            })
        });
        let spki_sha256 = self.spki_sha256.map(|text| {
            let digits = normalize_hex(&text).filter(|digits| digits.len() == 64);
            digits.ok_or_else(|| DenyListError::Entry {
                field: "spki_sha256",
                problem: format!("{text:?} is not 64 hexadecimal digits"),
            })
        });
        // Programs print leading zeros of a serial number or not; they carry no meaning.
        let serial = serial.transpose()?.map(|digits| strip_leading_zeros(&digits).to_owned());
        Ok(Self { serial, spki_sha256: spki_sha256.transpose()?, desc: self.desc })
    }

    fn denies_same(&self, other: &Self) -> bool {
        (&self.serial, &self.spki_sha256) == (&other.serial, &other.spki_sha256)
    }

    /// Logs that the entry `id` no longer denies its certificate, unless another entry does.
    fn log_removed(&self, id: &str) {
        let (serial, spki_sha256) = (self.serial.as_deref(), self.spki_sha256.as_deref());
        tracing::warn!(
            entry = id,
            serial,
            spki_sha256,
            "this entry of the deny-list no longer denies the certificate"
        );
    }

    fn matches(&self, certificate: &pki::Certificate) -> bool {
        let serial = self.serial.as_deref();
        let spki = self.spki_sha256.as_deref();
        serial.is_some_and(|denied| denied == strip_leading_zeros(&HEXUPPER.encode(certificate.serial())))
            || spki.is_some_and(|denied| denied == HEXUPPER.encode(certificate.spki_sha256()))
    }
}

/// Upper-case hexadecimal digits without separators; `None` for any other character.
fn normalize_hex(text: &str) -> Option<String> {
    let digits: String = text.trim().chars().filter(|c| *c != ':').map(|c| c.to_ascii_uppercase()).collect();
    (!digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit())).then_some(digits)
}

fn strip_leading_zeros(digits: &str) -> &str {
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() { "0" } else { significant }
}

/// The list at one moment, by entry id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList(BTreeMap<String, DeniedNode>);

impl DenyList {
    /// The id of the entry that denies this certificate.
    pub fn denies(&self, certificate: &pki::Certificate) -> Option<&str> {
        self.0.iter().find(|(_, entry)| entry.matches(certificate)).map(|(id, _)| id.as_str())
    }

    /// Every entry with its id, in the order of the ids.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &DeniedNode)> {
        self.0.iter().map(|(id, entry)| (id.as_str(), entry))
    }

    pub fn get(&self, id: &str) -> Option<&DeniedNode> {
        self.0.get(id)
    }
}

/// The list in force, and how to change it.
pub struct DeniedNodes {
    store: Arc<dyn Store>,
    list: watch::Sender<Arc<DenyList>>,
}

impl DeniedNodes {
    /// Reads the list from the store.
    ///
    /// # Errors
    /// When the store or the list is unreadable: without it, no node can be authorized.
    pub async fn load(store: Arc<dyn Store>) -> Result<Arc<Self>, DenyListError> {
        let denied = Self { store, list: watch::Sender::new(Arc::default()) };
        denied.refresh().await?;
        Ok(Arc::new(denied))
    }

    /// Reads the list again every [`REFRESH_INTERVAL`] until shutdown.
    pub fn spawn_refresh(self: &Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let denied = Arc::clone(self);
        let following = async move {
            let mut logged: Option<String> = None;
            loop {
                tokio::time::sleep(REFRESH_INTERVAL).await;
                let failed = denied.refresh().await.err();
                // A hand-over is no failure.
                let failed =
                    failed.filter(|error| !matches!(error, DenyListError::Store(StoreError::Closed { .. })));
                let failed = failed.map(|error| error.to_string());
                if let Some(error) = failed.as_ref().filter(|error| logged.as_ref() != Some(*error)) {
                    tracing::warn!(
                        error,
                        "the deny-list of data planes cannot be read; the last one stays in force"
                    );
                }
                logged = failed;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = following => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        });
    }

    /// The list in force, and each later one.
    pub fn list(&self) -> watch::Receiver<Arc<DenyList>> {
        self.list.subscribe()
    }

    /// Adds or replaces an entry. Returns whether the id existed.
    ///
    /// # Errors
    /// [`DenyListError`]; nothing is changed then.
    pub async fn put(&self, id: &str, entry: DeniedNode) -> Result<bool, DenyListError> {
        let entry = entry.validate()?;
        let mut former = None;
        let existed = self
            .change(|list| {
                former = list.0.insert(id.to_owned(), entry.clone());
                if list.0.len() > ENTRIES_MAX { Err(DenyListError::Full) } else { Ok(former.is_some()) }
            })
            .await?;
        if let Some(former) = former.filter(|former| !former.denies_same(&entry)) {
            former.log_removed(id);
        }
        Ok(existed)
    }

    /// Adds the entries of another store's list that this one lacks, for `controlplane copy`. An id
    /// in use for another certificate gets a number appended, so no denial is lost. Returns the
    /// number of added entries.
    ///
    /// # Errors
    /// [`DenyListError`]; nothing is changed then.
    pub async fn merge(&self, other: &DenyList) -> Result<usize, DenyListError> {
        let mut added = 0;
        self.change(|list| {
            added = 0;
            for (id, entry) in other.entries() {
                if list.0.values().any(|present| present.denies_same(entry)) {
                    continue;
                }
                let numbered = (2..).map(|number| format!("{id}-{number}"));
                let free = std::iter::once(id.to_owned()).chain(numbered).find(|id| list.get(id).is_none());
                list.0.insert(free.unwrap_or_default(), entry.clone());
                added += 1;
            }
            if list.0.len() > ENTRIES_MAX { Err(DenyListError::Full) } else { Ok(false) }
        })
        .await?;
        Ok(added)
    }

    /// Removes an entry. Returns whether it existed.
    ///
    /// # Errors
    /// [`DenyListError`]; nothing is changed then.
    pub async fn remove(&self, id: &str) -> Result<bool, DenyListError> {
        let mut former = None;
        let existed = self
            .change(|list| {
                former = list.0.remove(id);
                Ok(former.is_some())
            })
            .await?;
        if let Some(former) = former {
            former.log_removed(id);
        }
        Ok(existed)
    }

    async fn change(
        &self,
        mut change: impl FnMut(&mut DenyList) -> Result<bool, DenyListError>,
    ) -> Result<bool, DenyListError> {
        for _ in 0..CAS_ATTEMPTS {
            let (version, before) = self.read().await?;
            let mut list = before.clone();
            let existed = change(&mut list)?;
            if list == before {
                return Ok(existed);
            }
            let text =
                serde_json::to_string(&list.0).map_err(|error| DenyListError::Damaged(error.to_string()))?;
            match self
                .store
                .swap_internal_entry(InternalKey::DeniedNodes, version, Zeroizing::new(text))
                .await
            {
                Ok(_) => {
                    self.list.send_replace(Arc::new(list));
                    return Ok(existed);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { key: None }.into())
    }

    async fn refresh(&self) -> Result<(), DenyListError> {
        let (_, list) = self.read().await?;
        self.list.send_if_modified(|present| {
            let changed = **present != list;
            if changed {
                *present = Arc::new(list);
            }
            changed
        });
        Ok(())
    }

    async fn read(&self) -> Result<(u64, DenyList), DenyListError> {
        let Some(entry) = self.store.internal_entry(InternalKey::DeniedNodes).await? else {
            return Ok((0, DenyList::default()));
        };
        let list = serde_json::from_str(&entry.text)
            .map_err(|error| DenyListError::Damaged(redact(&error.to_string()).into_owned()))?;
        Ok((entry.version, DenyList(list)))
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use pki::ca::{Authority, AuthoritySpec, LeafSpec};

    use super::*;
    use crate::store::EmbeddedStore;

    fn certificate() -> pki::Certificate {
        let ca = Authority::root(&AuthoritySpec::new("Push CA")).unwrap();
        let leaf = ca.issue(&LeafSpec::client("node-1").dns("node-1")).unwrap();
        pki::certificates_from_pem(&leaf.chain_pem).unwrap().remove(0)
    }

    fn by_serial(text: &str) -> DeniedNode {
        DeniedNode { serial: Some(text.to_owned()), ..DeniedNode::default() }
    }

    #[test]
    fn an_entry_matches_every_spelling_of_its_certificate() {
        let certificate = certificate();
        let serial = HEXUPPER.encode(certificate.serial());
        let pairs: Vec<&str> = (0..serial.len() / 2).map(|nth| &serial[2 * nth..2 * nth + 2]).collect();
        for spelling in [serial.clone(), serial.to_lowercase(), pairs.join(":"), format!("00{serial}")] {
            assert!(by_serial(&spelling).validate().unwrap().matches(&certificate), "{spelling}");
        }
        let spki = HEXLOWER.encode(certificate.spki_sha256());
        let by_key = DeniedNode { spki_sha256: Some(spki.clone()), ..DeniedNode::default() };
        assert!(by_key.clone().validate().unwrap().matches(&certificate));
        assert!(!by_key.validate().unwrap().matches(&super::tests::certificate()));
        assert!(!by_serial(&format!("{serial}00")).validate().unwrap().matches(&certificate));
    }

    #[test]
    fn entries_that_match_nothing_are_invalid() {
        let spki = |text: &str| DeniedNode { spki_sha256: Some(text.to_owned()), ..DeniedNode::default() };
        let long = DeniedNode { desc: Some("x".repeat(257)), ..by_serial("1") };
        for entry in [
            DeniedNode::default(),
            by_serial(""),
            by_serial("12 34"),
            by_serial("xyz"),
            by_serial(&"1".repeat(129)),
            spki("12"),
            spki(&"g".repeat(64)),
            long,
        ] {
            assert!(entry.clone().validate().is_err(), "{entry:?}");
        }
        assert_eq!(by_serial("00").validate().unwrap().serial.as_deref(), Some("0"));
    }

    #[test]
    fn an_entry_with_a_private_key_is_invalid() {
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1h\n-----END PRIVATE KEY-----\n";
        for desc in [key.to_owned(), key.replace('\n', " "), format!("edge-7 {key}"), key[30..].to_owned()] {
            let entry = DeniedNode { desc: Some(desc.clone()), ..by_serial("0a") };
            let refused = entry.validate().expect_err(&desc).to_string();
            assert!(refused.starts_with("desc: ") && !refused.contains("MC4C"), "{refused}");
        }
        assert!(DeniedNode { desc: Some("lost its key".into()), ..by_serial("0a") }.validate().is_ok());
    }

    #[tokio::test]
    async fn the_list_is_durable_and_shared() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store.redb")).unwrap());
        let one = DeniedNodes::load(Arc::clone(&store)).await.unwrap();
        let other = DeniedNodes::load(Arc::clone(&store)).await.unwrap();
        assert!(!one.put("edge-7", by_serial("0a")).await.unwrap());
        assert!(other.put("edge-7", by_serial("0b")).await.unwrap(), "written from what the store holds");
        one.refresh().await.unwrap();
        assert_eq!(one.list().borrow().get("edge-7"), Some(&by_serial("B")));
        assert!(one.put("bad", DeniedNode::default()).await.is_err());
        let fresh = tempfile::tempdir().unwrap();
        let elsewhere: Arc<dyn Store> =
            Arc::new(EmbeddedStore::open(&fresh.path().join("store.redb")).unwrap());
        let copy = DeniedNodes::load(elsewhere).await.unwrap();
        copy.put("edge-7", by_serial("0c")).await.unwrap();
        let source = one.list().borrow().clone();
        assert_eq!((copy.merge(&source).await.unwrap(), copy.merge(&source).await.unwrap()), (1, 0));
        let held: Vec<_> = copy.list().borrow().entries().map(|(id, _)| id.to_owned()).collect();
        assert_eq!(held, ["edge-7", "edge-7-2"], "no denial is lost");
        assert!(one.remove("edge-7").await.unwrap());
        assert!(!one.remove("edge-7").await.unwrap());
        let restarted = DeniedNodes::load(store).await.unwrap();
        assert_eq!(restarted.list().borrow().entries().len(), 0);
    }

    #[tokio::test]
    async fn a_damaged_list_is_an_error_and_stays_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store.redb")).unwrap());
        let denied = DeniedNodes::load(Arc::clone(&store)).await.unwrap();
        denied.put("x", by_serial("0a")).await.unwrap();
        let version = store.internal_entry(InternalKey::DeniedNodes).await.unwrap().unwrap().version;
        store.swap_internal_entry(InternalKey::DeniedNodes, version, "{".to_owned().into()).await.unwrap();
        assert!(matches!(denied.refresh().await, Err(DenyListError::Damaged(_))));
        assert!(denied.list().borrow().get("x").is_some());
        assert!(DeniedNodes::load(store).await.is_err(), "without the list no node may connect");
    }
}
