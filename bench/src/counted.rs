//! Functions that run measured work: one whose instructions callgrind counts, and one that it
//! ignores.

/// The argument of `--toggle-collect`: a wildcard that matches [`counted_by_callgrind`] alone.
pub const PATTERN: &str = "*counted_by_callgrind*";

/// Runs its work once.
pub type Runner = fn(&mut dyn FnMut());

/// Runs work whose instructions do not count.
pub fn uncounted(work: &mut dyn FnMut()) {
    work();
}

/// Runs work whose instructions callgrind counts. Never inlined or cloned: callgrind looks for its
/// symbol.
#[inline(never)]
pub fn counted_by_callgrind(work: &mut dyn FnMut()) {
    std::hint::black_box(work)();
}
