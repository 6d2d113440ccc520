//! The client direction of x509-limbo: a collection of chains with the verdict that is right for each, judged twice.
//!
//! [`verifier`]: by `pki` with the clock of each case, the 116 scored ones and the 7 extra ones. [`over_tls`]: in handshakes with the real
//! programs and the real clock, the 109 whose verdict is the same today. The project keeps no copy of the cases:
//! `COUNTERSIGN_LIMBO` names the file (or the folder that holds `clients.json`). Without it nothing is judged, and that is said loudly,
//! instead of looking like a success. Not cargo's harness: the last line is the score.

mod cases;
mod over_tls;
mod verifier;

use std::process::ExitCode;

/// Right ones, of how many.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Score {
    right: usize,
    of: usize,
}

impl Score {
    fn count(&mut self, right: bool) {
        self.of += 1;
        self.right += usize::from(right);
    }
}

fn main() -> ExitCode {
    // What test runners say to every test program: list your tests, or run those whose names hold a word.
    let (options, words): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    if options.iter().any(|option| option == "--list") {
        return ExitCode::SUCCESS;
    }
    if !words.is_empty() && !words.iter().any(|word| "limbo".contains(word.as_str())) {
        println!("skipped: limbo: {words:?} asks for other tests");
        return ExitCode::SUCCESS;
    }
    let Some(limbo) = cases::Limbo::find() else {
        println!("*** limbo: NOT RUN ***");
        println!(
            "skipped: limbo: set COUNTERSIGN_LIMBO to clients.json, or to its folder, to judge its cases"
        );
        return ExitCode::SUCCESS;
    };
    let (scored, extra) = verifier::judge(&limbo);
    let over_tls = over_tls::judge(&limbo);
    println!(
        "limbo: {} of {} right, {} of {} extra right, {} of {} over TLS right",
        scored.right, scored.of, extra.right, extra.of, over_tls.right, over_tls.of
    );
    let expected = [(scored, 116), (extra, 7), (over_tls, 109)];
    if expected.iter().all(|(score, all)| score.right == score.of && score.of >= *all) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
