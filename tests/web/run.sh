#!/usr/bin/env bash
# Run the dashboard's tests in a real browser, headless: Debian's Chromium, which is installed with apt if it is not there.
#
# SPOKE_CHROMIUM names another one. It fails where it has no browser; it never skips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -z "${SPOKE_CHROMIUM:-}" ] && ! command -v chromium > /dev/null; then tests/apt.sh chromium; fi
exec "${PYTHON:-.venv/bin/python}" -m pytest --color=no -q tests/web "$@"
