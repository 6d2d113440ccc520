//! The control socket: a unix socket through which the command line reaches a running program.
//!
//! One connection carries one request and one response, a line of JSON each. The response is sent
//! when the thing is done or has failed, so a command's exit status is its result. Only the same
//! user and root are served: by the mode 0600, and by the peer credentials from the kernel.
//! Invariant: the path always names a listening socket, old or new: a socket is bound under a name
//! of its own and renamed. A process removes only its own socket.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::unix_path::ShortPath;

/// Names that a directory cleanup removed are bound again after this time.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a peer may take to send its request or to read its response.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: u64 = 4096;
const RESPONSE_BYTES_MAX: u64 = 1024 * 1024;
/// How long a process that leaves its socket waits for the answers of requests under way.
const CLOSE_MAX: Duration = Duration::from_secs(2);
const CLOSE_INTERVAL: Duration = Duration::from_millis(5);
/// Concurrent requests: an upgrade lasts long, and others are answered meanwhile.
const REQUESTS_MAX: usize = 16;

/// What a command asks of a running program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// Read the settings and every file they name again.
    Reload,
    /// Start a successor that takes over the listeners.
    Upgrade,
    /// Open the log files again.
    ReopenLogs,
    /// Report the filter of the log, or set it until the next reload.
    LogLevel {
        /// The filter; `None`: it stays.
        filter: Option<String>,
    },
    /// Report the process id.
    Pid,
}

impl ControlRequest {
    /// Does what both programs do at once, where the request arrives; `None`: the program does it.
    pub fn handle_here(&self) -> Option<Result<String, String>> {
        match self {
            Self::Pid => Some(Ok(std::process::id().to_string())),
            Self::ReopenLogs => Some(telemetry::log::reopen().map_err(|error| error.to_string())),
            Self::LogLevel { filter: None } => Some(Ok(telemetry::log::filter())),
            Self::LogLevel { filter: Some(filter) } => {
                let set = telemetry::log::set_filter(filter).map_err(|error| error.to_string());
                Some(set.map(|()| {
                    // Regardless of the new level.
                    let text = format!("log level {filter}, until the next reload or restart");
                    telemetry::log::write_unfiltered(&text);
                    text
                }))
            }
            Self::Reload | Self::Upgrade => None,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct RequestLine {
    request: ControlRequest,
}

/// The answer of a running program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlResponse {
    /// The process that answers.
    pub pid: u32,
    /// Whether it is done.
    pub ok: bool,
    /// What was done, or why not.
    pub message: String,
}

/// What a program does for a reload or an upgrade: a text about it, or why it failed. Called on a
/// plain thread, by several at once.
pub type Handler = Arc<dyn Fn(ControlRequest) -> Result<String, String> + Send + Sync>;

/// The path of a program's control socket: beside the file that this program writes.
pub fn path_beside(file: &Path, program: &str) -> PathBuf {
    file.with_file_name(format!("{program}.sock"))
}

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindSocketError {
    /// Another process serves requests at this path.
    #[error("process {0} listens on it already: give each program a folder of its own")]
    InUse(i32),
    /// The path names another kind of file.
    #[error("there is a file of its name, which is no socket: move it away")]
    NotASocket,
    /// The system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no socket, or no process listens on it.
    #[error("nothing listens on {path}", path = .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error("{path}: {error}: run this command as the user of the process, or as root", path = .path.display())]
    Denied {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The connection failed.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The program ended, or did not answer in time.
    #[error("{path}: the program closed the connection without an answer: its log may say why", path = .0.display())]
    NoAnswer(PathBuf),
    /// The process has no id here.
    #[error("{path}: the process that listens on it runs in another container: ask there", path = .0.display())]
    OtherNamespace(PathBuf),
}

/// A bound control socket; requests wait until [`ControlListener::serve`].
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket.
    file: (u64, u64),
}

impl ControlListener {
    /// Binds the socket, in place of an abandoned one and of that of process `predecessor`.
    ///
    /// # Errors
    /// [`BindSocketError`].
    pub fn bind(path: &Path, predecessor: Option<u32>) -> Result<Self, BindSocketError> {
        let short_path = ShortPath::of(path)?;
        check_free(short_path.path(), predecessor)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = ShortPath::of(&path.with_file_name(&name))?;
        // Of a killed process with the same id.
        if let Err(error) = fs::remove_file(temporary.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let listener = UnixListener::bind(temporary.path())?;
        let named = fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(temporary.path(), short_path.path()))
            .and_then(|()| file_id(short_path.path()));
        match named {
            Ok(file) => Ok(Self { listener, path: path.to_owned(), file }),
            Err(error) => {
                let _gone = fs::remove_file(temporary.path());
                Err(error.into())
            }
        }
    }

    /// Serves requests on a thread of its own until the returned value is closed or dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn serve(self, handler: Handler) -> io::Result<ControlSocket> {
        let (closed, running) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let wake = self.listener.try_clone()?;
        let thread = {
            let (closed, running) = (Arc::clone(&closed), Arc::clone(&running));
            thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || accept_loop(self, &closed, &running, &handler))?
        };
        Ok(ControlSocket { closed, running, wake, thread: Some(thread) })
    }

    fn is_named(&self) -> bool {
        ShortPath::of(&self.path).and_then(|short| file_id(short.path())).is_ok_and(|file| file == self.file)
    }

    /// Binds again where the path names nothing, or the socket of a process that has ended; a
    /// successor may have it.
    fn rebind_if_missing(&mut self) {
        if self.is_named() {
            return;
        }
        match Self::bind(&self.path, None) {
            Ok(bound) => {
                tracing::warn!(socket = %self.path.display(), "the control socket was gone; it is bound again");
                *self = bound;
            }
            Err(error) => {
                tracing::debug!(%error, "the control socket is gone and cannot be bound again");
            }
        }
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        if self.is_named()
            && let Ok(short_path) = ShortPath::of(&self.path)
        {
            let _gone = fs::remove_file(short_path.path());
        }
    }
}

/// A control socket that serves requests.
#[derive(Debug)]
pub struct ControlSocket {
    closed: Arc<AtomicBool>,
    running: Arc<AtomicUsize>,
    wake: UnixListener,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ControlSocket {
    /// Accepts no further request, and waits a moment for those being handled. The socket's file is
    /// gone afterwards, unless another process has its name.
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        // It wakes the thread. The listener is this process's alone: no successor shares it.
        let _closed = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&self.wake),
            nix::sys::socket::Shutdown::Both,
        );
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
        let deadline = Instant::now() + CLOSE_MAX;
        while self.running.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(CLOSE_INTERVAL);
        }
    }
}

/// An abandoned socket may be replaced, and that of the predecessor.
fn check_free(path: &Path, predecessor: Option<u32>) -> Result<(), BindSocketError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(BindSocketError::NotASocket),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let Ok(stream) = UnixStream::connect(path) else { return Ok(()) };
    match getsockopt(&stream.as_fd(), sockopt::PeerCredentials).map(|peer| peer.pid()) {
        Ok(pid) if u32::try_from(pid).ok() == predecessor => Ok(()),
        Ok(pid) => Err(BindSocketError::InUse(pid)),
        Err(error) => Err(BindSocketError::Io(error.into())),
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn accept_loop(
    mut listener: ControlListener,
    closed: &AtomicBool,
    running: &Arc<AtomicUsize>,
    handler: &Handler,
) {
    while !closed.load(Ordering::Acquire) {
        let mut polled = [PollFd::new(listener.listener.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(CHECK_INTERVAL).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, limit) {
            Ok(0) => listener.rebind_if_missing(),
            Ok(_) if closed.load(Ordering::Acquire) => return,
            Ok(_) => accept(&listener.listener, running, handler),
            Err(_) => {}
        }
    }
}

fn accept(listener: &UnixListener, running: &Arc<AtomicUsize>, handler: &Handler) {
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::warn!(%error, "the control socket cannot accept a connection");
            // No descriptor is left; the next accept would fail at once.
            thread::sleep(Duration::from_millis(100));
            return;
        }
    };
    if running.fetch_add(1, Ordering::AcqRel) >= REQUESTS_MAX {
        running.fetch_sub(1, Ordering::AcqRel);
        let _closed =
            respond(stream, Err(format!("{REQUESTS_MAX} requests are under way already: try again")));
        return;
    }
    let (served, handler) = (Arc::clone(running), Arc::clone(handler));
    let thread = thread::Builder::new().name("control-request".to_owned()).spawn(move || {
        if let Err(error) = serve_one(stream, &handler) {
            tracing::warn!(%error, "a request on the control socket was not served");
        }
        served.fetch_sub(1, Ordering::AcqRel);
    });
    if let Err(error) = thread {
        running.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%error, "a request on the control socket was not served");
    }
}

fn serve_one(stream: UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    let user = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?.uid();
    if user != Uid::effective().as_raw() && user != 0 {
        return respond(stream, Err(format!("user {user} may not control this process")));
    }
    let mut line = String::new();
    let read = BufReader::new((&stream).take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    if read == 0 {
        // A connection that checks whether the socket is in use.
        return Ok(());
    }
    let result = match serde_json::from_str::<RequestLine>(&line) {
        Ok(RequestLine { request }) => request.handle_here().unwrap_or_else(|| handler(request)),
        Err(error) => Err(format!("the request is no JSON line {{\"request\": ...}}: {error}")),
    };
    respond(stream, result)
}

fn respond(mut stream: UnixStream, result: Result<String, String>) -> io::Result<()> {
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    let ok = result.is_ok();
    let (Ok(message) | Err(message)) = result;
    let response = ControlResponse { pid: std::process::id(), ok, message };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Sends a request to the running program and waits for its answer, at most `limit`.
///
/// # Errors
/// [`RequestError`].
pub fn request(
    path: &Path,
    request: &ControlRequest,
    limit: Duration,
) -> Result<ControlResponse, RequestError> {
    let path = path.to_owned();
    let mut stream = match ShortPath::of(&path).and_then(|short_path| UnixStream::connect(short_path.path()))
    {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(RequestError::NotRunning(path));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(RequestError::Denied { path, error });
        }
        Err(error) => return Err(RequestError::Io { path, error }),
    };
    let mut line = String::new();
    let mut peer = 0;
    let exchanged = (|| {
        peer = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?.pid();
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(PEER_TIMEOUT))?;
        let mut sent = serde_json::to_vec(&RequestLine { request: request.clone() })?;
        sent.push(b'\n');
        stream.write_all(&sent)?;
        BufReader::new((&stream).take(RESPONSE_BYTES_MAX)).read_line(&mut line)
    })();
    match exchanged {
        Ok(_) => match serde_json::from_str::<ControlResponse>(&line) {
            // By the kernel, in the caller's namespace: root sends signals to it, and the process
            // may run as a user that root does not trust.
            Ok(_) if *request == ControlRequest::Pid && peer <= 0 => Err(RequestError::OtherNamespace(path)),
            Ok(response) if *request == ControlRequest::Pid && response.ok => {
                Ok(ControlResponse { message: peer.to_string(), ..response })
            }
            Ok(response) => Ok(response),
            Err(_) => Err(RequestError::NoAnswer(path)),
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(RequestError::NoAnswer(path))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(RequestError::NoAnswer(path)),
        Err(error) => Err(RequestError::Io { path, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn echo() -> Handler {
        Arc::new(|request| match request {
            ControlRequest::Upgrade => Err("the new program is broken".to_owned()),
            request => Ok(format!("{request:?}")),
        })
    }

    fn served(path: &Path, predecessor: Option<u32>) -> ControlSocket {
        ControlListener::bind(path, predecessor).unwrap().serve(echo()).unwrap()
    }

    #[test]
    fn a_request_is_answered_and_the_file_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_beside(&directory.path().join("last_good"), "dataplane");
        assert!(matches!(request(&path, &ControlRequest::Pid, LIMIT), Err(RequestError::NotRunning(_))));
        let socket = served(&path, None);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let response = request(&path, &ControlRequest::Reload, LIMIT).unwrap();
        assert_eq!(
            response,
            ControlResponse { pid: std::process::id(), ok: true, message: "Reload".to_owned() }
        );
        let failed = request(&path, &ControlRequest::Upgrade, LIMIT).unwrap();
        assert_eq!((failed.ok, failed.message.as_str()), (false, "the new program is broken"));
        drop(socket);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn garbage_gets_an_error_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _socket = served(&path, None);
        for garbage in [&b"reload\n"[..], b"{}\n", b"{\"request\":\"stop\"}\n", b"\xff\xfe\n", b"x"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(garbage).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(!answer.contains("\"ok\":true"), "{answer}");
        }
        let mut stream = UnixStream::connect(&path).unwrap();
        let _refused = stream.write_all(&[b'a'; 100_000]);
        drop(stream);
        assert!(request(&path, &ControlRequest::Pid, LIMIT).unwrap().ok);
    }

    #[test]
    fn the_process_id_is_that_of_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let liar: Handler = Arc::new(|_| Ok("1".to_owned()));
        let _socket = ControlListener::bind(&path, None).unwrap().serve(liar).unwrap();
        let response = request(&path, &ControlRequest::Pid, LIMIT).unwrap();
        assert_eq!(response.message, std::process::id().to_string());
    }

    #[test]
    fn a_successor_takes_the_name_and_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let old = served(&path, None);
        let in_use = ControlListener::bind(&path, None);
        assert!(matches!(in_use, Err(BindSocketError::InUse(_))), "{in_use:?}");
        let new = served(&path, Some(std::process::id()));
        drop(old);
        assert!(request(&path, &ControlRequest::Pid, LIMIT).unwrap().ok, "it removed its own socket only");
        std::mem::forget(new);
    }

    #[test]
    fn abandoned_sockets_are_replaced_and_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = served(&path, None);
        assert!(request(&path, &ControlRequest::Pid, LIMIT).unwrap().ok);
        drop(socket);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlListener::bind(&path, None), Err(BindSocketError::NotASocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_missing_socket_is_bound_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let mut listener = ControlListener::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        listener.rebind_if_missing();
        assert!(listener.is_named());
        let other = ControlListener::bind(&path, Some(std::process::id())).unwrap();
        listener.rebind_if_missing();
        assert!(!listener.is_named() && other.is_named(), "the successor keeps the name");
        let ControlListener { listener: ended, .. } = &other;
        nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(ended), nix::sys::socket::Shutdown::Both)
            .unwrap();
        listener.rebind_if_missing();
        assert!(listener.is_named(), "it has failed");
    }
}
