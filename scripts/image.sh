# shellcheck shell=bash
# The second half of packages.sh: an OCI image layout (github.com/opencontainers/image-spec) as one tar file, made without a
# container engine. It has two images, `controlplane` and `dataplane`, which share a layer with the C library of this machine.

layout=$work/layout
mkdir -p "$layout/blobs/sha256"

# tar_of FOLDER: its content with one owner, one time and one order, on standard output.
tar_of() {
  tar --create --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$1" .
}

# blob FILE: adds it to the layout; prints its descriptor without the media type.
blob() {
  local digest
  digest=$(sha256sum "$1" | cut -d ' ' -f 1)
  cp "$1" "$layout/blobs/sha256/$digest"
  printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$1")"
}

# layer FOLDER [VOLUME]: sets layer_digest (of the tar) and layer_blob (its descriptor). The image's user owns VOLUME.
layer() {
  tar_of "$1" >"$work/layer.tar"
  if [ $# -gt 1 ]; then
    mkdir -p "$work/volumes/$2" && chmod 700 "$work/volumes/$2"
    tar --append --format=ustar --owner=65532 --group=65532 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --no-recursion \
      -f "$work/layer.tar" -C "$work/volumes" "./$2"
  fi
  layer_digest=sha256:$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
  gzip "-${LEVEL:-9}n" <"$work/layer.tar" >"$work/layer.tar.gz"
  layer_blob="{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",$(blob "$work/layer.tar.gz")}"
}

# The libraries that the programs are linked with, their loader, and the CAs of the system where it has some.
base=$work/base
mkdir -p "$base/etc/countersign" "$base/usr/share/countersign"
files=$(for program in controlplane dataplane; do
  ldd "$work/bin/$program" | grep -o '/[^ ]*'
done | sort -u)
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || files="$files /etc/ssl/certs/ca-certificates.crt"
packages=
for file in $files; do
  install -D -m "$(case $file in *.crt) echo 644 ;; *) echo 755 ;; esac)" "$(readlink -f "$file")" "$base/$file"
  case $file in *.crt) owner=ca-certificates ;; *)
    # dpkg lists the path from before /lib became a link.
    owner=$(dpkg -S "$file" 2>/dev/null || dpkg -S "${file#/usr}" 2>/dev/null || dpkg -S "$(readlink -f "$file")")
    owner=${owner%%:*}
  esac
  packages+="$(dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' "$owner" | head -n 1)"$'\n'
done
sort -u <<<"$packages" | sed '/^$/d' >"$base/usr/share/countersign/base-packages"
while read -r owner _; do
  install -D -m 644 "/usr/share/doc/$owner/copyright" "$base/usr/share/doc/$owner/copyright"
done <"$base/usr/share/countersign/base-packages"
echo 'countersign:x:65532:65532::/var/lib/countersign:/sbin/nologin' >"$base/etc/passwd"
echo 'countersign:x:65532:' >"$base/etc/group"
echo 'hosts: files dns' >"$base/etc/nsswitch.conf"
layer "$base"
base_digest=$layer_digest
base_blob=$layer_blob

# image PROGRAM PORTS: prints the entry of index.json.
image() {
  local program=$1 created folder=$work/image-$1
  created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
  install -D -m 755 "$work/bin/$program" "$folder/usr/bin/$program"
  mkdir -p "$folder/var/lib"
  layer "$folder" var/lib/countersign
  local labels="\"org.opencontainers.image.title\":\"countersign-$program\",\"org.opencontainers.image.version\":\"$version\",\
\"org.opencontainers.image.created\":\"$created\",\"org.opencontainers.image.licenses\":\"Apache-2.0\",\
\"org.opencontainers.image.description\":\"Countersign, a mutual-TLS gateway: $program\",\
\"org.countersign.base-packages\":\"$(paste -sd, "$base/usr/share/countersign/base-packages" | sed 's/,/, /g')\""
  printf '{"architecture":"%s","os":"linux","created":"%s","config":{"User":"65532:65532","Env":["PATH=/usr/bin"],%s,%s,%s,%s},%s,%s}' \
    "$arch" "$created" "\"Entrypoint\":[\"/usr/bin/$program\"],\"Cmd\":[\"-c\",\"/etc/countersign/config.yaml\"]" \
    "\"ExposedPorts\":{$2}" '"Volumes":{"/var/lib/countersign":{}},"WorkingDir":"/var/lib/countersign","StopSignal":"SIGTERM"' \
    "\"Labels\":{$labels}" "\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"$base_digest\",\"$layer_digest\"]}" \
    "\"history\":[{\"created\":\"$created\",\"created_by\":\"packages.sh: base files\"},{\"created\":\"$created\",\"created_by\":\"packages.sh: $program\"}]" \
    >"$work/config.json"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[%s,%s],"annotations":{%s}}' \
    "$(blob "$work/config.json")" "$base_blob" "$layer_blob" "$labels" >"$work/manifest.json"
  printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"%s"}}' \
    "$(blob "$work/manifest.json")" "$arch" "$program"
}

controlplane_image=$(image controlplane '"9180/tcp":{},"9280/tcp":{},"7086/tcp":{}')
dataplane_image=$(image dataplane '"9080/tcp":{},"9443/tcp":{},"7085/tcp":{}')
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s,%s]}' \
  "$controlplane_image" "$dataplane_image" >"$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
tar_of "$layout" >"$out/countersign_${version}_$arch.oci.tar"
echo "packages: $out/countersign_${version}_$arch.oci.tar"
