#!/usr/bin/env bash
# Builds the image without a container engine or a registry, by buildah as root, and writes into the folder OUT
#   capdrift.tar          the image as an OCI archive
#   capdrift.docker.tar   the same as `docker load` and `ctr images import` take it
#   capdrift.spdx.json    what the program is made of
#   digest                of the manifest
# The same VERSION, SOURCE_DATE_EPOCH, sources and Go make the same digest.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
: "${VERSION:?}" "${SOURCE_DATE_EPOCH:?}" "${REPOSITORY:?}" "${SBOM:?}"
arch=${ARCH:-$(go env GOARCH)}
cd "$(dirname "$0")/.."

storage=$(mktemp -d "$out/.storage-XXXXXX")
images() { buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs "$@"; }
tidy() {
  images rm --all >/dev/null || true
  rm -rf "$storage"
}
trap tidy EXIT

# GO_IMAGE names an image with Go. Without one, the Go of this machine and its caches stand in, in an empty image.
arguments=()
if [ -z "${GO_IMAGE:-}" ]; then
  go mod download
  GO_IMAGE=localhost/go
  empty=$(images from scratch)
  # For the platform of the image, whose programs it has none of: buildah 1.28 ignores the --platform of a FROM.
  images config --arch "$arch" --env HOME=/root --env GOPATH=/go --env GOTOOLCHAIN=local --env GOPROXY=off --env TMPDIR=/go "$empty"
  images commit -q "$empty" "$GO_IMAGE" >/dev/null
  arguments=(
    --volume "$(go env GOROOT):/usr/local/go:ro"
    --volume "$(go env GOMODCACHE):/go/pkg/mod"
    --volume "$(go env GOCACHE):/root/.cache/go-build"
  )
fi

image=$REPOSITORY:$VERSION
images build --quiet --isolation chroot --network host --format oci --platform "linux/$arch" --timestamp "$SOURCE_DATE_EPOCH" \
  --build-arg "GO_IMAGE=$GO_IMAGE" --build-arg "VERSION=$VERSION" --build-arg "REVISION=${REVISION:-}" \
  "${arguments[@]}" --tag "$image" . >/dev/null
rm -f "$out"/capdrift.tar "$out"/capdrift.docker.tar
images push --quiet --digestfile "$out/digest" "$image" "oci-archive:$out/capdrift.tar:$image" >/dev/null
images push --quiet "$image" "docker-archive:$out/capdrift.docker.tar:$image" >/dev/null
root=$(images mount "$(images from --quiet --pull-never "$image")")
"$SBOM" -version "$VERSION" -created "$SOURCE_DATE_EPOCH" "$root/bin/capdrift" >"$out/capdrift.spdx.json"
echo "$image linux/$arch $(cat "$out/digest")"
