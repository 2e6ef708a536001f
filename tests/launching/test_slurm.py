"""A run as a SLURM job, with stand-ins for SLURM's commands: no cluster is at hand."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from routed_rl.config import LaunchConfig
from routed_rl.errors import ConfigError, LaunchError
from routed_rl.launching.slurm import node_command, submit, write_job

LAUNCH = LaunchConfig(where="slurm", strategy="ddp", nodes=4, processes=8, sbatch=["--partition=gpu"], setup=["module load cuda"],
                      grace_s=90)


def stand_ins(folder: Path) -> dict[str, str]:
    """`scontrol` writes down what it was asked; an environment in which it is found."""
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\n[ "$1" = show ] && echo node7 || echo "$@" >> {folder}/asked\n')
    (folder / "scontrol").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[7-10]"}


def test_the_job_says_what_it_needs_and_what_it_does(tmp_path):
    text = write_job(LAUNCH, tmp_path, ["python", "-m", "routed_rl.pipeline", "job", "my run"]).read_text()
    for line in ("#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1", "#SBATCH --requeue", "#SBATCH --signal=B:USR1@90",
                 "#SBATCH --partition=gpu", "module load cuda", "python -m routed_rl.pipeline job 'my run' &"):
        assert line in text.splitlines()
    assert node_command(LAUNCH, ["x"])[:3] == ["srun", "--nodes=4", "--ntasks=4"]


def test_a_port_is_a_number_that_a_port_can_have():
    assert LaunchConfig(port=65535).port == 65535
    with pytest.raises(ConfigError, match="launch.port must be a port from 1 to 65535, got 65536"):
        LaunchConfig(port=65536)


def test_a_folder_with_blanks_is_one_word_in_the_job(tmp_path):
    (folder := tmp_path / "my run's").mkdir()
    lines = write_job(LAUNCH, folder, ["python"]).read_text().splitlines()
    named = [line for line in lines if line.startswith(("#SBATCH --output", "#SBATCH --job"))]
    options = [shlex.split(line.removeprefix("#SBATCH ")) for line in named]
    assert options == [["--job-name=my run's"], [f"--output={folder}/job-%j.log"]]


@pytest.mark.parametrize(("code", "leaves", "requeued"), [(0, 0, False), (3, 3, False), (2, 2, False), (138, 0, True)])
def test_a_job_ends_as_its_run_ends_and_comes_back_only_where_time_was_up(tmp_path, code, leaves, requeued):
    environment = stand_ins(tmp_path / "bin")
    script = write_job(LaunchConfig(where="slurm", strategy="ddp"), tmp_path, ["bash", "-c", f"exit {code}"])
    assert subprocess.run(["bash", script], env=environment, timeout=30, check=False).returncode == leaves
    asked = (tmp_path / "bin" / "asked").read_text() if (tmp_path / "bin" / "asked").exists() else ""
    assert asked == ("requeue 17\n" if requeued else "")


def test_a_job_told_that_time_is_up_lets_the_run_end_its_step(tmp_path):
    environment = stand_ins(tmp_path / "bin")
    run = f"trap 'sleep 1; touch {tmp_path}/saved; exit 138' USR1; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    script = write_job(LaunchConfig(where="slurm", strategy="ddp"), tmp_path, ["bash", "-c", run])
    process = subprocess.Popen(["bash", script], env=environment)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 0
    assert (tmp_path / "saved").exists() and (tmp_path / "bin" / "asked").read_text() == "requeue 17\n"


def test_without_slurm_nothing_is_submitted_and_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="there is no sbatch here.*: sbatch"):
        submit(tmp_path / "job.sbatch")
