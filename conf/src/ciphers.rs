//! `apisix.ssl.ssl_ciphers`: OpenSSL's cipher list -> the supported suites in it, in its order.
//!
//! The syntax is that of `openssl ciphers` (SSL_CTX_set_cipher_list). The list does not govern the
//! suites of TLS 1.3, as in nginx. Invariant: a suite that the list omits or excludes is never
//! returned. An exclusion that cannot be understood is an error; OpenSSL ignores it.

/// A suite of TLS 1.2 (or 1.1) that a TLS engine supports.
#[derive(Debug, PartialEq, Eq)]
struct CipherSuite {
    name: &'static str,
    number: u16,
    /// OpenSSL's names of its groups, besides [`COMMON_GROUPS`].
    words: &'static [&'static str],
    bits: u16,
    /// Needs the BoringSSL engine (TLSv1.1).
    legacy: bool,
}

/// In OpenSSL's order.
const SUITES: [CipherSuite; 10] = [
    suite_256(
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        0xc02c,
        &["ECDSA", "aECDSA", "AES", "AES256", "AESGCM", "TLSv1.2"],
    ),
    suite_256("ECDHE-RSA-AES256-GCM-SHA384", 0xc030, &["aRSA", "AES", "AES256", "AESGCM", "TLSv1.2"]),
    suite_256("ECDHE-ECDSA-CHACHA20-POLY1305", 0xcca9, &["ECDSA", "aECDSA", "CHACHA20", "TLSv1.2"]),
    suite_256("ECDHE-RSA-CHACHA20-POLY1305", 0xcca8, &["aRSA", "CHACHA20", "TLSv1.2"]),
    suite_128(
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        0xc02b,
        &["ECDSA", "aECDSA", "AES", "AES128", "AESGCM", "TLSv1.2"],
    ),
    suite_128("ECDHE-RSA-AES128-GCM-SHA256", 0xc02f, &["aRSA", "AES", "AES128", "AESGCM", "TLSv1.2"]),
    legacy(suite_256(
        "ECDHE-ECDSA-AES256-SHA",
        0xc00a,
        &["ECDSA", "aECDSA", "AES", "AES256", "SHA", "SHA1", "CBC", "TLSv1", "TLSv1.0"],
    )),
    legacy(suite_256(
        "ECDHE-RSA-AES256-SHA",
        0xc014,
        &["aRSA", "AES", "AES256", "SHA", "SHA1", "CBC", "TLSv1", "TLSv1.0"],
    )),
    legacy(suite_128(
        "ECDHE-ECDSA-AES128-SHA",
        0xc009,
        &["ECDSA", "aECDSA", "AES", "AES128", "SHA", "SHA1", "CBC", "TLSv1", "TLSv1.0"],
    )),
    legacy(suite_128(
        "ECDHE-RSA-AES128-SHA",
        0xc013,
        &["aRSA", "AES", "AES128", "SHA", "SHA1", "CBC", "TLSv1", "TLSv1.0"],
    )),
];

/// Groups that contain all of [`SUITES`].
const COMMON_GROUPS: [&str; 7] = ["ALL", "HIGH", "ECDHE", "EECDH", "kECDHE", "kEECDH", "ECDH"];

/// Groups that contain none of [`SUITES`]: older key exchanges, ciphers and digests.
const UNSUPPORTED_GROUPS: [&str; 71] = [
    "3DES",
    "ADH",
    "AECDH",
    "AESCCM",
    "AESCCM8",
    "ARIA",
    "ARIA128",
    "ARIA256",
    "ARIAGCM",
    "CAMELLIA",
    "CAMELLIA128",
    "CAMELLIA256",
    "COMPLEMENTOFALL",
    "COMPLEMENTOFDEFAULT",
    "DES",
    "DH",
    "DHE",
    "DSS",
    "EDH",
    "EXP",
    "EXPORT",
    "EXPORT40",
    "EXPORT56",
    "GOST",
    "GOST89",
    "GOST89MAC",
    "GOST94",
    "IDEA",
    "KRB5",
    "LOW",
    "MD5",
    "MEDIUM",
    "NULL",
    "PSK",
    "RC2",
    "RC4",
    "RSA",
    "SEED",
    "SHA256",
    "SHA384",
    "SRP",
    "SSLv2",
    "SSLv3",
    "TLSv1.1",
    "aDH",
    "aDSS",
    "aECDH",
    "aGOST",
    "aGOST01",
    "aGOST12",
    "aNULL",
    "aPSK",
    "aSRP",
    "eNULL",
    "kDH",
    "kDHE",
    "kDHEPSK",
    "kDHd",
    "kDHr",
    "kECDH",
    "kECDHEPSK",
    "kECDHe",
    "kECDHr",
    "kEDH",
    "kGOST",
    "kGOST18",
    "kPSK",
    "kRSA",
    "kRSAPSK",
    "kSRP",
    "AECDHE",
];

const fn suite_256(name: &'static str, number: u16, words: &'static [&'static str]) -> CipherSuite {
    CipherSuite { name, number, words, bits: 256, legacy: false }
}

const fn suite_128(name: &'static str, number: u16, words: &'static [&'static str]) -> CipherSuite {
    CipherSuite { bits: 128, ..suite_256(name, number, words) }
}

const fn legacy(suite: CipherSuite) -> CipherSuite {
    CipherSuite { legacy: true, ..suite }
}

/// The supported suites of `ssl_ciphers`, in order of preference.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ciphers(Vec<&'static CipherSuite>);

impl Ciphers {
    /// The preference of a suite (by its IANA number), those of TLS 1.3 first; `None` when it is
    /// disabled.
    pub fn rank(&self, number: u16) -> Option<usize> {
        if number.to_be_bytes().first() == Some(&0x13) {
            return Some(0);
        }
        self.0.iter().position(|suite| suite.number == number).map(|place| place + 1)
    }

    /// Restricts an engine's suites to the enabled ones, in order of preference; `number` returns
    /// the IANA number of a suite.
    pub fn restrict<T>(&self, suites: &mut Vec<T>, number: impl Fn(&T) -> u16) {
        suites.retain(|suite| self.rank(number(suite)).is_some());
        suites.sort_by_key(|suite| self.rank(number(suite)));
    }

    /// OpenSSL's names of the suites, separated by colons, in order of preference.
    pub fn names(&self) -> String {
        self.0.iter().map(|suite| suite.name).collect::<Vec<_>>().join(":")
    }
}

/// A parsed cipher list.
#[derive(Debug)]
pub(crate) struct ParsedCiphers {
    pub ciphers: Ciphers,
    /// Parts without a supported suite.
    pub unsupported: Vec<String>,
}

/// Parses a list. `legacy`: the suites of the BoringSSL engine are supported.
///
/// # Errors
/// A part cannot be understood, or no suite is left.
pub(crate) fn parse(text: &str, old: bool) -> Result<ParsedCiphers, String> {
    let mut list = CipherList { entries: SUITES.iter().map(|suite| (suite, false)).collect() };
    let mut left_out = Vec::new();
    let separators = [':', ',', ' ', ';', '\t', '\n'];
    for (nth, part) in text.split(separators).filter(|part| !part.is_empty()).enumerate() {
        let (operation, words) = match part.split_at_checked(1) {
            Some((sign @ ("!" | "-" | "+"), words)) => (sign, words),
            _ => ("", part),
        };
        if let Some(command) = words.strip_prefix('@') {
            list.command(command)?;
            continue;
        }
        // OpenSSL accepts it only at the start.
        let words = if nth == 0 && part == "DEFAULT" && text.starts_with(part) { "ALL" } else { words };
        let words: Vec<&str> = words.split('+').collect();
        match words.iter().find_map(|word| unknown(word)) {
            Some(why) if !operation.is_empty() => {
                return Err(format!("{part} excludes or moves nothing that is known: {why}"));
            }
            Some(_) => left_out.push(part.to_owned()),
            None => {
                let served = list.apply(operation, &words).iter().any(|suite| old || !suite.legacy);
                if operation.is_empty() && !served {
                    left_out.push(part.to_owned());
                }
            }
        }
    }
    // The suites of TLS 1.3 are always enabled.
    left_out.retain(|part| !part.starts_with("TLS_"));
    let ciphers =
        Ciphers(list.entries.into_iter().filter(|(_, active)| *active).map(|(suite, _)| suite).collect());
    if ciphers.0.iter().all(|suite| suite.legacy && !old) {
        let served: Vec<_> = SUITES.iter().filter(|suite| !suite.legacy).map(|suite| suite.name).collect();
        return Err(format!("none of its suites can be served; there are {}", served.join(":")));
    }
    Ok(ParsedCiphers { ciphers, unsupported: left_out })
}

/// Why a word is unknown; `None` when it names a group or may name an unsupported suite.
fn unknown(word: &str) -> Option<String> {
    let groups = || {
        COMMON_GROUPS
            .iter()
            .chain(&UNSUPPORTED_GROUPS)
            .chain(SUITES.iter().flat_map(|suite| suite.words))
            .copied()
    };
    let names = || SUITES.iter().map(|suite| suite.name);
    if groups().chain(names()).any(|known| known == word) {
        return None;
    }
    let near = names().chain(groups()).map(|known| (strsim::damerau_levenshtein(known, word), known)).min();
    let near = near.filter(|(distance, _)| *distance <= 2).map(|(_, known)| known);
    // Every suite's name has a hyphen, no group's has.
    match near {
        None if word.contains('-') || word.starts_with("TLS_") => None,
        Some(known) => Some(format!("{word} is unknown (did you mean {known}?)")),
        None => Some(format!("{word} is unknown")),
    }
}

impl CipherSuite {
    fn belongs_to(&self, word: &str) -> bool {
        self.name == word || COMMON_GROUPS.contains(&word) || self.words.contains(&word)
    }
}

/// The list while rules are applied: every suite, and whether it is active.
struct CipherList {
    entries: Vec<(&'static CipherSuite, bool)>,
}

impl CipherList {
    /// Applies a rule like OpenSSL's ssl_cipher_apply_rule. Returns the suites that belong to all
    /// `words`.
    fn apply(&mut self, operation: &str, words: &[&str]) -> Vec<&'static CipherSuite> {
        let is = |suite: &CipherSuite| words.iter().all(|word| suite.belongs_to(word));
        let found = self.entries.iter().map(|(suite, _)| *suite).filter(|suite| is(suite)).collect();
        let entries = std::mem::take(&mut self.entries).into_iter();
        let adds = operation.is_empty();
        let (moved, stay): (Vec<_>, Vec<_>) =
            entries.partition(|(suite, active)| is(suite) && *active != adds);
        let moved = moved.into_iter().map(|(suite, _)| (suite, operation != "-"));
        self.entries = match operation {
            "!" => stay.into_iter().filter(|(suite, _)| !is(suite)).collect(),
            "-" => moved.chain(stay).collect(),
            _ => stay.into_iter().chain(moved).collect(),
        };
        found
    }

    fn command(&mut self, command: &str) -> Result<(), String> {
        match command.split_once('=') {
            None if command == "STRENGTH" => {
                self.entries.sort_by_key(|(suite, active)| (*active, std::cmp::Reverse(suite.bits)));
                Ok(())
            }
            Some(("SECLEVEL", level)) => match level {
                // Lower levels allow RSA keys below 2048 bits and SHA-1 signatures, which are
                // always rejected.
                "0" | "1" | "2" => Ok(()),
                _ => Err(format!("@SECLEVEL={level} is not supported: the level is 2; leave it out")),
            },
            _ => Err(format!("@{command} is unknown; there is @STRENGTH")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn served(text: &str) -> String {
        parse(text, false).unwrap().ciphers.names()
    }

    /// OpenSSL's result for a list, restricted to the supported suites; empty on error.
    fn openssl(text: &str) -> String {
        // Prevents a leading `-` from being read as an option.
        let text = if text.starts_with('-') { format!(":{text}") } else { text.to_owned() };
        let output = std::process::Command::new("openssl").args(["ciphers", &text]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let ours = |name: &&str| SUITES.iter().any(|suite| suite.name == *name);
        printed.trim_end().split(':').filter(ours).collect::<Vec<_>>().join(":")
    }

    #[test]
    fn common_cipher_lists_match_openssl() {
        for text in [
            // APISIX's default, nginx's, Mozilla's.
            "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384",
            "HIGH:!aNULL:!MD5",
            "ECDHE-RSA-AES256-GCM-SHA384:EECDH+AESGCM:EDH+AESGCM:!RC4:!DES:!EDH-RSA-DES-CBC3-SHA",
            "ALL:!ADH:!EXPORT56:RC4+RSA:+HIGH:+MEDIUM:+LOW:+SSLv2:+EXP:!eNULL",
            "EECDH+CHACHA20:EECDH+AES128:RSA+AES128:EECDH+AES256:RSA+AES256:EECDH+3DES:RSA+3DES:!MD5",
            "DEFAULT:!CHACHA20",
            "DEFAULT",
            "ECDHE+AESGCM:@STRENGTH",
            "AES128 AES256,CHACHA20;-aRSA",
            "ALL:-AES:AES:@STRENGTH",
            "HIGH:!ECDSA:@SECLEVEL=2",
            "TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-GCM-SHA256",
        ] {
            assert_eq!(parse(text, true).unwrap().ciphers.names(), openssl(text), "{text}");
        }
        assert_eq!(
            served("AES256+aRSA+AESGCM:CHACHA20+aRSA"),
            "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_cipher_list_matches_openssl(
            parts in proptest::collection::vec(
                ("[!+-]?", proptest::sample::subsequence(
                    vec!["ALL", "HIGH", "ECDHE", "ECDSA", "aRSA", "AES", "AES128", "AES256", "AESGCM", "CHACHA20", "SHA1", "TLSv1.2", "RSA", "kRSA", "MEDIUM", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"], 1..3)),
                1..6),
            strength in any::<bool>(),
        ) {
            let mut parts: Vec<String> = parts.iter().map(|(sign, words)| format!("{sign}{}", words.join("+"))).collect();
            parts.extend(strength.then(|| "@STRENGTH".to_owned()));
            let text = parts.join(":");
            let ours = parse(&text, true).map(|parsed| parsed.ciphers.names()).unwrap_or_default();
            prop_assert_eq!(ours, openssl(&text), "{}", text);
        }
    }

    #[test]
    fn unsupported_suites_are_reported() {
        let parsed = parse(
            "DHE-RSA-AES128-GCM-SHA256:AES128-SHA:kRSA:HIGH:TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-SHA",
            false,
        );
        assert_eq!(
            parsed.unwrap().unsupported,
            ["DHE-RSA-AES128-GCM-SHA256", "AES128-SHA", "kRSA", "ECDHE-RSA-AES128-SHA"]
        );
        for (text, message) in [
            (
                "DHE-RSA-AES128-GCM-SHA256",
                "none of its suites can be served; there are ECDHE-ECDSA-AES256-GCM-SHA384:",
            ),
            ("", "none of its suites"),
            ("HIGH:!ECDHE", "none of its suites"),
            ("TLS_AES_128_GCM_SHA256", "none of its suites"),
            ("ECDHE-RSA-AES128-SHA", "none of its suites"),
            ("HIGH:!CHACA20", "CHACA20 is unknown (did you mean CHACHA20?)"),
            ("HIGH:!ECDHE-RSA-AES128-GCM-SHA25", "did you mean ECDHE-RSA-AES128-GCM-SHA256?"),
            ("HIGH:-nothing", "nothing is unknown"),
            ("HIGH:@SECLEVEL=4", "@SECLEVEL=4 is not supported"),
            ("HIGH:@STRONG", "@STRONG is unknown"),
        ] {
            let problem = parse(text, false).unwrap_err();
            assert!(problem.contains(message), "{text}: {problem}");
        }
        assert!(parse("ECDHE-RSA-AES128-SHA", true).is_ok());
    }

    #[test]
    fn cipher_groups_match_openssl() {
        for word in
            SUITES.iter().flat_map(|suite| suite.words).chain(&COMMON_GROUPS).chain(&UNSUPPORTED_GROUPS)
        {
            let ours = parse(word, true).map(|parsed| parsed.ciphers.names()).unwrap_or_default();
            assert_eq!(ours, openssl(word), "{word}");
        }
    }

    #[test]
    fn tls13_suites_are_always_enabled() {
        let ciphers =
            parse("ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256", false).unwrap().ciphers;
        let ranks =
            [0x1301, 0x1303, 0xc030, 0xc02f, 0xc02b, 0xc013, 0x009c].map(|number| ciphers.rank(number));
        assert_eq!(ranks, [Some(0), Some(0), Some(1), Some(2), None, None, None]);
    }
}
