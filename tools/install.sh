#!/usr/bin/env bash
# Installs stagealign into a virtual environment: tools/install.sh VENV [EXTRAS]
# Makes VENV where it is missing. EXTRAS as pip takes them, for example `dev` or `dev,eval`.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: tools/install.sh VENV [EXTRAS]}
extras=${2:-}
torch=$(sed -n 's/^torch==//p' constraints.txt)
cpu_index=https://download.pytorch.org/whl/cpu

say() { echo "install: $*"; }
die() { echo "install: $*" >&2; exit 1; }

# A Python >= 3.11 that can make virtual environments: $PYTHON if it will do, else the first that does.
find_python() {
  local candidate found=""
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14 python3 python; do
    command -v "$candidate" >/dev/null && [[ "$found" != *"$candidate "* ]] || continue
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found+="${found:+, }$candidate is $("$candidate" --version 2>&1)"
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      found+="${found:+, }$candidate has no venv module (on Debian: apt install python3-venv)"
    else
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.11 or newer is needed, found: ${found:-none}; name one: make PYTHON=/path/to/python3.11 ..."
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  say "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
python=$venv/bin/python
pip() { "$python" -m pip -qq --disable-pip-version-check "$@"; }   # errors only

# The pip that comes with Python 3.11 would download a whole torch only to look at its metadata.
say "updating pip"
pip install --upgrade 'pip>=25'

# True where pip's own settings would bring a torch without CUDA: reads what pip would take, downloads no wheel.
plain_torch_is_cpu() {
  [ "$(uname -s)" = Linux ] || return 0   # no other system has a CUDA build
  local report
  report=$(mktemp)
  pip install --dry-run --ignore-installed --no-deps --report "$report" "torch==$torch" >/dev/null || { rm -f "$report"; return 1; }
  "$python" - "$report" <<'PY' && { rm -f "$report"; return 0; } || { rm -f "$report"; return 1; }
import json, re, sys
wheel = json.load(open(sys.argv[1], encoding="utf-8"))["install"][0]["metadata"]
cuda = any(re.match(r"(nvidia|cuda)-", need) for need in wheel.get("requires_dist", ()))
sys.exit(cuda or "+cu" in wheel["version"])
PY
}

# torch first, so that nothing after it chooses a build: a plain torch on Linux is several gigabytes of CUDA.
installed=$("$python" -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])' 2>/dev/null || true)
if [ "$installed" = "$torch" ]; then
  say "torch $torch is there"
elif nvidia-smi -L >/dev/null 2>&1; then
  say "torch $torch with CUDA (nvidia-smi sees a GPU)"
  pip install -c constraints.txt "torch==$torch"
elif plain_torch_is_cpu; then
  say "torch $torch, CPU build"
  pip install -c constraints.txt "torch==$torch"
else
  say "torch $torch, CPU build from $cpu_index (no GPU here)"
  # Without dependencies: that index has few other packages, and not in our versions; the next step brings them.
  pip install --no-deps --index-url "$cpu_index" "torch==$torch+cpu" || die \
    "no CPU build of torch $torch could be had; install any build by hand, then repeat: $python -m pip install torch==$torch"
fi

say "stagealign${extras:+[$extras]} and what it needs (a few minutes the first time)"
pip install -c constraints.txt -e ".${extras:+[$extras]}"
say "done: $venv/bin/stagealign"
