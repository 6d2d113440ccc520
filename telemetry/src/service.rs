//! The service manager's notification protocol, sd_notify(3): readiness, status, reloads and the
//! watchdog.
//!
//! A thread sends the messages, so that no caller waits for the service manager. Without
//! NOTIFY_SOCKET in the environment every call does nothing. Invariants: messages are sent in the
//! order of the calls; WATCHDOG=1 is sent only while no required heartbeat is stale
//! ([`Heartbeats::stale`]), so a service manager restarts a program that hangs; after
//! [`ServiceManager::main_pid`] this process sends nothing, because the service has another main
//! process then.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::Heartbeats;

/// Variables that are meant for the process with one id. A program that starts its successor
/// removes them from the successor's environment; NOTIFY_SOCKET and WATCHDOG_USEC stay.
pub const ENVIRONMENT_OF_ONE_PROCESS: [&str; 4] =
    ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// How often the state is read: STATUS= changes at most this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// The same until READY=1 is sent.
const START_INTERVAL: Duration = Duration::from_millis(50);
/// How long the service manager may take to accept a message, before it is dropped.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// What the service manager shows of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceState {
    /// READY=1 is sent when this becomes true for the first time.
    pub ready: bool,
    /// One line, which `systemctl status` shows.
    pub status: String,
}

type StateFn = Box<dyn Fn() -> ServiceState + Send>;

enum Message {
    Send(String),
    Watch(Arc<Heartbeats>, StateFn),
    /// The last message of this process.
    Last(String),
    Flush(SyncSender<()>),
}

/// A handle on the service manager. Cheap to clone.
#[derive(Clone, Default)]
pub struct ServiceManager(Option<Sender<Message>>);

impl fmt::Debug for ServiceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceManager").field("is_present", &self.0.is_some()).finish()
    }
}

impl ServiceManager {
    /// The service manager that NOTIFY_SOCKET names. Does nothing without that variable, and when
    /// it cannot be used, which is logged.
    pub fn from_env() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        let watchdog = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        Self::start(&address, watchdog).unwrap_or_else(|error| {
            tracing::warn!(
                ?address,
                %error,
                "NOTIFY_SOCKET cannot be used, so the service manager is not notified: it must be an absolute path, or an \
                 abstract name that begins with @"
            );
            Self::default()
        })
    }

    fn start(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let address = socket_address(address)?;
        let (sender, messages) = mpsc::channel();
        let notifier = Notifier { socket, address, is_failing: false, is_last: false };
        let watch = Watch::new(watchdog);
        let run = move || run(&messages, notifier, watch);
        thread::Builder::new().name("service".to_owned()).spawn(run)?;
        Ok(Self(Some(sender)))
    }

    /// From now on sends READY=1 once `state` is ready, STATUS= when it changes, and WATCHDOG=1
    /// while no required heartbeat is stale. `state` must not block.
    pub fn watch(&self, heartbeats: Arc<Heartbeats>, state: impl Fn() -> ServiceState + Send + 'static) {
        self.send(Message::Watch(heartbeats, Box::new(state)));
    }

    /// What the program does, until [`ServiceManager::watch`] says more.
    pub fn status(&self, text: &str) {
        self.send(Message::Send(NotifyState::Status(text).to_string()));
    }

    /// A reload begins.
    pub fn reloading(&self) {
        if self.0.is_some() {
            let clock = NotifyState::monotonic_usec_now();
            let clock = clock.map(|clock| format!("{clock}\n")).unwrap_or_default();
            self.send(Message::Send(format!("{}\n{clock}", NotifyState::Reloading)));
        }
    }

    /// The reload has ended, whether or not it changed anything.
    pub fn reloaded(&self) {
        self.send(Message::Send(NotifyState::Ready.to_string()));
    }

    /// The service has another main process from now on, to which this process has handed over.
    pub fn main_pid(&self, pid: u32) {
        self.send(Message::Last(NotifyState::MainPid(pid).to_string()));
    }

    /// The program stops.
    pub fn stopping(&self) {
        let status = NotifyState::Status("stopping: open connections may finish");
        self.send(Message::Send(format!("{}\n{status}\n", NotifyState::Stopping)));
    }

    /// Waits until the messages so far are sent, for at most a second. Call it before the end of
    /// the process.
    pub fn flush(&self) {
        let (done, is_done) = mpsc::sync_channel(1);
        self.send(Message::Flush(done));
        // An error: nothing will be sent any more, or not within this time.
        let _flushed = is_done.recv_timeout(SEND_TIMEOUT).is_ok();
    }

    fn send(&self, message: Message) {
        if let Some(sender) = &self.0 {
            // The thread lives as long as there is a sender.
            let _is_sent = sender.send(message).is_ok();
        }
    }
}

/// The address in NOTIFY_SOCKET: a path, or an abstract name after `@`.
fn socket_address(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The sending end.
struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
    /// The last message could not be sent, which is logged.
    is_failing: bool,
    /// Nothing is sent any more.
    is_last: bool,
}

impl Notifier {
    fn send(&mut self, message: &str) {
        if self.is_last {
            return;
        }
        match self.socket.send_to_addr(message.as_bytes(), &self.address) {
            Ok(_) => self.is_failing = false,
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                tracing::warn!(%error, message, "the service manager was not notified");
            }
            Err(_) => {}
        }
    }
}

/// What is sent without a call.
struct Watch {
    state: Option<(Arc<Heartbeats>, StateFn)>,
    is_ready: bool,
    /// The last STATUS=.
    shown: String,
    /// Half of WATCHDOG_USEC, and when the next WATCHDOG=1 is due.
    watchdog: Option<(Duration, Instant)>,
    /// A required heartbeat is stale, which is logged.
    is_hanging: bool,
}

impl Watch {
    fn new(watchdog: Option<Duration>) -> Self {
        let watchdog = watchdog.map(|limit| (limit / 2, Instant::now()));
        Self { state: None, is_ready: false, shown: String::new(), watchdog, is_hanging: false }
    }

    /// The time until the next call of [`Watch::notify`].
    fn interval(&self) -> Duration {
        let interval = if self.is_ready { STATUS_INTERVAL } else { START_INTERVAL };
        self.watchdog.map_or(interval, |(_, due)| interval.min(due.saturating_duration_since(Instant::now())))
    }

    fn notify(&mut self, notifier: &mut Notifier) {
        let Some((heartbeats, state)) = &self.state else { return };
        let ServiceState { ready, status } = state();
        // A line break would begin another assignment.
        let status = status.replace(['\n', '\r'], " ");
        let mut message = String::new();
        if ready && !self.is_ready {
            self.is_ready = true;
            message = format!("{}\n", NotifyState::Ready);
        }
        if status != self.shown {
            message = format!("{message}{}\n", NotifyState::Status(&status));
            self.shown = status;
        }
        let stale = heartbeats.stale();
        if self.is_watchdog_due() && self.is_alive(&stale) {
            message = format!("{message}{}\n", NotifyState::Watchdog);
        }
        if !message.is_empty() {
            notifier.send(&message);
        }
    }

    fn is_watchdog_due(&mut self) -> bool {
        let now = Instant::now();
        let Some((interval, due)) = self.watchdog.as_mut().filter(|(_, due)| *due <= now) else {
            return false;
        };
        *due = now + (*interval).max(Duration::from_millis(1));
        true
    }

    /// Whether every required loop runs. Logs the first time that one does not.
    fn is_alive(&mut self, stale: &[(String, Duration)]) -> bool {
        let was_hanging = std::mem::replace(&mut self.is_hanging, !stale.is_empty());
        if self.is_hanging && !was_hanging {
            let names: Vec<_> = stale.iter().map(|(name, _)| name.as_str()).collect();
            let seconds = stale.iter().map(|(_, age)| age.as_secs()).max().unwrap_or_default();
            tracing::error!(
                "{} has not run for {seconds} s: no WATCHDOG=1 is sent until it runs, and the service manager ends this process \
                 after its WatchdogSec",
                names.join(", ")
            );
        }
        !self.is_hanging
    }
}

fn run(messages: &Receiver<Message>, mut notifier: Notifier, mut watch: Watch) {
    let mut next = Instant::now();
    loop {
        match messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Message::Send(text)) => notifier.send(&text),
            Ok(Message::Last(text)) => {
                notifier.send(&text);
                notifier.is_last = true;
                watch = Watch::new(None);
            }
            Ok(Message::Watch(heartbeats, state)) => {
                watch.state = Some((heartbeats, state));
                next = Instant::now();
            }
            Ok(Message::Flush(done)) => {
                let _is_awaited = done.send(()).is_ok();
            }
            Err(RecvTimeoutError::Timeout) => {
                watch.notify(&mut notifier);
                next =
                    Instant::now() + if watch.state.is_some() { watch.interval() } else { STATUS_INTERVAL };
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::Readiness;

    const WAIT: Duration = Duration::from_secs(30);

    /// A service manager with an abstract socket name, which no file has.
    fn manager(name: &str) -> (UnixDatagram, std::ffi::OsString) {
        let name = format!("countersign-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        (socket, std::ffi::OsString::from_vec(format!("@{name}").into_bytes()))
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let read = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..read].to_vec()).unwrap()
    }

    fn state(ready: bool, status: &str) -> ServiceState {
        ServiceState { ready, status: status.to_owned() }
    }

    #[test]
    fn messages_are_sent_in_the_order_of_the_calls() {
        let (socket, address) = manager("order");
        let service = ServiceManager::start(&address, None).unwrap();
        let ready = Arc::new(AtomicBool::new(false));
        let is_ready = Arc::clone(&ready);
        service.status("starts");
        service.watch(Arc::default(), move || match is_ready.load(Ordering::Relaxed) {
            false => state(false, "waits\nREADY=1"),
            true => state(true, "serves"),
        });
        assert_eq!(receive(&socket), "STATUS=starts");
        assert_eq!(receive(&socket), "STATUS=waits READY=1\n", "one assignment only");
        ready.store(true, Ordering::Relaxed);
        assert_eq!(receive(&socket), "READY=1\nSTATUS=serves\n");
        service.reloading();
        service.reloaded();
        let text = receive(&socket);
        let clock = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(clock.trim_end().parse::<u64>().unwrap() > 0);
        assert_eq!(receive(&socket), "READY=1");
        service.stopping();
        assert!(receive(&socket).starts_with("STOPPING=1\nSTATUS="));
        service.main_pid(42);
        service.stopping();
        service.flush();
        assert_eq!(receive(&socket), "MAINPID=42");
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 16]).is_err(), "nothing follows MAINPID=");
    }

    #[test]
    fn the_watchdog_stops_while_a_required_loop_hangs() {
        let (socket, address) = manager("watchdog");
        let heartbeats = Arc::new(Heartbeats::default());
        let ignored = heartbeats.add("ignored", Readiness::Ignored);
        ignored.make_stale();
        let service = ServiceManager::start(&address, Some(Duration::from_millis(20))).unwrap();
        service.watch(Arc::clone(&heartbeats), || state(true, "serves"));
        assert_eq!(receive(&socket), "READY=1\nSTATUS=serves\nWATCHDOG=1\n");
        assert_eq!(receive(&socket), "WATCHDOG=1\n");
        let worker = heartbeats.add("worker", Readiness::Required);
        worker.make_stale();
        service.status("mark");
        while receive(&socket) != "STATUS=mark" {}
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let first = socket.recv(&mut [0; 64]);
        // One may have been on its way.
        assert!(first.is_err() || socket.recv(&mut [0; 64]).is_err(), "a hanging worker gets no WATCHDOG=1");
        socket.set_read_timeout(Some(WAIT)).unwrap();
        worker.beat();
        assert_eq!(receive(&socket), "WATCHDOG=1\n", "it runs again");
    }

    #[test]
    fn a_service_manager_that_is_away_delays_nothing() {
        let (socket, address) = manager("away");
        drop(socket);
        let service = ServiceManager::start(&address, None).unwrap();
        service.status("x");
        service.flush();
        for bad in ["relative", "vsock:2:1234", "@"] {
            let started = ServiceManager::start(OsStr::new(bad), None);
            assert!(started.is_err() || bad == "@", "{bad}");
        }
        let absent = ServiceManager::default();
        absent.watch(Arc::default(), || state(true, ""));
        absent.reloading();
        absent.flush();
    }
}
