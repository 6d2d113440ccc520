//! The doors through which measured work goes: one that callgrind looks for, and one that nobody minds.

/// What `--toggle-collect` is given: a wildcard that [`counted_by_callgrind`] matches and nothing else does.
pub const PATTERN: &str = "*counted_by_callgrind*";

/// Runs its work once.
pub type Door = fn(&mut dyn FnMut());

/// What goes through it is not counted.
pub fn freely(work: &mut dyn FnMut()) {
    work();
}

/// What goes through it is counted under callgrind, and nothing outside of it. Never inlined and never a copy: its symbol is
/// what callgrind looks for.
#[inline(never)]
pub fn counted_by_callgrind(work: &mut dyn FnMut()) {
    std::hint::black_box(work)();
}
