#!/bin/sh
# Installs this clone with the pinned, hashed dependencies of requirements.txt and nothing else.
# For a host's build command, and for the environment that is active.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -m pip install --require-hashes -r deploy/requirements.txt
"$python" -m pip install --no-deps --no-build-isolation .
