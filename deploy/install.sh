#!/bin/sh
# Installs this clone into the active environment, with exactly the dependencies that
# requirements.txt pins by their hashes. Also usable as the build command of a host.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -m pip install --require-hashes -r deploy/requirements.txt
"$python" -m pip install --no-deps --no-build-isolation .
