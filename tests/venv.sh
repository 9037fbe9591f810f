#!/usr/bin/env bash
# Makes the virtual environment for a folder of tests, once for each state of its requirements.txt, outside the checkout:
# venv.sh FOLDER. Prints the path of its python. That of tests/clients takes 2 to 4 minutes and 800 MB the first time.
set -euo pipefail
requirements=${1:?must be a folder with a requirements.txt}/requirements.txt
cache=${PORTCULLIS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "venv.sh: python3 is missing; install Python 3.10 or newer" >&2; exit 1; }
hash=$( (cat "$requirements"; "$python" --version) | sha256sum | cut -c1-16)
venv=$cache/venv-$hash
if [ ! -e "$venv/complete" ]; then
  echo "setting up what $requirements names in $venv" >&2
  begun=$SECONDS
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" >&2
  touch "$venv/complete"
  echo "set up in $((SECONDS - begun)) s" >&2
fi
echo "$venv/bin/python"
