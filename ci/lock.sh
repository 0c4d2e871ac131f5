#!/bin/sh
# Resolves every requirements.in again and writes the lock files beside them: hashes, no addresses, one lock for Python 3.10 to 3.13.
set -eu
cd "$(dirname "$0")/.."
compile() { # compile LOCK INPUT...
    lock=$1; shift
    .venv/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header --no-annotate \
        --override handler/requirements.overrides --output-file "$lock" "$@"
}
# Each lock is resolved under the one before it, so that a package has one version everywhere.
compile handler/requirements.lock handler/requirements.in
compile cpu_engine/requirements.lock handler/requirements.in cpu_engine/requirements.in --constraint handler/requirements.lock
compile ci/just.lock ci/just.in
compile images/requirements.lock images/requirements.in --constraint handler/requirements.lock
compile ci/requirements.lock handler/requirements.in cpu_engine/requirements.in images/requirements.in ci/just.in ci/requirements.in --constraint cpu_engine/requirements.lock
