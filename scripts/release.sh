#!/usr/bin/env bash
# Builds the programs to be run for real, in target/profiled: the data plane is compiled twice, the second time with a
# profile of the first under load (docs/decisions/0023-profile-guided.md). Without llvm-profdata of the compiler's LLVM it says
# so and copies the plain release build; PROFILE=no does that at once. Takes ten to twenty minutes on two cores, and nothing when
# target/profiled was built from the same sources, by the same tools, with the same flags: target/profiled/inputs lists all of
# them with their digests, and is written last.
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

# The folders whose files go into the programs, or into the load they are trained with.
folders=$(sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",')
# What is not in a program: documents, the crates' tests, measured results.
# shellcheck disable=SC2086 # lists
sources() {
  local paths="Cargo.toml Cargo.lock scripts/release.sh $folders"
  for path in .cargo rust-toolchain rust-toolchain.toml; do [ -e "$path" ] && paths="$paths $path"; done
  if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard -- $paths
  else
    find $paths -name target -prune -o -path conf/pki -prune -o -type f -print0
  fi | grep -zvE '(\.md|^bench/results/.*|^bench/budget\.toml|^conf/config\.yaml.*|^([a-z_]+/)+tests/.*)$' | sort -zu
}

# One line for each input: a file and its digest, a tool and its version, a variable and its value.
inputs() {
  sources | while IFS= read -r -d '' file; do
    [ -e "$file" ] && sha256sum "$file" || true
  done
  rustc -vV
  "$cargo" --version
  cc --version 2>/dev/null | head -n 1 || true
  env | grep -E '^(RUSTFLAGS|CARGO_ENCODED_RUSTFLAGS|CARGO_PROFILE_.*|CARGO_BUILD_RUSTFLAGS|CARGO_BUILD_TARGET|CARGO_TARGET_.*|CC|CXX|CFLAGS|CXXFLAGS|COUNTERSIGN_COMMIT)=' \
    | grep -v '^CARGO_TARGET_DIR=' | LC_ALL=C sort || true
  echo "profile ${PROFILE:-yes} $(profdata || echo none)"
}

# The programs as they were built, so that another one in their place is noticed.
programs() {
  (cd "$out" && sha256sum controlplane dataplane)
}

# build FOLDER FLAGS [OPTIONS...]: the data plane alone; --target keeps the flags away from build scripts.
build() {
  local folder=$1 flags=$2
  shift 2
  RUSTFLAGS="$flags" "$cargo" build --locked --release --target "$host" --target-dir "$folder" -p dataplane "$@"
}

wanted=$(inputs)
stamp=$(sha256sum <<<"$wanted" | cut -c 1-12)
if [ -e "$out/inputs" ] && [ -e target/release/compare ] && programs 2>/dev/null | cmp -s - "$out/programs"; then
  if changed=$(diff "$out/inputs" - <<<"$wanted"); then
    echo "release: $out is up to date: its inputs have not changed (stamp $stamp)"
    exit 0
  fi
  changed=$(sed -nE 's/^[<>] ([0-9a-f]{64}  )?//p' <<<"$changed" | LC_ALL=C sort -u)
  echo "release: changed since $out was built: $(head -n 3 <<<"$changed" | paste -sd ',' | sed 's/,/, /g')$(
    more=$(($(wc -l <<<"$changed") - 3)); [ "$more" -le 0 ] || echo " and $more more")"
fi
# What `--version` names: the last commit that touched the sources, whatever documents were committed since.
# shellcheck disable=SC2086 # a list of folders
if [ -z "${COUNTERSIGN_COMMIT:-}" ] && git rev-parse --git-dir >/dev/null 2>&1; then
  COUNTERSIGN_COMMIT=$(git log -1 --format=%h --abbrev=12 -- Cargo.toml Cargo.lock $folders || true)
  [ -z "$(git status --porcelain -- Cargo.toml Cargo.lock $folders)" ] || COUNTERSIGN_COMMIT+="+changes"
  export COUNTERSIGN_COMMIT
fi

# What changes from here on is not in it: the next run finds that out.
finish() {
  programs >"$out/programs"
  echo "$wanted" >"$out/inputs"
  echo "release: $1 (stamp $stamp)"
}

echo "release: the programs, and the load they are trained with"
"$cargo" build --locked --release -p controlplane -p dataplane -p compare --bin controlplane --bin dataplane --bin compare
rm -rf "$out" && mkdir -p "$out"
cp target/release/controlplane target/release/dataplane "$out/"

if [ "${PROFILE:-yes}" = no ]; then
  finish "$out has the plain release build (PROFILE=no)"
  exit 0
fi
if ! tool=$(profdata); then
  echo "release: *** WITHOUT A PROFILE: there is no llvm-profdata of LLVM $llvm ***" >&2
  echo "release: install it with \`apt-get install llvm-$llvm\` or \`rustup component add llvm-tools\`, and run this again" >&2
  finish "$out has the plain release build"
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
finish "$out has the control plane and the data plane"
