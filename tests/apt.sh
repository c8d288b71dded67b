#!/usr/bin/env bash
# apt.sh PACKAGE...: install what is missing of Debian's packages, as root or with sudo. It fails loudly where it cannot.
set -euo pipefail
missing=()
for package in "$@"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
echo "apt.sh: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ "${sudo[@]}" apt-get update -qq &&
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
  > "$log" 2>&1 || { tail -n 30 "$log"; echo "apt.sh: FAILED: apt could not install ${missing[*]}" >&2; exit 1; }
