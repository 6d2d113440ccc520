//! Passes the version of Pingora from the lock file to the program: no figure without an exact
//! version.

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let version =
        lock.split("name = \"pingora\"\nversion = \"").nth(1).and_then(|rest| rest.split('"').next());
    println!("cargo::rustc-env=PINGORA_VERSION={}", version.unwrap_or("of an unknown version"));
}
