#!/usr/bin/env bash
# Prove on the GPUs of this machine that everything works there, and measure it: tests/gpu/run.sh OUT [--device cpu] [--short]
# See docs/gpu.md. Run it with the Python in which alrpc and pytest are installed: PYTHON=…, or the one that is active.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/prove.py" "$@"
