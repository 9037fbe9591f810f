#!/usr/bin/env bash
# Breaks the decisions in one place after another: run.sh CACHE SOURCES FILE...
set -euo pipefail
command -v prlimit >/dev/null || { echo "mutants: prlimit is missing, which util-linux has" >&2; exit 1; }
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "mutants: needs Python 3.11 or newer" >&2; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$1 sources=$2
shift 2
version=27.1.0
export PATH="$cache/mutants/tool/bin:$PATH"
if ! cargo mutants --version 2>/dev/null | grep -qF "$version"; then
  echo "installing cargo-mutants $version into $cache/mutants/tool (3 minutes)"
  CARGO_TARGET_DIR="$cache/mutants/tool/target" \
    cargo install --quiet --locked --root "$cache/mutants/tool" --version "$version" cargo-mutants
  rm -rf "$cache/mutants/tool/target"
fi
python=$("$here/../venv.sh" "$here")
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$here/main.py" "$sources" "$cache" "$@"
