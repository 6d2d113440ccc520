//! A cache on a resource for values that the data plane derives from it, such as a TLS
//! configuration.
//!
//! Snapshots share unchanged resources, so a cached value lives exactly as long as its inputs are
//! unchanged, and nothing needs to be invalidated. Reading takes no lock.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Caches one value of any type. The cache is no part of the resource: all caches are equal, and a
/// clone is empty.
#[derive(Default)]
pub struct CacheSlot(OnceLock<Arc<dyn Any + Send + Sync>>);

impl CacheSlot {
    /// An empty cache.
    pub fn new() -> CacheSlot {
        CacheSlot::default()
    }

    /// The cached value, if it is a `T`.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get().and_then(|cached| Arc::clone(cached).downcast().ok())
    }

    /// Returns the cached value, or computes and caches it. Two threads may both compute it, and
    /// both get the value that was stored first. Each cache should have one type: a value of
    /// another type is computed each time.
    ///
    /// # Errors
    ///
    /// The error of `make`; nothing is cached then.
    pub fn get_or_try_init<T: Send + Sync + 'static, E>(
        &self,
        make: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<Arc<T>, E> {
        if let Some(cached) = self.get() {
            return Ok(cached);
        }
        let value = make()?;
        let stored = self.0.get_or_init(|| Arc::clone(&value) as Arc<dyn Any + Send + Sync>);
        Ok(Arc::clone(stored).downcast().unwrap_or(value))
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
        f.write_str(if self.0.get().is_some() { "CacheSlot(full)" } else { "CacheSlot(empty)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cached_once_and_a_failure_is_not() {
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
