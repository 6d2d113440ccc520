//! A first start of both programs: before any certificate exists, with files that other users can
//! read, with `check`; and core dumps.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::process::{program, run_to_end};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::Mode;
use tempfile::TempDir;

const PLANES: [&str; 2] = ["controlplane", "dataplane"];

/// A folder with the default `conf/config.yaml`.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir(home.path("conf")).unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        fs::copy(repository.join("conf/config.yaml"), home.path("conf/config.yaml")).unwrap();
        home.mode("conf/config.yaml", 0o644);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn init(&self, arguments: &[&str]) {
        let made = run_to_end("controlplane", &[&["pki", "init"], arguments].concat(), self.0.path()).await;
        assert!(made.status.success(), "{made:?}");
    }

    /// The error of a program that fails to start.
    async fn refused(&self, name: &str, arguments: &[&str]) -> String {
        let ended = run_to_end(name, arguments, self.0.path()).await;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        format!("{}{}", ended.stdout, ended.stderr)
    }

    /// The output of `check`.
    async fn check(&self) -> String {
        run_to_end("controlplane", &["check"], self.0.path()).await.stdout
    }
}

#[tokio::test]
async fn without_certificates_both_programs_name_the_command() {
    let home = Home::new();
    let control = [
        "admin-server.crt",
        "admin-server.key",
        "admin-ca.crt",
        "push-server.crt",
        "push-server.key",
        "keyring",
    ];
    let data = ["node.crt", "node.key", "push-ca.crt"];
    for (name, files) in [("controlplane", &control[..]), ("dataplane", &data[..])] {
        let output = home.refused(name, &[]).await;
        for file in files {
            assert!(output.contains(&format!("conf/pki/{file} (")), "{file}: {output}");
        }
        assert!(output.contains("`controlplane pki init`"), "{output}");
    }
    let output = home.refused("controlplane", &["check"]).await;
    assert!(output.contains("push-server.key") && output.contains("`controlplane pki init`"), "{output}");
    // The command in the message creates the missing files.
    home.init(&[]).await;
    let output = home.check().await;
    assert!(output.ends_with("is fine: the control plane can start\n"), "{output}");
}

#[tokio::test]
async fn in_another_folder_the_command_names_the_settings() {
    let home = Home::new();
    let config = home.path("conf/config.yaml");
    let ended = run_to_end("dataplane", &["-c", config.to_str().unwrap()], Path::new("/")).await;
    let command = format!("`controlplane pki init -c {}`", config.display());
    assert!(ended.stderr.contains(&command), "{command}: {}", ended.stderr);
    let made =
        run_to_end("controlplane", &["pki", "init", "-c", config.to_str().unwrap()], Path::new("/")).await;
    assert!(home.path("conf/pki/node.key").exists(), "{}", made.stderr);
}

#[tokio::test]
async fn a_single_missing_file_is_named() {
    let home = Home::new();
    home.init(&[]).await;
    for (name, file) in
        [("controlplane", "push-server.key"), ("dataplane", "node.key"), ("controlplane", "keyring")]
    {
        let kept = home.path("kept");
        fs::rename(home.path("conf/pki").join(file), &kept).unwrap();
        let output = home.refused(name, &[]).await;
        let named = output.matches("conf/pki/").count() - output.matches(&format!("conf/pki/{file}")).count();
        assert!(output.contains(&format!("conf/pki/{file} (")) && named == 0, "{output}");
        fs::rename(&kept, home.path("conf/pki").join(file)).unwrap();
    }
    fs::remove_file(home.path("conf/pki/keyring")).unwrap();
    let output = home.refused("controlplane", &["copy", "--from", "embedded", "--to", "yaml:x.yaml"]).await;
    assert!(output.contains("countersign.keyring_file"), "{output}");
    assert!(!home.path("x.yaml").exists());
}

#[tokio::test]
async fn the_keyring_is_random_and_never_replaced() {
    let (one, other) = (Home::new(), Home::new());
    one.init(&[]).await;
    other.init(&[]).await;
    let keyring = |home: &Home| fs::read_to_string(home.path("conf/pki/keyring")).unwrap();
    assert_ne!(keyring(&one), keyring(&other));
    assert_eq!(keyring(&one).trim_end().len(), 32);
    let before = keyring(&one);
    assert_eq!(fs::metadata(one.path("conf/pki/keyring")).unwrap().mode() & 0o777, 0o600);
    one.init(&["--force"]).await;
    assert_eq!(keyring(&one), before);
    for name in ["admin-ca.crt", "admin-ca.key"] {
        fs::remove_file(one.path("conf/pki").join(name)).unwrap();
    }
    let output = one.refused("controlplane", &["pki", "init"]).await;
    assert!(output.contains("there already") && keyring(&one) == before, "{output}");
    // The content is checked and never shown.
    for (text, words) in [("", "there is no key in it"), ("seventeen-bytes-x\n", "line 1 is 17 bytes long")] {
        other.mode("conf/pki/keyring", 0o600);
        fs::write(other.path("conf/pki/keyring"), text).unwrap();
        for arguments in [&[][..], &["check"][..]] {
            let output = other.refused("controlplane", arguments).await;
            assert!(output.contains("countersign.keyring_file") && output.contains(words), "{output}");
            assert!(!output.contains("seventeen"), "{output}");
        }
    }
}

#[tokio::test]
async fn readable_secret_files_cause_warnings() {
    let home = Home::new();
    home.init(&[]).await;
    let clean = home.check().await;
    let mut warnings = clean.lines().filter(|line| line.contains("warning"));
    assert!(
        warnings.all(|line| line.contains("the start makes an empty store")),
        "the quick start warns of nothing else: {clean}"
    );
    for file in ["admin-server.key", "push-server.key", "node.key", "keyring"] {
        let path = format!("conf/pki/{file}");
        for (mode, word) in
            [(0o604, "can read"), (0o640, "can read"), (0o620, "can change"), (0o602, "can change")]
        {
            home.mode(&path, mode);
            let output = home.check().await;
            let warned = format!("(mode {mode:04o})");
            assert!(
                output.contains(file) && output.contains(word) && output.contains(&warned),
                "{mode:o}: {output}"
            );
        }
        home.mode(&path, 0o600);
    }
    for mode in [0o400, 0o600, 0o700] {
        home.mode("conf/pki/node.key", mode);
        assert_eq!(home.check().await, clean);
    }
    home.mode("conf/pki/push-server.key", 0o644);
    let node = run_to_end("dataplane", &["-c", "conf/config.yaml", "--version"], home.0.path()).await;
    assert!(node.status.success());
    let doctor = run_to_end("controlplane", &["doctor"], home.0.path()).await.stdout;
    assert!(doctor.contains("other users can read it (mode 0644): chmod go="), "{doctor}");
}

#[tokio::test]
async fn a_settings_file_is_secret_only_when_it_holds_secrets() {
    let home = Home::new();
    home.init(&[]).await;
    let text = fs::read_to_string(home.path("conf/config.yaml")).unwrap();
    let warned = "the settings, with secrets in clear";
    for (secret, with) in [
        ("", text.clone()),
        ("an admin key", text.replace("key: ${{COUNTERSIGN_ADMIN_KEY:=}}", "key: a-key-of-mine")),
        ("its default", text.replace("COUNTERSIGN_ADMIN_KEY:=", "COUNTERSIGN_ADMIN_KEY:=a-key-of-mine")),
        (
            "a keyring",
            text.replace("apisix:\n", "apisix:\n  data_encryption: {keyring: [0123456789abcdef]}\n"),
        ),
        (
            "a keyring of one",
            text.replace("apisix:\n", "apisix:\n  data_encryption: {keyring: 0123456789abcdef}\n"),
        ),
        ("", text.replace("apisix:\n", "apisix:\n  data_encryption: {keyring: [qeddd145sfvddff3]}\n")),
        ("a password", text.replace("deployment:\n", "deployment:\n  etcd: {user: me, password: mine}\n")),
        ("", text.replace("deployment:\n", "deployment:\n  etcd: {user: me, password: \"${{PATH}}\"}\n")),
    ] {
        fs::write(home.path("conf/config.yaml"), with).unwrap();
        let output = home.check().await;
        assert_eq!(output.contains(warned), !secret.is_empty(), "{secret}: {output}");
        home.mode("conf/config.yaml", 0o600);
        assert!(!home.check().await.contains(warned), "{secret}");
        home.mode("conf/config.yaml", 0o644);
    }
}

#[tokio::test]
async fn both_programs_report_version_and_help() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let head = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(repository).output();
    let head = head.ok().filter(|output| output.status.success());
    for name in PLANES {
        let version = run_to_end(name, &["--version"], Path::new("/")).await.stdout;
        let (_, commit) =
            version.trim().split_once(&format!("{name} {} (", env!("CARGO_PKG_VERSION"))).unwrap();
        let commit = commit.strip_suffix(')').unwrap();
        if let (Some(head), None) = (&head, option_env!("COUNTERSIGN_COMMIT")) {
            assert_eq!(commit, String::from_utf8_lossy(&head.stdout).trim());
        }
        assert!(!commit.is_empty());
        let help = run_to_end(name, &["--help"], Path::new("/")).await.stdout;
        assert!(help.starts_with("The ") && help.lines().next().unwrap().contains("Countersign"), "{help}");
        for part in ["Usage:", "Options:", "--config <FILE>", "--version", "Examples:"] {
            assert!(help.contains(part), "{part}: {help}");
        }
    }
}

/// Run by a process of another user, because root can read everything. The program blocks on
/// reading its settings, after the steps under test.
#[test]
fn no_core_dumps_and_no_readable_memory() {
    for name in PLANES {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let settings = folder.path().join("settings");
        nix::unistd::mkfifo(&settings, Mode::from_bits_truncate(0o666)).unwrap();
        fs::set_permissions(&settings, fs::Permissions::from_mode(0o666)).unwrap();
        // By descriptor: the other user may not have access to the folders of the program.
        let opened = fs::File::open(program(name)).unwrap();
        fcntl(&opened, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        command.arg("-c").arg(&settings).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            command.uid(65534).gid(65534);
        }
        let mut child = command.spawn().unwrap();
        // Waits until the program reads.
        let writer = fs::OpenOptions::new().write(true).open(&settings).unwrap();
        let of = |file: &str| PathBuf::from(format!("/proc/{}/{file}", child.id()));
        let limits = fs::read_to_string(of("limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let bounds: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(bounds, ["0", "0"], "{name}: {core}");
        // The kernel makes root the owner of these files for a process that cannot be dumped.
        for file in ["mem", "environ", "maps"] {
            assert_eq!(fs::metadata(of(file)).unwrap().uid(), 0, "{name} {file}");
        }
        drop(writer);
        assert_eq!(child.wait().unwrap().code(), Some(1), "{name}");
    }
}
