#!/usr/bin/env bash
# Run the dashboard's tests in a real browser, headless: Debian's Chromium, which is installed with apt if it is not there.
#
# SPOKE_CHROMIUM names another one. It fails where it has no browser; it never skips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -z "${SPOKE_CHROMIUM:-}" ] && ! command -v chromium > /dev/null; then
  sudo=()
  if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
  echo "run.sh: installing chromium"
  log=$(mktemp)
  { "${sudo[@]}" apt-get update -qq &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
    > "$log" 2>&1 || { tail -n 30 "$log"; echo "run.sh: FAILED: apt could not install chromium" >&2; exit 1; }
  rm -f "$log"
fi
exec "${PYTHON:-.venv/bin/python}" -m pytest --color=no -q tests/web "$@"
