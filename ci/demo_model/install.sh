#!/usr/bin/env bash
# Makes .venv-torch at the top of the repository from requirements.txt, or does nothing if it is already made from this very file.
set -euo pipefail
cd "$(dirname "$0")/../.."

stamp=.venv-torch/requirements.txt
cmp --silent ci/demo_model/requirements.txt "$stamp" && exit 0

rm -rf .venv-torch
"${PYTHON:-python3}" -m venv .venv-torch
.venv-torch/bin/pip install --quiet --disable-pip-version-check --requirement ci/demo_model/requirements.txt
cp ci/demo_model/requirements.txt "$stamp" # last: a broken install leaves no stamp
