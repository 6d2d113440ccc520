//! The keyring: a file's keys precede those of the settings; warnings and errors.

use super::load_with;

fn with_file(text: &[u8]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keyring");
    std::fs::write(&file, text).unwrap();
    let settings = format!("countersign: {{keyring_file: \"{}\"}}", file.display());
    let settings = load_with(&settings, &[]).unwrap();
    assert!(!settings.uses_public_keyring());
    assert_eq!(settings.keyring_setting(), "countersign.keyring_file");
    settings.keyring().map_err(|error| error.to_string().replace(&*file.display().to_string(), "FILE"))
}

#[test]
fn keys_of_the_file_precede_those_of_the_settings() {
    let [one, other] = ["0123456789abcdef", "0123456789abcdef0123456789abcdef"];
    let public = ["qeddd145sfvddff3", "edd1c9f0985e76a2"];
    for text in [format!("{one}\n"), one.to_owned(), format!("\n {one}\r\n\n")] {
        assert_eq!(with_file(text.as_bytes()).unwrap(), [&[one], &public[..]].concat(), "{text:?}");
    }
    let two = format!("{other}\n{one}\n");
    assert_eq!(with_file(two.as_bytes()).unwrap(), [&[other, one], &public[..]].concat());
}

#[test]
fn an_unusable_keyring_file_is_an_error_without_content() {
    for (text, problem) in [
        (&b""[..], "there is no key in it; a key is a line of 16 or 32 bytes"),
        (b"\n\n", "there is no key in it; a key is a line of 16 or 32 bytes"),
        (b"secret", "line 1 is 6 bytes long; a key is a line of 16 or 32 bytes"),
        (b"0123456789abcdef\nsecret\n", "line 2 is 6 bytes long; a key is a line of 16 or 32 bytes"),
        (b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe", "stream did not contain valid UTF-8"),
        (
            b"# my key\n0123456789abcdef\n",
            "line 1 looks like a comment; each line of the file is a key, so remove it",
        ),
        (
            b"0123456789abcdef\n#comment",
            "line 2 looks like a comment; each line of the file is a key, so remove it",
        ),
        // It has the length of a key, but would be easy to guess.
        (b"# the key of '26", "line 1 looks like a comment; each line of the file is a key, so remove it"),
        (
            b"\xef\xbb\xbf0123456789abcdef\n",
            "it begins with a byte order mark (BOM), which an editor put there: save it as UTF-8 without one",
        ),
    ] {
        assert_eq!(with_file(text).unwrap_err(), format!("countersign.keyring_file: FILE: {problem}"));
    }
    let gone = load_with("countersign: {keyring_file: /nowhere/keyring}", &[]).unwrap();
    let gone = gone.keyring().unwrap_err().to_string();
    assert!(gone.starts_with("countersign.keyring_file: /nowhere/keyring: No such file"), "{gone}");
}

#[test]
fn a_public_keyring_warns() {
    let warned = |text: &str| {
        let settings = load_with(text, &[]).unwrap();
        let warned = settings.warnings.iter().any(|text| text.contains("public default keyring"));
        assert_eq!(warned, settings.uses_public_keyring() && !settings.apisix.keyring.is_empty(), "{text}");
        warned
    };
    let keyring = |list: &str| format!("apisix: {{data_encryption: {{keyring: {list}}}}}");
    assert!(warned("") && warned(&keyring("[qeddd145sfvddff3]")) && warned(&keyring("edd1c9f0985e76a2")));
    assert!(warned(&keyring("[edd1c9f0985e76a2, 0123456789abcdef]")));
    assert!(!warned(&keyring("[0123456789abcdef, edd1c9f0985e76a2]")));
    assert!(!warned("countersign: {keyring_file: keyring}"));
    for nothing in ["null", "\"\"", "\"${{NOT_SET:=}}\""] {
        assert!(warned(&format!("countersign: {{keyring_file: {nothing}}}")), "{nothing}");
    }
}

#[test]
fn an_endless_keyring_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, kind) in [(fifo.to_str().unwrap(), "a FIFO"), ("/dev/zero", "a device")] {
        let settings = load_with(&format!("countersign: {{keyring_file: \"{path}\"}}"), &[]).unwrap();
        assert!(settings.keyring().unwrap_err().to_string().contains(kind));
    }
}

#[test]
fn a_lost_keyring_must_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.redb");
    let text = format!(
        "countersign: {{keyring_file: \"{}\", store: {{path: \"{}\"}}}}",
        folder.path().join("keyring").display(),
        store.display()
    );
    let message = || load_with(&text, &[]).unwrap().check_control_plane_files().unwrap_err().to_string();
    assert!(!message().contains("was lost"), "{}", message());
    std::fs::write(&store, "").unwrap();
    assert!(message().contains("was lost") && message().contains("store.redb"), "{}", message());
}
