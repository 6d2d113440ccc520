//! Signal handling of a server process, on a thread of its own.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | graceful shutdown; the second one exits with [`EXIT_FORCED`] |
//! | SIGHUP | reload: subscribers read the settings and files again |
//! | SIGUSR1 | the log files are opened again, for log rotation |
//! | SIGUSR2 | upgrade: a new program takes over the listeners |
//!
//! Rust's runtime ignores SIGPIPE; this module handles SIGXFSZ (a file at its size limit,
//! RLIMIT_FSIZE), so that the write fails and its caller handles the error. Invariant: after
//! [`install_handlers`] no signal of this table ends the process before it has shut down
//! gracefully, except for the second stop signal.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::{io, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals as Incoming;
use tokio::sync::watch;

/// The exit status after a second stop signal: that of a shell for SIGINT.
pub(crate) const EXIT_FORCED: u8 = 130;

/// The received signals. Cheap to clone; every clone sees every signal.
#[derive(Debug, Clone)]
pub struct Signals {
    stop: watch::Receiver<bool>,
    reload: Count,
    upgrade: Count,
}

/// How often a signal was received.
type Count = Arc<watch::Sender<u64>>;

/// Handles the signals of the table above from now on. Call it once, after the log is initialised
/// and before anything that takes time.
///
/// # Errors
/// When the system refuses a handler or a thread.
pub fn install_handlers() -> io::Result<Signals> {
    let incoming = Incoming::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2])?;
    // With any handler the system call returns EFBIG. SIGXFSZ is not in the list above, where each
    // signal logs a line: that write would fail again.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let (stop, stopping) = watch::channel(false);
    let count = || Arc::new(watch::Sender::new(0));
    let signals = Signals { stop: stopping, reload: count(), upgrade: count() };
    let received = signals.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || handle_all(incoming, &stop, &received))?;
    Ok(signals)
}

fn handle_all(mut incoming: Incoming, stop: &watch::Sender<bool>, signals: &Signals) {
    for signal in incoming.forever() {
        match signal {
            SIGHUP => {
                tracing::info!("SIGHUP: the settings, certificates, keys and CAs are read again");
                increment(&signals.reload);
            }
            SIGUSR1 => telemetry::log::reopen_in_background(),
            SIGUSR2 if signals.upgrade.receiver_count() == 0 => tracing::warn!(
                "SIGUSR2 is ignored: this process hands its listeners to no other now; start the new program, then send \
                 SIGTERM to this one"
            ),
            SIGUSR2 => increment(&signals.upgrade),
            _ if stop.send_replace(true) => telemetry::exit(EXIT_FORCED),
            stop => {
                let name = name(stop);
                tracing::info!("{name}: stopping gracefully; a second signal ends the process at once");
            }
        }
    }
}

fn increment(count: &watch::Sender<u64>) {
    count.send_modify(|count| *count = count.wrapping_add(1));
}

fn name(signal: c_int) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("signal")
}

impl Signals {
    /// True from the first stop signal on.
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.stop.clone()
    }

    /// The number of SIGHUPs. A receiver is notified of those after its creation; several close
    /// together may be one notification.
    pub fn reload(&self) -> watch::Receiver<u64> {
        self.reload.subscribe()
    }

    /// The same for SIGUSR2. Without a receiver the signal is logged as ignored.
    pub fn upgrade(&self) -> watch::Receiver<u64> {
        self.upgrade.subscribe()
    }

    /// Whether a stop signal was received.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Blocks this thread until a stop signal. Not for threads of an asynchronous runtime.
    ///
    /// # Errors
    /// When a runtime without drivers cannot be built.
    pub fn wait_for_stop(&self) -> io::Result<()> {
        let mut stop = self.stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        // An error would mean that the sending thread has ended, which it never does.
        let _stopping = runtime.block_on(stop.wait_for(|stop| *stop)).is_ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    /// One test, because handlers apply to the whole process.
    #[test]
    fn hup_and_usr2_count_and_quit_stops() {
        let signals = install_handlers().unwrap();
        let (mut reload, mut upgrade) = (signals.reload(), signals.upgrade());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE, Signal::SIGHUP] {
            raise(signal).unwrap();
        }
        runtime.block_on(reload.changed()).unwrap();
        assert_eq!(*reload.borrow_and_update(), 1);
        runtime.block_on(upgrade.changed()).unwrap();
        assert!(!signals.is_stopping());
        assert!(!signals.reload().has_changed().unwrap(), "a later subscriber sees later signals only");
        raise(Signal::SIGQUIT).unwrap();
        signals.wait_for_stop().unwrap();
        assert!(signals.is_stopping());
        raise(Signal::SIGHUP).unwrap();
        runtime.block_on(reload.changed()).unwrap();
        assert_eq!(*reload.borrow(), 2, "a reload during a stop is harmless");
    }
}
