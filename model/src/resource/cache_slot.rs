//! A place in a resource where the data plane hangs what it made of it: a prepared TLS
//! configuration.
//!
//! The snapshot keeps unchanged resources as they are, so what hangs here lives exactly as long as
//! its inputs are unchanged, without any cache to invalidate. Reading takes no lock.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Holds one value of any one type. Not part of the resource: equal to every other slot, and empty
/// in a clone.
#[derive(Default)]
pub struct CacheSlot(OnceLock<Arc<dyn Any + Send + Sync>>);

impl CacheSlot {
    /// An empty one.
    pub fn new() -> CacheSlot {
        CacheSlot::default()
    }

    /// What hangs here, if it is a `T`.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get().and_then(|held| Arc::clone(held).downcast().ok())
    }

    /// What hangs here, made now if nothing does. Two cores that come at the same time may both
    /// make one; both get the one that was hung first. Use one type for one slot: another type
    /// is made anew each time.
    ///
    /// # Errors
    /// What `make` returns; then nothing hangs here and the next caller tries again.
    pub fn get_or_try_init<T: Send + Sync + 'static, E>(
        &self,
        make: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<Arc<T>, E> {
        if let Some(held) = self.get() {
            return Ok(held);
        }
        let made = make()?;
        let hung = self.0.get_or_init(|| Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
        Ok(Arc::clone(hung).downcast().unwrap_or(made))
    }
}

impl Clone for CacheSlot {
    fn clone(&self) -> CacheSlot {
        CacheSlot::new()
    }
}

impl PartialEq for CacheSlot {
    fn eq(&self, _: &CacheSlot) -> bool {
        true
    }
}

impl fmt::Debug for CacheSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "Slot(full)" } else { "Slot(empty)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_not_after_a_failure() {
        let slot = CacheSlot::new();
        assert_eq!(slot.get_or_try_init::<u32, _>(|| Err("no")), Err("no"));
        assert_eq!(slot.get_or_try_init::<_, ()>(|| Ok(Arc::new(1_u32))), Ok(Arc::new(1)));
        assert_eq!(slot.get_or_try_init::<u32, _>(|| Err("made twice")), Ok(Arc::new(1)));
        assert_eq!(
            slot.get_or_try_init::<_, ()>(|| Ok(Arc::new("another type"))),
            Ok(Arc::new("another type"))
        );
        assert_eq!(slot.clone().get::<u32>(), None);
        assert_eq!(slot.clone(), slot);
    }
}
