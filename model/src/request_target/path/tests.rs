use percent_encoding::percent_decode_str;
use proptest::prelude::*;

use super::*;

const PLAIN: PathOptions = PathOptions {
    match_uri_encoded_slash: false,
    normalize_uri_like_servlet: false,
    delete_uri_tail_slash: false,
};
const SLASH: PathOptions = PathOptions { match_uri_encoded_slash: true, ..PLAIN };
const SERVLET: PathOptions = PathOptions { normalize_uri_like_servlet: true, ..PLAIN };
const TAIL: PathOptions = PathOptions { delete_uri_tail_slash: true, ..PLAIN };

/// The normalized path and the forwarded one.
fn both(raw: &str, options: PathOptions) -> Result<(String, String), RequestTargetError> {
    let NormalizedPath { path, forwarded } = normalize(raw, options)?;
    let forwarded = forwarded.map_or_else(|| path.clone(), String::from);
    Ok((path, forwarded))
}

#[track_caller]
fn is(options: PathOptions, raw: &str, normalized: &str, forwarded: &str) {
    assert_eq!(both(raw, options), Ok((normalized.to_owned(), forwarded.to_owned())), "{raw}");
}

#[test]
fn every_spelling_of_a_path_is_normalized() {
    for raw in ["/a/b", "//a//b", "/a/./b", "/x/../a/b", "/%61/b", "/a%2Fb", "/a/%2e/b", "/x/%2e%2E/a/b"] {
        is(PLAIN, raw, "/a/b", "/a/b");
    }
    for (raw, normalized) in [
        ("/", "/"),
        ("/a/", "/a/"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a//", "/a/"),
        ("/a;x=1/b", "/a;x=1/b"),
        ("/a/;x/b", "/a/;x/b"),
        ("/.well-known/x", "/.well-known/x"),
        ("/...", "/..."),
        ("/a.b/c..d", "/a.b/c..d"),
        ("/secret/../public/x", "/public/x"),
        ("/secret%2f..%2fpublic/x", "/public/x"),
        ("/public/%2e%2e/secret", "/secret"),
    ] {
        is(PLAIN, raw, normalized, normalized);
    }
}

#[test]
fn the_forwarded_path_is_the_normalized_one_encoded_once() {
    for (raw, normalized, forwarded) in [
        ("/%25", "/%", "/%25"),
        ("/%252e%252e/x", "/%2e%2e/x", "/%252e%252e/x"),
        ("/a%20b", "/a b", "/a%20b"),
        ("/a%3fb%23c", "/a?b#c", "/a%3Fb%23c"),
        ("/%7e%41%3b%3D%40", "/~A;=@", "/~A;=@"),
        ("/a|b^c{d}[e]", "/a|b^c{d}[e]", "/a%7Cb%5Ec%7Bd%7D%5Be%5D"),
        ("/é/%C3%A9", "/é/é", "/%C3%A9/%C3%A9"),
        ("/a%5Cb%22", "/a\\b\"", "/a%5Cb%22"),
        ("/!$&'()*+,;=:@-._~", "/!$&'()*+,;=:@-._~", "/!$&'()*+,;=:@-._~"),
        ("/%EF%BC%8E%EF%BC%8E/x", "/．．/x", "/%EF%BC%8E%EF%BC%8E/x"),
    ] {
        is(PLAIN, raw, normalized, forwarded);
    }
}

#[test]
fn invalid_utf_8_is_preserved_and_distinct() {
    let mut normalized = std::collections::HashSet::new();
    for raw in
        ["/%C0%AE%C0%AE/x", "/%E9", "/%C3%A9", "/%FF%C3%A9", "/%F4%8F%BE%80", "/%80", "/%F4%8F%BF%BF%BF"]
    {
        let (path, forwarded) = both(raw, PLAIN).unwrap();
        assert_eq!(forwarded, raw);
        assert_eq!(&*path_bytes(&path), &*percent_decode_str(raw).collect::<Vec<u8>>(), "{raw}");
        assert!(normalized.insert(path), "{raw}");
    }
    assert!(!both("/%E9", PLAIN).unwrap().0.contains('é'));
}

#[test]
fn malformed_paths_are_rejected() {
    use RequestTargetError::{AboveRoot, AmbiguousDotSegment, InvalidByte, InvalidEscape, InvalidPath};
    for (expected, raws) in [
        (AboveRoot, &["/..", "/a/../..", "/a%2f..%2f..", "/%2e%2e/x"][..]),
        (InvalidEscape, &["/%", "/%4", "/%zz", "/%+1", "/%4é"]),
        (
            InvalidByte,
            &["/%00", "/\0", "/%0a", "/%0D%0A", "/%09", "/%1f", "/%7F", "/\x7f", "/a\\b", "/a\"b", "/\t"],
        ),
        (InvalidPath, &["a", "", "*", "http://a/b", "?x"]),
        (
            AmbiguousDotSegment,
            &[
                "/public/..;/secret",
                "/..;/x",
                "/%2e%2e;/",
                "/..%3b/",
                "/.;x/",
                "/a/.%3Bx",
                "/a/..;",
                "/public/..%5csecret",
                "/public/..%5Csecret/",
                "/a%5C..",
                "/a%5c.%5cb",
                "/a/b%5c..;x%5Cc",
                "/a/%2e%2e%5c",
            ],
        ),
    ] {
        for raw in raws {
            assert_eq!(normalize(raw, PLAIN), Err(expected), "{raw:?}");
        }
    }
}

#[test]
fn an_encoded_slash_is_kept_in_an_otherwise_normal_path() {
    is(SLASH, "/a%2fb/c", "/a%2Fb/c", "/a%2Fb/c");
    is(SLASH, "/a%2F%20b", "/a%2F b", "/a%2F%20b");
    is(SLASH, "/a%2F", "/a%2F", "/a%2F");
    // As in APISIX, the option does not apply to a path that needs normalization after decoding.
    is(SLASH, "/public%2F..%2Fsecret", "/secret", "/secret");
    is(SLASH, "/public/..%2fsecret", "/secret", "/secret");
    is(SLASH, "/a%2F/b", "/a/b", "/a/b");
    is(SLASH, "/a%2F%2Fb", "/a/b", "/a/b");
    is(SLASH, "/x/../a%2Fb", "/a/b", "/a/b");
    is(SLASH, "//a%2Fb", "/a/b", "/a/b");
    for malformed in ["/..%2Fx", "/a%2F..%5Cb", "/a%2F..;x"] {
        assert!(normalize(malformed, SLASH).is_err(), "{malformed}");
    }
    let tail = PathOptions { delete_uri_tail_slash: true, ..SLASH };
    is(tail, "/a%2Fb/", "/a/b", "/a/b");
    let servlet = PathOptions { normalize_uri_like_servlet: true, ..SLASH };
    is(servlet, "/a%2Fb;x", "/a/b", "/a/b;x");
}

#[test]
fn a_kept_slash_differs_from_an_escaped_percent() {
    is(SLASH, "/a%252Fb", "/a%252Fb", "/a%252Fb");
    is(SLASH, "/a%25252Fb", "/a%25252Fb", "/a%25252Fb");
    is(SLASH, "/a%252fb", "/a%252fb", "/a%252fb");
    is(SLASH, "/100%25", "/100%", "/100%25");
    is(SLASH, "/%2541", "/%41", "/%2541");
    is(PLAIN, "/a%252Fb", "/a%2Fb", "/a%252Fb");
}

#[test]
fn parameters_are_cut_from_the_normalized_path_only() {
    is(SERVLET, "/a;x=1/b;y", "/a/b", "/a;x=1/b;y");
    is(SERVLET, "/public/..;/secret", "/secret", "/secret");
    is(SERVLET, "/public/%2e%2e;x/secret", "/secret", "/secret");
    is(SERVLET, "/a/.;x/b", "/a/b", "/a/b");
    is(SERVLET, "/a/..;", "/", "/");
    is(SERVLET, "/a%3Bx%20y/b", "/a/b", "/a;x%20y/b");
    is(SERVLET, "/a/;x", "/a/", "/a/;x");
    is(SERVLET, "/a/b", "/a/b", "/a/b");
    assert_eq!(normalize("/;x/a", SERVLET), Err(RequestTargetError::EmptySegmentParameters));
    assert_eq!(normalize("/a/..;/..;/x", SERVLET), Err(RequestTargetError::AboveRoot));
    assert_eq!(normalize("/a/..;%5Cx", SERVLET), Err(RequestTargetError::AmbiguousDotSegment));
}

#[test]
fn a_tail_slash_is_cut_off() {
    for raw in ["/a/", "/a", "/a//", "/a/.", "/a/b/.."] {
        is(TAIL, raw, "/a", "/a");
    }
    is(TAIL, "/", "/", "/");
    is(TAIL, "/a%20/", "/a ", "/a%20");
}

#[test]
fn generated_paths_are_checked() {
    for good in ["/a/b", "/a%20b", "//a", "/...", "/a;..", "/%252e%252e", "/%FF"] {
        assert_eq!(check_generated(good), Ok(()), "{good}");
    }
    for bad in ["/..", "/a/%2E%2e/b", "/a%2F..%2Fb", "/..;x", "/a%5c..", "/./a", "/%0a", "/%zz", "/%00"] {
        assert!(check_generated(bad).is_err(), "{bad}");
    }
    assert_eq!(encode_text("a/b?c%2F\0é\u{10FF80}"), "a/b%3Fc%252F%00%C3%A9%F4%8F%BE%80");
}

#[test]
fn a_part_is_encoded_like_the_whole() {
    for (options, raw) in [(PLAIN, "/a/%FF%25/é%20"), (SLASH, "/a%2F%FF/%252F"), (SERVLET, "/%25/x%20")] {
        let (path, forwarded) = both(raw, options).unwrap();
        assert_eq!(encode(&path, options), forwarded, "{raw}");
    }
}

/// Whether a decoder that treats `\` as `/` and cuts parameters off finds a dot segment.
fn climbs(decoded: &[u8]) -> bool {
    decoded
        .split(|byte| b"/\\".contains(byte))
        .map(|segment| segment.split(|byte| *byte == b';').next().unwrap())
        .any(|name| name == b"." || name == b"..")
}

fn raw_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => prop::sample::select(vec![
            "/", "//", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", ";", "%3b", "a", "secret", "%61", "%25",
            "%252f", "%25252F", "%00", "%c0%ae", "%FF", "é", "%20", "?", "%3F", "\"", "|", "~", "%7e", "%zz", "*",
            "%F4%8F%BE%80", "\u{10FF80}", "2F", "25",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// Short, so that two of them often have the same meaning.
fn short_path() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "%2F",
        "%252F",
        "%25",
        "2F",
        "25",
        "%FF",
        "%C3%BF",
        "%F4%8F%BE%80",
        "%80",
        "/",
    ]);
    prop::collection::vec(pieces, 0..4).prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn options() -> impl Strategy<Value = PathOptions> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(slash, servlet, tail)| PathOptions {
        match_uri_encoded_slash: slash,
        normalize_uri_like_servlet: servlet,
        delete_uri_tail_slash: tail,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// The upstream decodes the normalized path, and the gateway would forward it unchanged.
    #[test]
    fn the_forwarded_path_normalizes_to_the_same_path(raw in raw_path(), options in options()) {
        let Ok((normalized, forwarded)) = both(&raw, options) else { return Ok(()) };
        prop_assert_eq!(both(&forwarded, options), Ok((normalized.clone(), forwarded.clone())));
        prop_assert!(forwarded.bytes().all(|byte| is_plain(byte) || byte == b'%'), "{}", forwarded);
        prop_assert!(normalized.starts_with('/') && !normalized.bytes().any(|byte| byte.is_ascii_control()));
        let decoded: Vec<u8> = percent_decode_str(&forwarded).collect();
        prop_assert!(!climbs(&decoded), "{}", forwarded);
        if !options.normalize_uri_like_servlet {
            prop_assert_eq!(encode(&normalized, options), forwarded.clone());
            if !options.match_uri_encoded_slash {
                prop_assert_eq!(&*path_bytes(&normalized), &decoded[..]);
            }
        }
        prop_assert_eq!(check_generated(&forwarded), Ok(()));
    }

    /// The fast path gives the result of the slow one.
    #[test]
    fn a_canonical_path_is_unchanged(raw in raw_path(), options in options()) {
        if is_canonical(&raw, options) {
            let full = remove_dot_segments(&decode(&raw, options.match_uri_encoded_slash).unwrap(), options).unwrap();
            prop_assert_eq!(&*full, raw.as_bytes());
            prop_assert_eq!(text(&full, options), raw.clone());
            prop_assert_eq!(encode_bytes(&full, false), raw);
        }
    }

    /// Equal normalized paths were forwarded as equal paths, apart from parameters.
    #[test]
    fn equal_normalized_paths_have_equal_forwarded_paths(a in short_path(), b in short_path(), slash in any::<bool>()) {
        let options = PathOptions { match_uri_encoded_slash: slash, ..PLAIN };
        if let (Ok(a), Ok(b)) = (both(&a, options), both(&b, options)) {
            prop_assert_eq!(a.0 == b.0, a.1 == b.1);
        }
    }
}
