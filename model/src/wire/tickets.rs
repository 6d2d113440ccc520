//! Encodes the ring of ticket secrets for the push, the last-good file and the store.

use prost::bytes::Bytes;
use proto::push;
use zeroize::Zeroizing;

use crate::problem::Problem;
use crate::tickets::{LIFETIME_MAX, SECRET_BYTES, SECRETS_MAX, TicketRing, TicketSecret};

/// Encodes a ring.
pub fn tickets_to_wire(ring: &TicketRing) -> push::TicketRing {
    let secret = |secret: &TicketSecret| push::TicketSecret {
        from: secret.active_from(),
        secret: Bytes::copy_from_slice(secret.expose()),
    };
    push::TicketRing { secrets: ring.secrets.iter().map(secret).collect(), lifetime: ring.lifetime }
}

/// Decodes a ring.
///
/// # Errors
///
/// Too many secrets, one of a wrong length, a wrong order, or an invalid lifetime.
pub fn tickets_from_wire(ring: &push::TicketRing) -> Result<TicketRing, Problem> {
    let count = ring.secrets.len();
    if count > SECRETS_MAX {
        return Err(Problem::new("tickets.secrets", format!("{count} secrets are over {SECRETS_MAX}")));
    }
    if !ring.secrets.is_sorted_by_key(|secret| secret.from) {
        return Err(Problem::new("tickets.secrets", "the secrets are not in the order of their beginning"));
    }
    if count > 0 && !(1..=LIFETIME_MAX).contains(&ring.lifetime) {
        let count = ring.lifetime;
        let message = format!("a lifetime of {count} s, expected 1 to {LIFETIME_MAX}");
        return Err(Problem::new("tickets.lifetime", message));
    }
    let secret = |secret: &push::TicketSecret| {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        if secret.secret.len() != SECRET_BYTES {
            let count = secret.secret.len();
            let message = format!("a secret of {count} bytes, expected {SECRET_BYTES}");
            return Err(Problem::new("tickets.secrets", message));
        }
        bytes.copy_from_slice(&secret.secret);
        Ok(TicketSecret::new(secret.from, bytes))
    };
    let secrets = ring.secrets.iter().map(secret).collect::<Result<_, _>>()?;
    Ok(TicketRing { lifetime: ring.lifetime, secrets })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(froms: &[u64]) -> TicketRing {
        let secret = |from: &u64| TicketSecret::new(*from, Zeroizing::new([*from as u8; SECRET_BYTES]));
        TicketRing { lifetime: 60, secrets: froms.iter().map(secret).collect() }
    }

    #[test]
    fn a_ring_is_encoded_and_decoded() {
        for froms in [&[][..], &[1], &[1, 5, 9]] {
            let back = tickets_from_wire(&tickets_to_wire(&ring(froms))).unwrap();
            assert_eq!(back.lifetime, 60);
            let secrets = |ring: &TicketRing| -> Vec<_> {
                ring.secrets.iter().map(|secret| (secret.active_from(), *secret.expose())).collect()
            };
            assert_eq!(secrets(&back), secrets(&ring(froms)));
        }
    }

    #[test]
    fn an_invalid_ring_is_a_problem() {
        let good = tickets_to_wire(&ring(&[1, 2]));
        let message = |change: &dyn Fn(&mut push::TicketRing)| {
            let mut wire = good.clone();
            change(&mut wire);
            tickets_from_wire(&wire).unwrap_err().to_string()
        };
        assert!(message(&|wire| wire.secrets.reverse()).contains("order"));
        assert!(message(&|wire| wire.lifetime = 0).contains("lifetime of 0"));
        assert!(message(&|wire| wire.lifetime = LIFETIME_MAX + 1).contains("lifetime"));
        assert!(message(&|wire| wire.secrets[0].secret = Bytes::from_static(b"short")).contains("5 bytes"));
        let many = tickets_to_wire(&ring(&[7; SECRETS_MAX + 1]));
        assert!(tickets_from_wire(&many).unwrap_err().to_string().contains("65"));
    }

    #[test]
    fn no_debug_shows_a_secret() {
        let ring = ring(&[7]);
        for shown in [format!("{ring:?}"), format!("{:?}", tickets_to_wire(&ring))] {
            assert!(!shown.contains("7, 7") && !shown.contains("\\x07"), "{shown}");
        }
    }
}
