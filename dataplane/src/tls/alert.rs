//! Alerts that end established connections. In TLS 1.3 a server rejects a client certificate, or
//! the lack of one, only after the client's handshake is complete.

use std::error::Error;
use std::io;

use rustls::AlertDescription;

use super::record::RecordError;
use super::transport::TransportError;

/// The name in RFC 8446 section 6 of the alert by which the peer ended its connection, if `error`
/// or one of its sources is such an alert.
pub(crate) fn received_alert(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<TransportError>() {
            return match error {
                TransportError::Rustls(rustls::Error::AlertReceived(alert)) => Some(alert_name(*alert)),
                TransportError::RecordLayer(RecordError::AlertReceived(alert)) => {
                    Some(alert_name(AlertDescription::from(*alert)))
                }
                _ => None,
            };
        }
        // The error within an `io::Error` is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// rustls' name `UnknownCA` is `unknown_ca` in the RFC.
fn alert_name(alert: AlertDescription) -> String {
    let AlertDescription::Unknown(number) = alert else { return snake_case(&format!("{alert:?}")) };
    number.to_string()
}

fn snake_case(camel_case: &str) -> String {
    let mut name = String::new();
    let mut characters = camel_case.chars().peekable();
    let mut follows_lower = false;
    while let Some(character) = characters.next() {
        let begins_word = follows_lower || characters.peek().is_some_and(char::is_ascii_lowercase);
        if character.is_ascii_uppercase() && begins_word && !name.is_empty() {
            name.push('_');
        }
        follows_lower = !character.is_ascii_uppercase();
        name.push(character.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_rfc() {
        for (number, name) in [
            (0, "close_notify"),
            (42, "bad_certificate"),
            (48, "unknown_ca"),
            (115, "unknown_psk_identity"),
            (116, "certificate_required"),
            (120, "no_application_protocol"),
            (200, "200"),
        ] {
            assert_eq!(alert_name(AlertDescription::from(number)), name);
        }
    }

    #[test]
    fn an_alert_is_found_within_other_errors() {
        let io = |error: TransportError| io::Error::new(io::ErrorKind::InvalidData, error);
        let rustls = TransportError::from(rustls::Error::AlertReceived(AlertDescription::UnknownCA));
        assert_eq!(received_alert(&io(rustls)).as_deref(), Some("unknown_ca"));
        let own = io(RecordError::AlertReceived(116).into());
        let wrapped = io::Error::other(own);
        assert_eq!(received_alert(&wrapped).as_deref(), Some("certificate_required"));
        assert_eq!(received_alert(&io(RecordError::Decrypt.into())), None);
        assert_eq!(received_alert(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
    }
}
