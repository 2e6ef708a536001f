"""Runs a SLURM job: writes the script, submits it, and starts a process group on every node.

It was never run on a cluster: the script's calls of SLURM were tested with stand-ins for SLURM's commands.
"""

import shlex
import shutil
import subprocess
from pathlib import Path
from string import Template

from routed_rl.artifacts import write_text
from routed_rl.config import LaunchConfig
from routed_rl.errors import LaunchError


class Script(Template):
    """A template in which `@name` stands for a value, so that the shell's own `$name` stays as it is."""

    delimiter = "@"


def write_job(launch: LaunchConfig, run: Path, command: list[str]) -> Path:
    """Write the script of a SLURM job that runs `command`. The script is put into the run folder `run`; its path is returned."""
    text = Script(Path(__file__).with_name("job.sbatch").read_text()).substitute(
        name=shlex.quote(run.name), log=shlex.quote(f"{run}/job-%j.log"), nodes=launch.nodes, grace=round(launch.grace_s),
        command=shlex.join(command), setup="\n".join(launch.setup),
        options="\n".join(f"#SBATCH {option}" for option in launch.sbatch))
    script = run / "job.sbatch"
    write_text(script, text)
    return script


def submit(script: Path) -> str:
    """Submit the script to SLURM and return the line that SLURM prints. LaunchError if there is no SLURM here, or if it
    refuses."""
    if shutil.which("sbatch") is None:
        raise LaunchError(f"there is no sbatch here, so nothing was submitted; where there is one: sbatch {script}")
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(f"sbatch refused {script}: {' '.join(done.stderr.split())}; change launch.sbatch")
    return done.stdout.strip()


def node_command(launch: LaunchConfig, command: list[str]) -> list[str]:
    """The command that runs `command` once on every node of the job."""
    everywhere = [f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    return ["srun", *everywhere, *command]
