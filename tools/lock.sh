#!/bin/sh
# Write the lock files anew: pinned versions with hashes for Python 3.11 (tests) and 3.13 (image), no addresses.
set -eu
cd "$(dirname "$0")/.."
compile() { uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml "$@"; }
compile -o requirements/runtime.lock
compile --group dev -o requirements/dev.lock
echo 'uv==0.13.9' | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header - -o requirements/uv.lock
echo 'hatchling==1.33.0' | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header - -o requirements/build.lock
