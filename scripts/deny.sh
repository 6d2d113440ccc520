#!/usr/bin/env bash
# The dependency rules of deny.toml: licences, sources, duplicate versions. Without cargo-deny it says so in one line.
# Advisories need their database from the network, so they are checked only where ADVISORIES=1 asks for it.
set -euo pipefail
if ! command -v cargo-deny >/dev/null 2>&1; then
  echo "check: skipped the dependency rules (cargo-deny is not installed; \`cargo install --locked cargo-deny\`)"
  exit 0
fi
checks="bans licenses sources"
[ "${ADVISORIES:-}" = 1 ] && checks="advisories $checks"
# shellcheck disable=SC2086 # a list of checks
cargo deny --offline check $checks
