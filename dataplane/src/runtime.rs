//! The runtime of a worker: monoio on io_uring, or on epoll where io_uring is not available.
//!
//! Only this folder names monoio. [`Driver`] selects io_uring or epoll, [`block_on`] runs a
//! worker's thread, [`Listener`] and [`Socket`] are its TCP sockets, and [`sleep`], [`timeout`] and
//! [`Timer`] keep its time.
//!
//! monoio's rules, which the types here keep:
//! - Only the thread that created a ring may use it (SINGLE_ISSUER): [`block_on`] builds the
//!   runtime on the calling thread.
//! - An accept or a read in flight must not be dropped. [`AcceptCanceller`] cancels an accept in
//!   the kernel, which keeps the queue; [`ShutdownHandle`] ends a connection with `shutdown(2)`.
//!   Both complete the operation.
//! - A runtime with operations in flight must not be dropped: [`block_on`] leaks it, and the
//!   process exits right after.

pub mod descriptors;
mod driver;
mod socket;
mod time;

pub use self::driver::{Driver, block_on, pin_to_cpu, spawn};
pub use self::socket::{
    AcceptCanceller, Listener, ReadHalf, Reader, ShutdownHandle, Socket, WriteHalf, Writer, is_cancelled,
};
pub use self::time::{TimedOut, Timer, sleep, timeout};
