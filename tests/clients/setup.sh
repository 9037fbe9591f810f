#!/usr/bin/env bash
# Makes the virtual environment for the clients of others, once for each state of requirements.txt, outside the
# checkout. Prints the path of its python. Takes 2 to 4 minutes and 800 MB the first time, no time after that.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PORTCULLIS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "setup.sh: python3 is missing; install Python 3.10 or newer" >&2; exit 1; }
hash=$( (cat "$here/requirements.txt"; "$python" --version) | sha256sum | cut -c1-16)
venv=$cache/venv-$hash
if [ ! -e "$venv/complete" ]; then
  echo "setting up the Azure SDK and CLI for Python in $venv (2 to 4 minutes, 800 MB)" >&2
  begun=$SECONDS
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
  touch "$venv/complete"
  echo "set up in $((SECONDS - begun)) s" >&2
fi
echo "$venv/bin/python"
