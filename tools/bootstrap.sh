#!/bin/sh
# Make .venv: the one step that cannot be Python with our own packages, since it is what brings them.
#   1. a Python >= 3.11 with venv (Debian's, installed when it is missing and we are root)
#   2. uv, pinned by hash, in the cache folder
#   3. .venv holding exactly requirements/dev.lock, and this checkout as an editable package
#   4. the gRPC stubs of the CSI protocol (csi/pb, not committed)
# A stamp holds the hash of everything that went in: nothing changed means nothing is done.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
cache=${CINDERBLOCK_CACHE:-$HOME/.cache/cinderblock}
venv=$root/.venv
say() { printf '%s\n' "setup: $*"; }
die() { printf '%s\n' "setup: $*" >&2; exit 1; }

works() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
  for p in ${PYTHON:-/usr/bin/python3 python3 python3.13 python3.12 python3.11}; do
    if works "$p"; then command -v "$p"; return 0; fi
  done
  return 1
}
python=$(find_python) || {
  [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python >= 3.11 with venv and ensurepip"
  [ "$(id -u)" = 0 ] || die "no Python >= 3.11 with venv here; as root: apt-get install python3-venv"
  command -v apt-get >/dev/null || die "no Python >= 3.11 with venv here, and this is not Debian: install one and name it in PYTHON"
  say "installing python3-venv"
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv ca-certificates >/dev/null
  python=$(find_python) || die "python3-venv is installed, but no Python >= 3.11 is here (Debian 12 has 3.11)"
}

# Some networks answer with a certificate authority of their own: trust what this machine trusts.
export UV_CACHE_DIR="$cache/uv-cache" UV_SYSTEM_CERTS=1 UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1
if [ -z "${SSL_CERT_FILE:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
  export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
fi

uv_key=$(sha256sum requirements/uv.lock | cut -c1-16)
uv_home=$cache/uv-$uv_key
if ! "$uv_home/bin/uv" --version >/dev/null 2>&1; then
  say "installing uv into the cache"
  mkdir -p "$cache"
  tmp=$(mktemp -d "$cache/uv-XXXXXX.tmp")
  # A venv does not move (its scripts name its path), so it is made in a temporary place only to fetch the one binary.
  "$python" -m venv "$tmp/venv"
  "$tmp/venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.lock
  mkdir -p "$tmp/out/bin"
  cp "$tmp/venv/bin/uv" "$tmp/out/bin/uv"
  rm -rf "$uv_home"
  mv "$tmp/out" "$uv_home"
  rm -rf "$tmp"
fi
uv=$uv_home/bin/uv

# Waits for a second setup of the same checkout, so that two never write one .venv.
exec 9<"$root"
command -v flock >/dev/null && flock 9

inputs() { cat requirements/dev.lock requirements/uv.lock pyproject.toml tools/bootstrap.sh; printf '%s\n' "$python" "$root"; }
stamp=$(inputs | sha256sum | cut -c1-64)
if [ "$(cat "$venv/.cinderblock-stamp" 2>/dev/null || true)" != "$stamp" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  say "making .venv from requirements/dev.lock"
  rm -f "$venv/.cinderblock-stamp"
  "$venv/bin/python" -c '' 2>/dev/null || { rm -rf "$venv"; "$uv" venv -q --python "$python" "$venv"; }
  export VIRTUAL_ENV="$venv"
  "$uv" pip sync -q --require-hashes requirements/dev.lock
  "$uv" pip install -q --no-deps --no-build-isolation --editable .
  printf '%s\n' "$stamp" >"$venv/.cinderblock-stamp"
fi
exec 9<&-

exec "$venv/bin/python" -m tools.stubs
