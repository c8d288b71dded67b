#!/usr/bin/env bash
# Run tests, or any command, on real verbs: a soft-RoCE device in a virtual machine. Installs what it needs, with apt.
#
#   run.sh                    the suites that all transports share, ends in every state, and the whole scheduler
#   run.sh COMMAND [ARG...]   COMMAND in the guest, with PYTHON set to an interpreter that has the suite's packages
#
# It fails where it cannot do that; it never skips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=tests/rdma

# What users are told to install (docs/how-to/rdma.md), and what the virtual machine and its figures need beside it.
told=$(sed -n 's/^\$ sudo apt install \([a-z0-9. -]*\).*/\1/p' docs/how-to/rdma.md)
extra=$(sed -n "s/^\\$ pip install 'spoke-scheduler\[\([a-z]*\)\]'.*/\1/p" docs/how-to/rdma.md)
if [ -z "$told" ] || [ -z "$extra" ]; then
  echo "run.sh: FAILED: docs/how-to/rdma.md does not say what to install" >&2
  exit 1
fi
# shellcheck disable=SC2086  # several packages
tests/apt.sh $told qemu-system-x86 busybox-static kmod cpio iproute2 util-linux rdma-core ibverbs-utils perftest
sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo -n --preserve-env=PATH,HOME,OUT,SOFTROCE_CACHE,SOFTROCE_ACCEL,XDG_CACHE_HOME); fi

# pyverbs is built for the distribution's Python. Another build of the same version can load it, too (spoke looks
# there by itself); for any other one a second environment is made with the distribution's.
has_verbs='import sys; from spoke.transport.rdma import verbs; sys.exit(verbs.problem() is not None)'
python=$PWD/.venv/bin/python
if ! "$python" -c "$has_verbs"; then
  echo "run.sh: .venv's Python cannot load the distribution's pyverbs; an environment of the distribution's is made"
  python=$PWD/.venv-rdma/bin/python
  if ! [ -x "$python" ]; then
    tests/apt.sh python3-venv
    /usr/bin/python3 -m venv .venv-rdma
  fi
  "$python" -m pip install --quiet --editable ".[dev,$extra]"
  "$python" -c "$has_verbs" || { echo "run.sh: FAILED: pyverbs cannot be loaded: spoke doctor" >&2; exit 1; }
fi

vm=("${sudo[@]}" "$here/softroce-vm.sh")
suites=("$here" tests/integration/test_transport_{conformance,memory,calls,streams}.py)
if [ $# -gt 0 ]; then exec "${vm[@]}" -- env PYTHON="$python" "$@"; fi

# The guest's word must count, so success has a status of its own, which nothing else ends with.
said='"$@"; rc=$?; [ $rc = 0 ] && exit 77; exit $((rc == 77 ? 1 : rc))'
rc=0
"${vm[@]}" --mem 3072 --timeout 2400 -- env SPOKE_TEST_RDMA=1 SPOKE_TEST_CARRIERS=rdma bash -c "$said" - \
  "$python" -m pytest --color=no -q -p no:cacheprovider -m 'not door' --timeout 300 --durations 10 "${suites[@]}" || rc=$?
if [ "$rc" = 77 ]; then exit 0; fi
echo "run.sh: FAILED: the suite in the guest ended with $rc" >&2
exit "$((rc ? rc : 1))"
