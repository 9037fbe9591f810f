#!/usr/bin/env bash
# Runs the tests with clients of others against a built simulator: AZURE_SIMULATOR names it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${AZURE_SIMULATOR:?must name the built azure-simulator}"
python=$("$here/../venv.sh" "$here")
cd "$here"
PYTHONDONTWRITEBYTECODE=1 exec "$python" -m pytest -q -rs -p no:cacheprovider "$@"
