//! Reads callgrind's output: each function's own instructions, and which of them are the crypto
//! library's.
//!
//! valgrind's manual has the format ("Callgrind Format Specification"): names are compressed
//! (`fn=(3) name` once, then `fn=(3)`), and the line after `calls=` is the inclusive cost of the
//! callee, which counts at the callee itself.

use std::collections::{BTreeMap, HashMap};

/// Why the output is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallgrindError {
    /// A line that the manual does not describe.
    #[error("line {line} of callgrind's output: {problem}: `{text}`")]
    Syntax {
        /// Counted from 1.
        line: usize,
        problem: &'static str,
        text: String,
    },
    /// The costs that were read do not add up to callgrind's total.
    #[error("callgrind counted {total} instructions, and {summed} were found in its output")]
    Sum { total: u64, summed: u64 },
    /// The end is missing.
    #[error("callgrind's output has no end: is the disk full? Run it again")]
    Cut,
    /// No counted instruction outside of the crypto library.
    #[error("callgrind counted nothing of ours: is `counted_by_callgrind` still a function of its own?")]
    Nothing,
}

/// A function: its object file and its name.
type Function = (String, String);

/// Own instructions of each function, and inclusive ones of each call, by caller and callee.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile {
    own: BTreeMap<Function, u64>,
    calls: BTreeMap<(Function, Function), u64>,
}

/// Instructions with a budget, and those that are only reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// Of the data plane, its libraries, the allocator, and their calls of the C library.
    pub ours: u64,
    /// Of the crypto library and its calls: they depend on the processor alone.
    pub crypto: u64,
}

/// Object files or functions: `(3) name` defines number 3, `(3)` refers to it.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    fn resolve(&mut self, text: &str) -> Option<String> {
        let Some(rest) = text.strip_prefix('(') else { return Some(text.to_owned()) };
        let (number, name) = rest.split_once(')')?;
        if name.is_empty() {
            return self.0.get(number).cloned();
        }
        let name = name.trim_start().to_owned();
        self.0.insert(number.to_owned(), name.clone());
        Some(name)
    }
}

impl Profile {
    /// Reads one file of `--tool=callgrind` whose only event is `Ir`.
    pub fn parse(text: &str) -> Result<Self, CallgrindError> {
        let mut profile = Self::default();
        let (mut objects, mut functions) = (Names::default(), Names::default());
        let (mut caller, mut callee) = (Function::default(), Function::default());
        // Absent where it is the caller's.
        let mut callee_object = None;
        let (mut is_call, mut total) = (false, None);
        for (index, line) in text.lines().enumerate() {
            let syntax = |problem| CallgrindError::Syntax { line: index + 1, problem, text: line.to_owned() };
            let unknown = || syntax("a number without a name");
            if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
                let cost = line.split_ascii_whitespace().nth(1).map_or(Some(0), |field| field.parse().ok());
                let cost: u64 = cost.ok_or_else(|| syntax("no cost"))?;
                if std::mem::take(&mut is_call) {
                    *profile.calls.entry((caller.clone(), callee.clone())).or_default() += cost;
                } else {
                    *profile.own.entry(caller.clone()).or_default() += cost;
                }
                continue;
            }
            let Some((key, value)) = line.split_once('=').or_else(|| line.split_once(": ")) else { continue };
            match key {
                "events" if value.trim() != "Ir" => return Err(syntax("other events than Ir")),
                "ob" => caller.0 = objects.resolve(value).ok_or_else(unknown)?,
                "fn" => caller.1 = functions.resolve(value).ok_or_else(unknown)?,
                "cob" => callee_object = Some(objects.resolve(value).ok_or_else(unknown)?),
                "cfn" => {
                    let object = callee_object.take().unwrap_or_else(|| caller.0.clone());
                    callee = (object, functions.resolve(value).ok_or_else(unknown)?);
                }
                "calls" => is_call = true,
                "totals" => total = Some(value.trim().parse().map_err(|_| syntax("no number"))?),
                _ => {}
            }
        }
        let summed = profile.own.values().sum();
        match total {
            None => Err(CallgrindError::Cut),
            _ if summed == 0 => Err(CallgrindError::Nothing),
            Some(total) if total != summed => Err(CallgrindError::Sum { total, summed }),
            _ => Ok(profile),
        }
    }

    /// Instructions outside and inside of the crypto library. `program`: the end of the object file
    /// that both are linked into.
    ///
    /// # Errors
    /// [`CallgrindError::Nothing`] when none is outside.
    pub fn instructions(&self, program: &str) -> Result<Instructions, CallgrindError> {
        let within = |(object, _): &Function| object.ends_with(program);
        let crypto = |function: &Function| within(function) && is_crypto(&function.1);
        let all: u64 = self.own.values().sum();
        let own = self.own.iter().filter(|(function, _)| crypto(function)).map(|(_, cost)| cost);
        // Its calls of the C library count as its own; the C library never calls back.
        let outside = self.calls.iter().filter(|((caller, callee), _)| crypto(caller) && !within(callee));
        let crypto = own.chain(outside.map(|(_, cost)| cost)).sum();
        let ours = all.checked_sub(crypto).filter(|&ours| ours > 0).ok_or(CallgrindError::Nothing)?;
        Ok(Instructions { ours, crypto })
    }

    /// The functions outside of the crypto library with the most instructions.
    pub fn dearest(&self, program: &str, count: usize) -> Vec<(&str, u64)> {
        let ours =
            self.own.iter().filter(|((object, name), _)| !(object.ends_with(program) && is_crypto(name)));
        let mut ours: Vec<_> = ours.map(|((_, name), cost)| (name.as_str(), *cost)).collect();
        ours.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        ours.truncate(count);
        ours
    }
}

/// In this program, the crypto library is the only C and assembly beside the allocator and the
/// start code.
fn is_crypto(name: &str) -> bool {
    let rust =
        name.contains("::") || name.starts_with('<') || name.starts_with("_R") || name.starts_with("__rust");
    let allocator = name.trim_start_matches('_').starts_with("mi_");
    !rust && !allocator && !matches!(name, "(below main)" | "_start" | "main")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# callgrind format\nversion: 1\ncreator: callgrind-3.19.0\npid: 7\ncmd:  ./budget count\npart: 1\n\n\
desc: I1 cache: \n\ndesc: Trigger: Program termination\n\npositions: line\nevents: Ir\nsummary: 1160\n\n\n\
ob=(1) /x/target/budget/budget\nfl=(1) ???\nfn=(1) dataplane::testing::tls::hello::read\n0 100\n\
cob=(2) /lib/libc.so.6\ncfi=(2) ???\ncfn=(2) memcpy\ncalls=3 0 \n0 60\n+3 40\n* 5\n-3 5\n\n\
fn=(3) aws_lc_0_43_0_EVP_DigestUpdate\n0 900\ncob=(2)\ncfn=(2)\ncalls=1 0\n0 20\ncfn=(4) OPENSSL_cleanse\ncalls=1 0\n0 50\n\n\
fn=(4)\n0 50\n\nob=(2)\nfl=(2)\nfn=(2)\n0 60\n\ntotals: 1160\n";

    fn parsed() -> Profile {
        Profile::parse(TEXT).unwrap()
    }

    #[test]
    fn own_costs_are_summed_without_inclusive_ones() {
        let own =
            |name: &str| parsed().own.iter().find(|((_, found), _)| found == name).map(|(_, cost)| *cost);
        assert_eq!(own("dataplane::testing::tls::hello::read"), Some(150));
        assert_eq!(own("memcpy"), Some(60));
        assert_eq!(own("OPENSSL_cleanse"), Some(50));
    }

    #[test]
    fn calls_of_the_crypto_library_count_as_its_own() {
        assert_eq!(parsed().instructions("/budget"), Ok(Instructions { ours: 190, crypto: 970 }));
        let other = "aws_lc_0_43_0_EVP_DigestInit";
        let all = Profile::parse(&TEXT.replace("dataplane::testing::tls::hello::read", other)).unwrap();
        assert_eq!(all.instructions("/budget"), Err(CallgrindError::Nothing));
        let dearest = parsed();
        assert_eq!(
            dearest.dearest("/budget", 2),
            [("dataplane::testing::tls::hello::read", 150), ("memcpy", 60)]
        );
    }

    #[test]
    fn c_and_assembly_count_as_the_crypto_library() {
        for name in [
            "aws_lc_0_43_0_ecp_nistz256_point_double",
            "_aesni_ctr32_ghash_6x",
            "sha256_final",
            "bn_mul_mont",
        ] {
            assert!(is_crypto(name), "{name}");
        }
        for name in [
            "<T as core::fmt::Debug>::fmt",
            "_RNvC1x",
            "_mi_page_malloc",
            "__mi_prim_thread_id",
            "mi_free",
            "rustls::conn::x",
            "__rust_alloc",
            "(below main)",
        ] {
            assert!(!is_crypto(name), "{name}");
        }
    }

    #[test]
    fn inconsistent_output_is_an_error() {
        let cut = TEXT.replace("totals: 1160", "totals: 1161");
        assert_eq!(Profile::parse(&cut), Err(CallgrindError::Sum { total: 1161, summed: 1160 }));
        let at = TEXT.lines().position(|line| line == "0 900").unwrap() + 1;
        assert_eq!(
            Profile::parse(&TEXT.replace("0 900", "0 x")),
            Err(CallgrindError::Syntax { line: at, problem: "no cost", text: "0 x".to_owned() })
        );
        assert!(matches!(
            Profile::parse(&TEXT.replace("fn=(4)\n0 50", "fn=(9)\n0 50")),
            Err(CallgrindError::Syntax { problem: "a number without a name", .. })
        ));
        assert!(matches!(
            Profile::parse(&TEXT.replace("events: Ir", "events: Ir Dr")),
            Err(CallgrindError::Syntax { problem: "other events than Ir", .. })
        ));
    }

    #[test]
    fn output_without_counts_is_an_error() {
        assert_eq!(Profile::parse("events: Ir\ntotals: 0\n"), Err(CallgrindError::Nothing));
        assert_eq!(Profile::parse(""), Err(CallgrindError::Cut));
        assert_eq!(Profile::parse(TEXT.split("totals").next().unwrap()), Err(CallgrindError::Cut));
    }
}
