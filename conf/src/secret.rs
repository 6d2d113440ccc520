//! Text that must not be printed: admin keys, the keyring, passwords.
//!
//! Invariant: no `Debug`, `Display` or error message shows it; only `expose` returns the text, so a
//! search for that name finds every use of a secret. The memory is wiped on drop.

use zeroize::Zeroizing;

/// A secret from the configuration. `Debug` prints three stars.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself. Never log it and never put it into an error.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is empty: an empty admin key makes the control plane generate one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_the_text() {
        assert_eq!(format!("{:?}", Secret::new("edd1c9f034335f136f87ad84b625c8f1".into())), "***");
    }
}
