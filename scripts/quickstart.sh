#!/usr/bin/env bash
# From nothing to a result: makes .venv, installs, runs the main job. Further arguments are overrides of `routed-rl train`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh

if ! is_installed base; then
    cat <<'TEXT'
Installs into .venv: downloads about 350 MB (torch for CPUs 190 MB, the rest 160 MB), 1.6 GB on disk.
  Where pip finds only torch with CUDA (plain PyPI on Linux), that is several GB. For the CPU build stop here, and set
  TORCH_INDEX_URL to the index of CPU wheels that PyTorch's own install page names.
TEXT
    install base
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
.venv/bin/routed-rl train "$@"
cat <<'TEXT'

Where to go on: README.md, "Bring your own" for your model, environments and contrast prompts;
.venv/bin/routed-rl --help for the other commands; bash scripts/test.sh for the tests.
TEXT
