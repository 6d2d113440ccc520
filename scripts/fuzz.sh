#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS. Installs cargo-fuzz when it is missing; says so, and fails, when it cannot be had.
# A stable toolchain is enough: coverage is the compiler's own, and without a sanitizer nothing of it is unstable (there is no
# unsafe code of ours to sanitize).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-20}

if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "fuzz: installing cargo-fuzz"
  if ! cargo install --quiet --locked cargo-fuzz; then
    echo "fuzz: NOT RUN: cargo-fuzz is missing and could not be installed; try: cargo install cargo-fuzz" >&2
    exit 1
  fi
fi

cargo fuzz build --sanitizer none
# The seeds are made now, with certificates of their own: no key or certificate is stored.
host=$(rustc -vV | sed -n 's/^host: //p')
fuzz/target/"$host"/release/seed

for target in $(cargo fuzz list | grep -v '^seed$'); do
  echo "fuzz: $target for $seconds seconds"
  set +e
  cargo fuzz run --sanitizer none "$target" -- -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 \
    -print_final_stats=1 2>&1 | grep -E 'panicked|ERROR|SUMMARY|artifact|stat::number_of_executed|stat::peak_rss|assertion|left:|right:'
  status=${PIPESTATUS[0]}
  set -e
  if [ "$status" != 0 ]; then
    echo "fuzz: $target FAILED; the input is in fuzz/artifacts/$target" >&2
    exit "$status"
  fi
done
