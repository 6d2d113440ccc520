//! The OCI image layout: as the specification has it, and run as a container would be: an
//! unprivileged user on a read-only root.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::build::packages;
use super::machine::Machine;
use super::{packaging, run};

const USER: u32 = 65532;
const CONFIG: &str = "/etc/countersign/config.yaml";

/// The layout, unpacked.
fn layout(into: &Path) {
    let mut files = fs::read_dir(packages()).unwrap().map(|entry| entry.unwrap().path());
    let archive = files.find(|path| path.to_str().unwrap().ends_with(".oci.tar")).unwrap();
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into));
}

/// The content that a descriptor names, after its size and digest were checked.
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let content = fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
    assert_eq!(descriptor["size"], content.len());
    assert_eq!(sha256(&content), digest);
    content
}

fn sha256(content: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    data_encoding::HEXLOWER.encode(digest.as_ref())
}

fn json(content: &[u8]) -> Value {
    serde_json::from_slice(content).unwrap()
}

/// One image: its configuration, and its layers on top of each other in a folder.
fn unpack(layout: &Path, name: &str, into: &Path) -> Value {
    let index = json(&fs::read(layout.join("index.json")).unwrap());
    let is_it = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
    let entry = index["manifests"].as_array().unwrap().iter().find(is_it).unwrap();
    let manifest = json(&blob(layout, entry));
    let config = json(&blob(layout, &manifest["config"]));
    let layers = manifest["layers"].as_array().unwrap();
    let diffs = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(layers.len(), diffs.len());
    for (layer, diff) in layers.iter().zip(diffs) {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
        let archive = into.with_extension("tar.gz");
        fs::write(&archive, blob(layout, layer)).unwrap();
        run(Command::new("gzip").arg("-df").arg(&archive));
        let archive = into.with_extension("tar");
        assert_eq!(format!("sha256:{}", sha256(&fs::read(&archive).unwrap())), diff.as_str().unwrap());
        run(Command::new("tar").arg("-xpf").arg(archive).arg("-C").arg(into));
    }
    config
}

/// A container's process.
struct Container {
    child: Child,
    ready: Value,
}

impl Container {
    fn start(machine: &Machine, config: &Value, log: &Path) -> Self {
        let words: Vec<_> = ["Entrypoint", "Cmd"]
            .iter()
            .flat_map(|key| config["config"][*key].as_array().unwrap())
            .map(|word| word.as_str().unwrap())
            .collect();
        let log_file = fs::File::create(log).unwrap();
        let mut command = machine.program(USER, &words);
        let mut child = command.stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready =
            line.strip_prefix("ready ").unwrap_or_else(|| panic!("{}", fs::read_to_string(log).unwrap()));
        Self { child, ready: json(ready.as_bytes()) }
    }
}

#[test]
fn the_images_run_as_containers_do() {
    let folder = tempfile::tempdir().unwrap();
    let (layout_folder, etc) = (folder.path().join("layout"), folder.path().join("etc"));
    fs::create_dir(&layout_folder).unwrap();
    layout(&layout_folder);
    assert_eq!(json(&fs::read(layout_folder.join("oci-layout")).unwrap())["imageLayoutVersion"], "1.0.0");

    // Both in one root, which the base layer is the same of.
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let configs = ["controlplane", "dataplane"].map(|name| unpack(&layout_folder, name, &root));
    for (config, port) in configs.iter().zip(["9180/tcp", "9443/tcp"]) {
        let (settings, labels) = (&config["config"], &config["config"]["Labels"]);
        assert_eq!(settings["User"], format!("{USER}:{USER}"));
        assert!(settings["ExposedPorts"].get(port).is_some() && settings["Volumes"].is_object());
        assert_eq!(labels["org.opencontainers.image.version"], "0.1.0-1");
        assert!(labels["org.countersign.base-packages"].as_str().unwrap().contains("libc6 "), "{labels}");
    }
    let base = fs::read_to_string(root.join("usr/share/countersign/base-packages")).unwrap();
    for package in base.lines().map(|line| line.split(' ').next().unwrap()) {
        assert!(root.join("usr/share/doc").join(package).join("copyright").is_file(), "{package}");
    }

    // What a container runtime adds.
    for mount_point in ["proc", "dev"] {
        fs::create_dir(root.join(mount_point)).unwrap();
    }
    fs::create_dir(&etc).unwrap();
    fs::copy(packaging("config.yaml"), etc.join("config.yaml")).unwrap();
    let Some(machine) = Machine::read_only(&root, &etc) else { return };
    chown(&etc, Some(USER), Some(USER)).unwrap();
    run(&mut machine.program(USER, &["/usr/bin/controlplane", "pki", "init", "-c", CONFIG]));
    let logs = ["controlplane", "dataplane"].map(|name| folder.path().join(name));
    let mut running = Vec::new();
    for (config, log) in configs.iter().zip(&logs) {
        running.push(Container::start(&machine, config, log));
    }
    assert_eq!(running[1].ready["https"][0], "0.0.0.0:9443");
    let ready = "http://127.0.0.1:7085/status/ready";
    run(&mut machine.client(&[
        "curl",
        "-fsS",
        "--retry",
        "20",
        "--retry-all-errors",
        "--retry-delay",
        "1",
        ready,
    ]));
    drop(machine);
    for mut container in running {
        container.child.wait().unwrap();
    }
}
