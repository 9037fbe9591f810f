#!/usr/bin/env bash
# Runs the fuzz targets, one after the other: fuzz.sh CACHE SOURCES SECONDS TARGET...
#
# cargo-fuzz and what it builds are kept in CACHE. The stable toolchain will do: what reads strangers' bytes is safe Rust,
# so it is panics, hangs and the targets' own assertions that are looked for, and no sanitizer is needed.
set -euo pipefail
cache=$1 sources=$2 seconds=$3
shift 3
version=0.13.2
export PATH="$cache/tool/bin:$PATH"
command -v c++ >/dev/null || { echo "fuzz: c++ is missing, which libFuzzer is built with" >&2; exit 1; }
if ! cargo-fuzz --version 2>/dev/null | grep -qF "$version"; then
  echo "installing cargo-fuzz $version into $cache/tool"
  CARGO_TARGET_DIR="$cache/tool/target" cargo install --quiet --locked --root "$cache/tool" --version "$version" cargo-fuzz
  rm -rf "$cache/tool/target"
fi
# The folder of the Makefile's own builds has code without the fuzzer's counters.
unset CARGO_TARGET_DIR
options=(--dev --sanitizer none --target-dir "$cache/target")
cd "$sources"
cargo fuzz build "${options[@]}"
status=0
for target in "$@"; do
  mkdir -p "$cache/corpus/$target" "$PORTCULLIS_ROOT/fuzz/artifacts/$target"
  # An input that takes 10 s, or 1 GiB, is a finding too.
  if ! cargo fuzz run "${options[@]}" "$target" "$cache/corpus/$target" "fuzz/corpus/$target" -- \
    -artifact_prefix="$PORTCULLIS_ROOT/fuzz/artifacts/$target/" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
    -verbosity=0 -print_final_stats=1 >"$cache/$target.log" 2>&1; then
    echo "fuzz: $target failed:"; tail -40 "$cache/$target.log"; status=1
  fi
  rmdir --ignore-fail-on-non-empty "$PORTCULLIS_ROOT/fuzz/artifacts/$target" "$PORTCULLIS_ROOT/fuzz/artifacts"
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$cache/$target.log")
  kept=$(find "$cache/corpus/$target" -type f | wc -l)
  echo "fuzz: $target: ${runs:-0} inputs in $seconds s, $kept kept"
done
exit "$status"
