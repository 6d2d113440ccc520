//! The client direction of x509-limbo: a collection of chains with their right verdicts, run twice.
//!
//! [`verifier`] calls `pki` with the clock of each case, for the 116 scored and 7 extra ones.
//! [`over_tls`] handshakes with the real programs and the real clock, for the 109 whose verdict is
//! the same today. The repository holds no copy of the cases: `COUNTERSIGN_LIMBO` names the file
//! (or the folder with `clients.json`). Without it the suite prints that it did not run. It is not
//! cargo's harness: the last line is the score.

mod cases;
mod over_tls;
mod verifier;

use std::process::ExitCode;

/// Right verdicts, of how many.
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
    // Arguments of test runners: list the tests, or run those whose names contain a word.
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
