//! Both sides: as two processes (this test executable starts itself), and as two ends of one pair.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

use super::link::Link;
use super::message::{DESCRIPTORS_MAX, DrainingName, Message, SocketName};
use super::successor::{open_link, receive_offer};
use super::*;

const LIMIT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

fn never() -> bool {
    false
}

fn wait() -> Wait<'static> {
    Wait::new(LIMIT, &never)
}

/// This executable, as a process that runs one of the tests below; without
/// a predecessor these do nothing.
fn itself(test: &str) -> Program {
    let arguments = ["--exact", &format!("handover::tests::{test}"), "--nocapture"];
    let arguments = arguments.map(OsString::from).into();
    Program::new(std::env::current_exe().unwrap(), arguments, std::env::current_dir().unwrap())
}

fn shell(script: &str) -> Program {
    let arguments = ["-c", script].map(OsString::from).into();
    Program::new("/bin/sh".into(), arguments, "/".into())
}

fn offered(listener: &TcpListener, name: &str) -> OfferedSocket {
    OfferedSocket {
        name: name.to_owned(),
        address: listener.local_addr().unwrap().to_string(),
        socket: listener.try_clone().unwrap().into(),
        activated: false,
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Started by [`a_child_takes_over`]: answers one connection in each of three generations.
#[test]
fn serving_process() {
    let Some(mut offer) = take_over(&never).unwrap() else { return };
    let generations = offer.generations.clone();
    let reporter = offer.failure_reporter();
    let sockets = std::mem::take(&mut offer.sockets);
    let listeners: Vec<_> = sockets.into_iter().map(|socket| socket.into_tcp_listener().unwrap()).collect();
    let detail = json!({
        "generation": generations.number(),
        "draining": generations.draining().len(),
        "names": listeners.iter().map(|listener| &listener.name).collect::<BTreeSet<_>>(),
        "sockets": listeners.len(),
    });
    let permitted = offer.started().unwrap().ready(detail, wait()).unwrap();
    permitted.serving().unwrap().wait_released(wait()).unwrap();
    reporter.report("too late to matter");
    let listener = &listeners.first().unwrap().socket;
    let (mut stream, _) = listener.accept().unwrap();
    io::Write::write_all(&mut stream, b"successor").unwrap();
}

#[test]
fn failing_process() {
    let Some(offer) = take_over(&never).unwrap() else { return };
    offer.failure_reporter().report("apisix.node_listen: \"x\" is not a port");
}

#[test]
fn panicking_process() {
    let Some(offer) = take_over(&never).unwrap() else { return };
    // Else the output of the tests shows a failed one.
    rustix::stdio::dup2_stdout(File::create("/dev/null").unwrap()).unwrap();
    let _started = offer.started().unwrap();
    panic!("on purpose");
}

#[test]
fn hanging_process() {
    let Some(offer) = take_over(&never).unwrap() else { return };
    let _started = offer.started().unwrap();
    std::thread::park();
}

#[test]
fn a_child_takes_over() {
    let (one, other) = (listener(), listener());
    let sockets: Vec<_> =
        std::iter::repeat_n((&one, "https"), 300).chain(std::iter::repeat_n((&other, "http"), 300)).collect();
    let sockets: Vec<_> = sockets.into_iter().map(|(socket, name)| offered(socket, name)).collect();
    let starting = start(&itself("serving_process"), &sockets, &Generations::first()).unwrap();
    drop(sockets);
    let (ready, detail) = starting.wait_started(wait()).unwrap().wait_ready(wait()).unwrap();
    assert_eq!(
        detail,
        json!({"generation": 2, "draining": 1, "names": ["http", "https"], "sockets": 600}),
        "600 sockets arrive, in batches"
    );
    let mut serving = ready.go(wait()).unwrap();
    let addr = one.local_addr().unwrap();
    drop((one, other));
    let mut stream = std::net::TcpStream::connect(addr).expect("the successor's descriptor keeps it open");
    serving.released().unwrap();
    let mut text = String::new();
    io::Read::read_to_string(&mut stream, &mut text).unwrap();
    assert_eq!(text, "successor");
    while serving.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn a_successor_that_fails_names_its_reason() {
    let error = start(&itself("failing_process"), &[], &Generations::first())
        .unwrap()
        .wait_started(wait())
        .unwrap_err();
    let text = error.to_string();
    let HandoverError::Failed { reason, status: Some(status), step: Step::Started, .. } = error else {
        panic!("{error}")
    };
    assert!(status.success() && reason.contains("node_listen"), "{reason}");
    assert!(text.contains("failed before it had started, with exit status: 0: apisix.node_listen"), "{text}");
}

#[test]
fn a_successor_that_ends_is_reported_with_its_status() {
    let started = start(&itself("panicking_process"), &[], &Generations::first()).unwrap();
    let error = started.wait_started(wait()).unwrap().wait_ready(wait()).unwrap_err();
    assert!(error.to_string().contains("ended before it was ready, with exit status: 101"), "{error}");
    for (script, words) in
        [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9"), ("true", "exit status: 0")]
    {
        let sockets = [offered(&listener(), "x")];
        let error = start(&shell(script), &sockets, &Generations::first())
            .and_then(|starting| starting.wait_started(wait()))
            .unwrap_err();
        assert!(error.to_string().contains(words), "{script}: {error}");
    }
    let missing = Program::new("/nowhere/dataplane".into(), Vec::new(), "/".into());
    let error = start(&missing, &[], &Generations::first()).unwrap_err().to_string();
    assert!(error.contains("cannot start /nowhere/dataplane: No such file"), "{error}");
}

#[test]
fn a_successor_that_hangs_is_killed() {
    let started = start(&itself("hanging_process"), &[], &Generations::first()).unwrap();
    let pid = started.pid();
    let started = started.wait_started(wait()).unwrap();
    let error = started.wait_ready(Wait::new(SHORT, &never)).unwrap_err();
    assert!(matches!(error, HandoverError::Late { step: Step::Ready, .. }), "{error}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it was killed and waited for");

    // It ignores SIGTERM and reads nothing, so that the later batches do not fit.
    let one = listener();
    let sockets: Vec<_> = (0..300).map(|_| offered(&one, "x")).collect();
    let error = start(&shell("trap '' TERM; while :; do sleep 1; done"), &sockets, &Generations::first())
        .and_then(|starting| starting.wait_started(Wait::new(SHORT, &never)))
        .unwrap_err();
    assert!(matches!(error, HandoverError::Late { .. } | HandoverError::System { .. }), "{error}");
}

#[test]
fn a_stop_cancels_the_wait() {
    let starting = start(&itself("hanging_process"), &[], &Generations::first()).unwrap();
    let pid = starting.pid();
    let error = starting.wait_started(wait()).unwrap().wait_ready(Wait::new(LIMIT, &|| true)).unwrap_err();
    assert!(matches!(error, HandoverError::Cancelled), "{error}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

/// The successor's end of a pair whose other end sent `messages`, with descriptors.
fn receive(messages: &[(Message, usize)]) -> (Result<OfferedSuccession, HandoverError>, Link) {
    let (predecessor, successor) = Link::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    for (message, descriptors) in messages {
        predecessor.send(message, &vec![null.as_fd(); *descriptors]).unwrap();
    }
    let link = open_link(successor).unwrap();
    (receive_offer(link, Wait::new(SHORT, &never)), predecessor)
}

fn offer(sockets: usize, draining: usize) -> Message {
    let draining = (0..draining).map(|number| DrainingName { pid: 7, generation: number as u64 }).collect();
    Message::Offer { pid: 7, generation: 4, sockets, draining }
}

fn names(count: usize) -> Message {
    let name = SocketName { name: "https".to_owned(), address: "127.0.0.1:443".to_owned(), activated: false };
    Message::Sockets { sockets: vec![name; count] }
}

#[test]
fn what_is_not_in_the_protocol_is_an_error() {
    for (messages, words) in [
        (vec![], "0 s passed before the predecessor had offered"),
        (vec![(Message::Go, 0)], "the message go comes too early"),
        (vec![(offer(1, 2), 1)], "1 life tokens for 2 names"),
        (vec![(offer(0, 0), 1)], "1 life tokens for 0 names"),
        (vec![(offer(2, 0), 0), (names(2), 1)], "1 sockets for 2 names"),
        (vec![(offer(2, 0), 0), (names(0), 0)], "0 sockets for 0 names"),
        (vec![(offer(2, 0), 0), (names(1), 1)], "had offered its sockets"),
        (vec![(offer(1, 0), 0), (Message::Started, 0)], "the message started comes too early"),
    ] {
        let (result, predecessor) = receive(&messages);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let (reported, _) = predecessor.receive(wait()).unwrap();
        assert_eq!(reported, Message::failed(&error), "the predecessor learns it");
    }
}

#[test]
fn garbage_and_too_large_packets_are_errors() {
    for (bytes, words) in [
        (&b"\xff\xfe"[..], "a message cannot be read"),
        (b"{\"message\":\"stop\"}", "unknown variant"),
        (&[b'a'; 100_000], "more than 65536 bytes"),
    ] {
        let (predecessor, successor) = Link::pair().unwrap();
        rustix::net::send(predecessor.try_clone().unwrap(), bytes, rustix::net::SendFlags::empty()).unwrap();
        let error = receive_offer(open_link(successor).unwrap(), wait()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let (link, _other) = Link::pair().unwrap();
    let long = Message::Ready { detail: Value::String("x".repeat(70_000)) };
    assert!(link.send(&long, &[]).unwrap_err().to_string().contains("ready has 70"));
    assert!(link.send(&Message::failed(&"ü".repeat(70_000)), &[]).is_ok(), "a reason is cut");
}

#[test]
fn more_descriptors_than_a_message_may_have_are_errors() {
    let null = File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); 100];
    let (predecessor, successor) = Link::pair().unwrap();
    assert!(
        predecessor.send(&names(1), &many[..=DESCRIPTORS_MAX]).unwrap_err().to_string().contains("over 64")
    );

    // A sender without this limit: the control message is truncated.
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    let bytes = serde_json::to_vec(&offer(1, 0)).unwrap();
    let flags = SendFlags::empty();
    sendmsg(predecessor.try_clone().unwrap(), &[io::IoSlice::new(&bytes)], &mut control, flags).unwrap();
    let error = receive_offer(open_link(successor).unwrap(), wait()).unwrap_err().to_string();
    assert!(error.contains("descriptors of a message were lost"), "{error}");
}

#[test]
fn standard_input_that_is_not_ours_is_named() {
    let (reader, _writer) = io::pipe().unwrap();
    let sockets = UnixDatagram::pair().unwrap();
    let streams = UnixStream::pair().unwrap();
    for (descriptor, words) in [
        (OwnedFd::from(File::open("/dev/null").unwrap()), "a file, a pipe or a terminal"),
        (reader.into(), "a file, a pipe or a terminal"),
        (sockets.0.into(), "another kind of socket"),
        (streams.0.into(), "another kind of socket"),
        (listener().into(), "another kind of socket"),
    ] {
        let error = open_link(descriptor).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(ENVIRONMENT), "{error}");
    }
}

#[test]
fn a_predecessor_that_dies_is_survived_once_it_has_offered() {
    let (result, predecessor) = receive(&[(offer(0, 0), 0)]);
    drop(predecessor);
    let generations = result.as_ref().unwrap().generations.clone();
    assert_eq!((generations.number(), generations.draining()), (5, vec![]));
    let permitted = result.unwrap().started().unwrap().ready(Value::Null, wait()).unwrap();
    permitted.serving().unwrap().wait_released(wait()).unwrap();

    let (predecessor, successor) = Link::pair().unwrap();
    predecessor.send(&offer(1, 0), &[]).unwrap();
    drop(predecessor);
    let error = receive_offer(open_link(successor).unwrap(), wait()).unwrap_err();
    assert!(matches!(error, HandoverError::PredecessorGone(Step::Offered)), "{error}");
}

#[test]
fn a_fifth_draining_generation_is_refused() {
    let refused = |generations: &Generations| {
        start(&shell("exit 1"), &[], generations)
            .err()
            .filter(|error| matches!(error, HandoverError::TooManyGenerations(_)))
    };
    let (mut generations, mut ends) = (Generations::first(), Vec::new());
    for number in 1..=4 {
        assert!(refused(&generations).is_none(), "generation {number} may upgrade");
        let (predecessor, successor) = Link::pair().unwrap();
        let tokens: Vec<_> = generations.open_tokens().cloned().collect();
        let draining = tokens
            .iter()
            .map(|token| DrainingName { pid: token.process.pid, generation: token.process.generation })
            .collect();
        let offer = Message::Offer { pid: 100 + number, generation: number.into(), sockets: 0, draining };
        let descriptors: Vec<_> = tokens.iter().map(|token| token.token.as_fd()).collect();
        predecessor.send(&offer, &descriptors).unwrap();
        generations = receive_offer(open_link(successor).unwrap(), wait()).unwrap().generations;
        ends.push(predecessor);
    }
    assert_eq!(generations.number(), 5);
    let error = refused(&generations).unwrap().to_string();
    assert!(error.contains("4 earlier generations still drain (processes 101, 102, 103, 104)"), "{error}");
    drop(ends.remove(1));
    assert_eq!(generations.draining().iter().map(|process| process.pid).collect::<Vec<_>>(), [101, 103, 104]);
    assert!(refused(&generations).is_none());
}

#[test]
fn a_received_socket_is_checked_against_its_name() {
    let (one, other) = (listener(), listener());
    let InheritedListener { name, addr, activated, .. } =
        OfferedSocket { activated: true, ..offered(&one, "https") }.into_tcp_listener().unwrap();
    assert!(activated);
    assert_eq!((name.as_str(), addr), ("https", one.local_addr().unwrap()));
    let address = one.local_addr().unwrap().to_string();
    let stream = std::net::TcpStream::connect(one.local_addr().unwrap()).unwrap();
    for (socket, words) in [
        (OwnedFd::from(other), "bound to 127.0.0.1:"),
        (stream.into(), "not listening"),
        (File::open("/dev/null").unwrap().into(), "no socket"),
    ] {
        let socket =
            OfferedSocket { name: "https".to_owned(), address: address.clone(), socket, activated: false };
        let error = socket.into_tcp_listener().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn the_program_is_the_one_that_was_started() {
    let program = Program::current().unwrap();
    assert_eq!(program.path().canonicalize().unwrap(), std::env::current_exe().unwrap());
}
