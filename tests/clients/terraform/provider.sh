#!/usr/bin/env bash
# Builds Terraform's azurerm provider from its published Go module, once, outside the checkout, and prints its path.
# For machines that cannot reach Terraform's registry; elsewhere AZURERM_PROVIDER may name any provider binary.
# Takes 10 to 20 minutes on 2 cores, and 7 GB while it builds.
set -euo pipefail
# Releases from 2.0 on have no versions that Go knows. This is 5.2.0 and four days.
version=v1.44.1-0.20260824201233-fae580791926
cache=${PORTCULLIS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}
folder=$cache/azurerm-$version
binary=$folder/terraform-provider-azurerm
if [ ! -x "$binary" ]; then
  command -v go >/dev/null || { echo "provider.sh: Go is missing; install 1.26 or newer from https://go.dev/dl" >&2; exit 1; }
  echo "building azurerm in $folder (10 to 20 minutes, 7 GB for that time)" >&2
  begun=$SECONDS
  work=$folder/work
  mkdir -p "$work"
  export GOMODCACHE=$work/modules GOCACHE=$work/build GOFLAGS=-modcacherw CGO_ENABLED=0
  module=$(cd "$work" && go mod download -json "github.com/hashicorp/terraform-provider-azurerm@$version" \
    | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  rm -rf "$work/source"
  cp -r "$module" "$work/source"
  chmod -R u+w "$work/source"
  (cd "$work/source" && nice -n 19 go build -buildvcs=false -p 2 -ldflags "-s -w" -o "$binary.part" .)
  mv "$binary.part" "$binary"
  rm -rf "$work"
  echo "built in $((SECONDS - begun)) s" >&2
fi
echo "$binary"
