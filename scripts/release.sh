#!/usr/bin/env bash
# Builds the programs to be run for real, in target/profiled: the data plane is compiled twice, the second time with a
# profile of the first under load (docs/decisions/0023-profile-guided.md). Without llvm-profdata of the compiler's LLVM it says
# so and copies the plain release build; PROFILE=no does that at once. Takes ten to twenty minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/profiled
work=target/profile
cargo=${CARGO:-cargo}
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

# Of the compiler's own tool chain, or of a system package of the same version.
profdata() {
  for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "$(command -v "llvm-profdata-$llvm" || true)"; do
    [ -x "$tool" ] && echo "$tool" && return
  done
  return 1
}

# build FOLDER FLAGS [OPTIONS...]: the data plane alone; --target keeps the flags away from build scripts.
build() {
  local folder=$1 flags=$2
  shift 2
  RUSTFLAGS="$flags" "$cargo" build --locked --release --target "$host" --target-dir "$folder" -p dataplane "$@"
}

echo "release: the programs, and the load they are trained with"
"$cargo" build --locked --release -p controlplane -p dataplane -p bench --bin controlplane --bin dataplane --bin compare
rm -rf "$out" && mkdir -p "$out"
cp target/release/controlplane target/release/dataplane "$out/"

if [ "${PROFILE:-yes}" = no ]; then
  echo "release: $out has the plain release build (PROFILE=no)"
  exit 0
fi
if ! tool=$(profdata); then
  echo "release: *** WITHOUT A PROFILE: there is no llvm-profdata of LLVM $llvm ***" >&2
  echo "release: install it with \`apt-get install llvm-$llvm\` or \`rustup component add llvm-tools\`, and run this again" >&2
  exit 0
fi

rm -rf "$work/raw" && mkdir -p "$work/raw" "$work/training"
echo "release: a data plane that counts what it executes"
# How it is linked does not matter to the counts: the quickest way.
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
  build "$work/counting" "-Cprofile-generate=$PWD/$work/raw"
cp "$work/counting/$host/release/dataplane" target/release/controlplane "$work/training/"

echo "release: training it: handshakes full and resumed, requests over HTTP/1.1 and HTTP/2, to upstreams in clear and over TLS"
target/release/compare --peers countersign --bin-dir "$work/training" --out "$work/results" --rounds 1 --seconds 3 \
  --measures new,new-rsa,new-unrouted,resumed,static,static-h2,kept,kept-h2,kept-mtls,kept-mtls-h2 >"$work/training.log"
compgen -G "$work/raw/*.profraw" >/dev/null || { echo "release: the training left no profile; see $work/training.log" >&2; exit 1; }
"$tool" merge -o "$work/dataplane.profdata" "$work"/raw/*.profraw

echo "release: the data plane again, with that profile"
COUNTERSIGN_PROFILED=1 build "$work/profiled" "-Cprofile-use=$PWD/$work/dataplane.profdata"
cp "$work/profiled/$host/release/dataplane" "$out/"
echo "release: $out has the control plane and the data plane"
