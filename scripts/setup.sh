#!/usr/bin/env bash
# Finds what the build, the tests and the demo need and this machine lacks. As root on Debian or Ubuntu it installs
# it; otherwise it names the packages and stops. `setup.sh compare` also wants nginx, `setup.sh boring` what BoringSSL is
# built with. Silent when nothing is missing.
set -euo pipefail

# command -> Debian package. No cmake or OpenSSL: the crypto library builds with the C compiler alone, and the push protocol
# is compiled by a Rust crate; protoc is for the etcd client. etcd itself is for the tests.
needs="cc:build-essential curl:curl openssl:openssl protoc:protobuf-compiler etcd:etcd-server etcdctl:etcd-client"
[ "${1:-}" = compare ] && needs="$needs nginx:nginx"
[ "${1:-}" = boring ] && needs="$needs cmake:cmake clang:clang"

missing=""
for need in $needs; do
  command=${need%%:*}
  # nginx is installed outside an ordinary user's PATH
  PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 || missing="$missing ${need##*:}"
done

# The types that protoc ships with, which Debian packages apart; PROTOC_INCLUDE says where else they are.
if [ -z "${PROTOC_INCLUDE:-}" ]; then
  compgen -G '/usr/include/google/protobuf/descriptor.proto' >/dev/null \
    || compgen -G '/usr/local/include/google/protobuf/descriptor.proto' >/dev/null || missing="$missing libprotobuf-dev"
fi

# A library, not a command; LIBCLANG_PATH says where else it is.
if [ "${1:-}" = boring ] && [ -z "${LIBCLANG_PATH:-}" ]; then
  compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null || compgen -G '/usr/lib*/libclang.so*' >/dev/null \
    || missing="$missing libclang-dev"
fi

if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # A package's service is not to run beside what is measured with it.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
      printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
      chmod 755 /usr/sbin/policy-rc.d
      trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null
  else
    echo "setup: this machine lacks:$missing" >&2
    echo "setup: install them, for example with: sudo apt-get install$missing" >&2
    exit 1
  fi
fi

if ! command -v cargo >/dev/null 2>&1; then
  echo "setup: there is no Rust toolchain (cargo); install one with rustup and run this again" >&2
  exit 1
fi

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(cargo --version | cut -d ' ' -f 2)
if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
  echo "setup: cargo is $found, and $wanted or newer is needed: run \`rustup update\`" >&2
  exit 1
fi
