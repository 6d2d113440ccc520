//! Compiles the .proto files with protox, a compiler in Rust, so that no `protoc` is needed on the
//! machine.
#![allow(clippy::print_stdout, reason = "cargo reads it")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/push.proto"], ["proto"])?;
    // Private keys and ticket secrets pass through one message each; its Debug is written by hand
    // and shows none.
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug([".countersign.push.v1.KeyPair", ".countersign.push.v1.TicketSecret"])
        .compile_fds(files)?;
    Ok(())
}
