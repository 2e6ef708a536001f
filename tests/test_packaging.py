"""The wheel carries everything: installed outside the checkout, it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder))
    return next(folder.glob("*.whl"))


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True, text=True)


def test_the_wheel_holds_the_data_and_nothing_stray(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for group in ("configs", "environments"):
        for file in (ROOT / group).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"routed_rl/_data/{file.relative_to(ROOT)}" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "runs"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_base_install_has_no_optional_engine(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert any("torch" in line for line in needed)
    assert not any(name in line for line in needed for name in ("vllm", "deepspeed", "wandb", "reasoning"))


@pytest.mark.slow
def test_the_installed_wheel_trains_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", str(wheel), "--no-deps", "--target", str(site))
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = subprocess.run([sys.executable, "-c", "import routed_rl.artifacts as a; print(a.data_root())"], cwd=work,
                           env=environment, check=True, capture_output=True, text=True).stdout.strip()
    assert where == str(site / "routed_rl" / "_data")
    command = [sys.executable, "-m", "routed_rl.cli", "train", "trainer.max_steps=2", "evaluation.samples=8", "out=run"]
    run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("run: ")
    assert len((work / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert set(json.loads((work / "run" / "summary.json").read_text())["models"]) == {"base", "policy", "deployed"}
