#!/usr/bin/env bash
# Makes the Debian packages and the OCI image of both planes in target/packages, from the programs in target/profiled:
#   packages.sh [--programs FOLDER] [--manuals PROGRAM] [--out FOLDER] [--version VERSION]
# The same programs and SOURCE_DATE_EPOCH (default: the last commit) give the same bytes: docs/decisions/0070-services-and-packages.md.
# COMPRESSION and LEVEL are dpkg-deb's (xz, 9).
set -euo pipefail
cd "$(dirname "$0")/.."

programs=target/profiled
manuals=
out=target/packages
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-1
while [ $# -gt 0 ]; do
  case "$1" in
    --programs) programs=$2 ;;
    --manuals) manuals=$2 ;;
    --out) out=$2 ;;
    --version) version=$2 ;;
    *) echo "packages: unknown option $1: see the first lines of scripts/packages.sh" >&2; exit 2 ;;
  esac
  shift 2 || { echo "packages: an option has no value" >&2; exit 2; }
done
for program in controlplane dataplane; do
  [ -x "$programs/$program" ] || { echo "packages: $programs/$program is not there: run \`make release\`" >&2; exit 1; }
done
if [ -z "$manuals" ]; then
  "${CARGO:-cargo}" build --locked -p packaging
  manuals=target/debug/manuals
fi
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
fi
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022
arch=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
out=$(cd "$out" && pwd)
"$manuals" "$work/manuals"

# put MODE SOURCE TARGET: a file of the package that is made.
put() {
  install -D -m "$1" "$2" "$root/$3"
}

# The lowest version of glibc with every symbol that the program uses.
glibc() {
  readelf --version-info "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | cut -d _ -f 2
}

# The stripped program, once for package and image.
mkdir "$work/bin"
for program in controlplane dataplane; do
  objcopy --strip-debug "$programs/$program" "$work/bin/$program"
done

# package NAME ARCHITECTURE DEPENDS SUMMARY: builds what is in $root, with the scripts in $root/DEBIAN.
package() {
  local size
  size=$(du -k -s --apparent-size --exclude=DEBIAN "$root" | cut -f 1)
  put 644 packaging/debian/copyright "usr/share/doc/$1/copyright"
  mkdir -p "$root/DEBIAN"
  cat >"$root/DEBIAN/control" <<CONTROL
Package: $1
Version: $version
Architecture: $2
Maintainer: Countersign maintainers <countersign@example.org>
Installed-Size: $size
Depends: $3
Section: net
Priority: optional
Description: $4
 Countersign is a mutual-TLS gateway that takes the configuration and the Admin
 API of Apache APISIX. Its control plane owns the configuration; its data planes
 terminate TLS, verify clients, route and proxy.
CONTROL
  (cd "$root" && find . -path './etc/*' -type f -printf '/%P\n' | sort) >"$root/DEBIAN/conffiles"
  [ -s "$root/DEBIAN/conffiles" ] || rm "$root/DEBIAN/conffiles"
  (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | sort | xargs md5sum) >"$root/DEBIAN/md5sums"
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group "-Z${COMPRESSION:-xz}" "-z${LEVEL:-9}" --build "$root" "$out/$1_${version}_$2.deb" >/dev/null
  echo "packages: $out/$1_${version}_$2.deb"
}

# script NAME SOURCE PLANE SOCKET: a maintainer script.
script() {
  mkdir -p "$root/DEBIAN"
  sed -e "s/@PLANE@/$3/g" -e "s/ *@SOCKET@/${4:+ $4}/g" "packaging/debian/$2" >"$root/DEBIAN/$1"
  chmod 755 "$root/DEBIAN/$1"
}

root=$work/common
put 644 packaging/config.yaml etc/countersign/config.yaml
put 644 packaging/countersign.logrotate etc/logrotate.d/countersign
put 755 packaging/countersign usr/bin/countersign
put 644 conf/config.yaml.example usr/share/doc/countersign-common/config.yaml.example
put 644 packaging/prometheus/countersign.rules.yml usr/share/doc/countersign-common/countersign.rules.yml
script postinst common.postinst ''
script postrm common.postrm ''
package countersign-common all adduser 'mutual-TLS gateway: user, settings and the countersign command'

for program in controlplane dataplane; do
  root=$work/$program
  put 755 "$work/bin/$program" "usr/bin/$program"
  put 644 "packaging/systemd/countersign-$program.service" "lib/systemd/system/countersign-$program.service"
  socket=countersign-$program.socket
  put 644 "packaging/systemd/$socket" "lib/systemd/system/$socket"
  for page in "$work/manuals/$program"/man1/*; do
    gzip -9n "$page" && put 644 "$page.gz" "usr/share/man/man1/$(basename "$page").gz"
  done
  put 644 "$work/manuals/$program/completions/$program.bash" "usr/share/bash-completion/completions/$program"
  put 644 "$work/manuals/$program/completions/_$program" "usr/share/zsh/vendor-completions/_$program"
  put 644 "$work/manuals/$program/completions/$program.fish" "usr/share/fish/vendor_completions.d/$program.fish"
  for name in postinst prerm postrm; do script "$name" "plane.$name" "$program" "$socket"; done
  package "countersign-$program" "$arch" "countersign-common (= $version), libc6 (>= $(glibc "$work/bin/$program")), libgcc-s1" \
    "mutual-TLS gateway: $(sed 's/plane/ plane/' <<<"$program")"
done

. scripts/image.sh
