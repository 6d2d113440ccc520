//! The ring rotates with time, for one control plane and for several, and is stored encrypted.

use super::ring::{open_ring, same_secrets, seal_ring};
use super::*;
use crate::publish::LiveSettings;
use crate::store::EmbeddedStore;

const HOUR: u64 = 3600;
const START: u64 = 1_800_000_000;

fn schedule() -> RotationSchedule {
    RotationSchedule::new(Duration::from_secs(8 * HOUR))
}

fn start_minutes(ring: &TicketRing) -> Vec<u64> {
    ring.secrets
        .iter()
        .map(|secret| (secret.active_from().wrapping_sub(START) as i64).div_euclid(60) as u64)
        .collect()
}

#[test]
fn a_new_ring_has_a_current_and_a_next_secret() {
    let ring = schedule().rotated(&TicketRing::default(), START).unwrap();
    assert_eq!((ring.lifetime, start_minutes(&ring)), (28_800, vec![0, 240]));
    assert_ne!(ring.secrets[0].expose(), ring.secrets[1].expose());
    assert!(
        schedule().rotated(&ring, START + 4 * HOUR - 1).is_none(),
        "nothing to do before the next one begins"
    );
}

#[test]
fn a_ring_rotates_and_drops_expired_secrets() {
    let mut ring = TicketRing::default();
    for now in (START..START + 48 * HOUR).step_by(60) {
        if let Some(rotated) = schedule().rotated(&ring, now) {
            // The common secrets are equal, and only the oldest are removed.
            let kept = rotated
                .secrets
                .iter()
                .filter(|new| ring.secrets.iter().any(|old| old.expose() == new.expose()));
            assert!(kept.count() >= ring.secrets.len().saturating_sub(1));
            ring = rotated;
        }
        let begun = ring.secrets.iter().filter(|secret| secret.active_from() <= now).count();
        assert_eq!(ring.secrets.len() - begun, 1, "one is ahead");
        let sealing = ring.secrets[begun - 1].active_from();
        assert!(now - sealing < 4 * HOUR, "none seals for longer than its turn");
        // The oldest ticket that is still valid.
        let oldest_alive = now.saturating_sub(8 * HOUR).max(START);
        assert!(ring.secrets[0].active_from() <= oldest_alive, "the secret of a living ticket is gone");
        assert!(ring.secrets.len() <= 5, "{:?}", start_minutes(&ring));
    }
}

#[test]
fn after_a_long_absence_the_next_secret_has_lead_time() {
    let ring = schedule().rotated(&TicketRing::default(), START).unwrap();
    let now = START + 100 * HOUR;
    let rotated = schedule().rotated(&ring, now).unwrap();
    // The data planes have sealed with the second secret all the time.
    assert_eq!(start_minutes(&rotated), [240, 6001]);
    assert_eq!(rotated.secrets[0].expose(), ring.secrets[1].expose());
}

#[test]
fn a_ring_from_a_wrong_clock_is_replaced() {
    let ring = schedule().rotated(&TicketRing::default(), START + 1000 * HOUR).unwrap();
    let rotated = schedule().rotated(&ring, START).unwrap();
    assert_eq!(start_minutes(&rotated), [0, 240]);
}

#[test]
fn the_shortest_lifetime_rotates() {
    let schedule = RotationSchedule::new(Duration::from_secs(2));
    let ring = schedule.rotated(&TicketRing::default(), START).unwrap();
    let rotated = schedule.rotated(&ring, START + 1).unwrap();
    assert_eq!(rotated.secrets.len(), 3);
    assert_eq!(schedule.check_interval(), Duration::from_millis(250));
}

#[test]
fn the_stored_ring_is_encrypted_and_round_trips() {
    let ring = schedule().rotated(&TicketRing::default(), START).unwrap();
    let keyring = Keyring::new(vec!["0123456789abcdef".to_owned()]).unwrap();
    let text = seal_ring(&ring, &keyring);
    assert!(!text.contains("TICKET"), "it is sealed: {}", *text);
    assert!(same_secrets(&open_ring(&text, &keyring).unwrap(), &ring));
    // Behind a new key the old one still decrypts; the new one alone does not.
    let other = "another-key-1234".to_owned();
    let both = Keyring::new(vec![other.clone(), "0123456789abcdef".to_owned()]).unwrap();
    assert!(same_secrets(&open_ring(&text, &both).unwrap(), &ring));
    assert!(open_ring(&text, &Keyring::new(vec![other]).unwrap()).is_err());
    // Without a keyring the ring is stored in clear, as private keys are.
    let clear = seal_ring(&ring, &Keyring::empty());
    assert!(clear.starts_with("-----BEGIN COUNTERSIGN TICKET SECRETS-----"));
    assert!(same_secrets(&open_ring(&clear, &Keyring::empty()).unwrap(), &ring));
    for damaged in
        [&clear[1..], &clear[..clear.len() - 2], "", "-----BEGIN COUNTERSIGN TICKET SECRETS-----\n!!"]
    {
        assert!(open_ring(damaged, &Keyring::empty()).is_err());
    }
}

fn store(folder: &tempfile::TempDir) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(&folder.path().join("store.redb")).unwrap())
}

fn settings(keyring: &Arc<Keyring>, ticket_lifetime: Option<Duration>) -> watch::Sender<LiveSettings> {
    let (keyring, allowed_names) = (Arc::clone(keyring), Arc::default());
    watch::Sender::new(LiveSettings { keyring, allowed_names, ticket_lifetime })
}

async fn ring_of(
    store: &Arc<dyn Store>,
    keyring: &Arc<Keyring>,
    stop: &watch::Sender<bool>,
) -> Arc<TicketRing> {
    let lifetime = Some(Duration::from_secs(8 * HOUR));
    let settings = settings(keyring, lifetime).subscribe();
    let ring = start(store, settings, "countersign.keyring_file", stop.subscribe()).await;
    ring.borrow().clone().unwrap()
}

#[tokio::test]
async fn control_planes_over_one_store_share_one_ring() {
    let folder = tempfile::tempdir().unwrap();
    let keyring = Arc::new(Keyring::new(vec!["0123456789abcdef".to_owned()]).unwrap());
    let (stop, _stopped) = watch::channel(false);
    let first = store(&folder);
    let rings = futures_util::future::join_all((0..8).map(|_| ring_of(&first, &keyring, &stop))).await;
    assert!(rings.iter().all(|ring| same_secrets(ring, &rings[0]) && ring.secrets.len() == 2), "one won");
    stop.send_replace(true);
    let held = Arc::clone(&rings[0]);
    let entry = first.internal_entry(InternalKey::TicketSecrets).await.unwrap().unwrap();
    assert_eq!(entry.version, 1, "it is written once");
    // The rotators' tasks drop the store, too, before the file is free.
    let weak = Arc::downgrade(&first);
    drop((first, rings));
    while weak.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
    let (stop, _stopped) = watch::channel(false);
    let again = ring_of(&store(&folder), &keyring, &stop).await;
    assert!(same_secrets(&again, &held));
}

#[tokio::test]
async fn an_unreadable_ring_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let (stop, _stopped) = watch::channel(false);
    let one =
        ring_of(&store, &Arc::new(Keyring::new(vec!["0123456789abcdef".to_owned()]).unwrap()), &stop).await;
    let other =
        ring_of(&store, &Arc::new(Keyring::new(vec!["another-key-1234".to_owned()]).unwrap()), &stop).await;
    assert!(!same_secrets(&one, &other));
    assert_eq!(other.secrets.len(), 2);
}

#[tokio::test]
async fn without_a_lifetime_the_ring_is_empty_and_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let (_stop, stopped) = watch::channel(false);
    let live = settings(&Arc::new(Keyring::empty()), None);
    let mut ring = start(&store, live.subscribe(), "", stopped).await;
    assert!(ring.borrow().as_ref().unwrap().secrets.is_empty());
    assert!(store.internal_entry(InternalKey::TicketSecrets).await.unwrap().is_none());
    // A reload of the settings is followed at once.
    let mut lifetimes = Vec::new();
    ring.mark_unchanged();
    for lifetime in [Some(4), Some(8), None] {
        let lifetime = lifetime.map(|hours| Duration::from_secs(hours * HOUR));
        live.send_modify(|live| live.ticket_lifetime = lifetime);
        let ring = next(Some(&mut ring)).await;
        lifetimes.push((ring.lifetime, ring.secrets.len()));
    }
    assert_eq!(lifetimes, [(14_400, 2), (28_800, 2), (0, 0)]);
}
