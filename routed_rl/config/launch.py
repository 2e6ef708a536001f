"""Settings that say where a run's processes run and how they share the model."""

from dataclasses import dataclass, field

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.errors import ConfigError

STRATEGIES = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    where: str = "here"
    """here: the run starts on this machine; slurm: it becomes a SLURM job."""
    strategy: str = "none"
    """How the processes share the model: none (one process, this one), ddp, zero1, zero2, zero3, or fsdp2."""
    processes: int = 1
    """Number of processes on each node. With GPUs each process has one GPU."""
    nodes: int = 1
    """Number of nodes; more than one needs where=slurm."""
    port: int = 29500
    """Port on the first node by which the processes of several nodes find each other. On a single node a free port is taken
    instead."""
    timeout_s: float = 1800
    """Seconds that a process may wait for the other processes before the run ends."""
    grace_s: float = 600
    """Seconds that a run has, after a signal, to end its step and write a checkpoint before its processes are killed."""
    offload: bool = False
    """Leave this false. true is refused, because with offloading DeepSpeed replaces the optimizer by one of its own."""
    sbatch: list[str] = field(default_factory=list)
    """For where=slurm: options of sbatch, such as --partition=gpu, --time=24:00:00, --gpus-per-node=8."""
    setup: list[str] = field(default_factory=list)
    """For where=slurm: shell lines that the job runs before its first command, such as `module load cuda`."""

    def __post_init__(self) -> None:
        check_known("launch.where", [self.where], ("here", "slurm"))
        check_known("launch.strategy", [self.strategy], STRATEGIES)
        check_at_least("launch", self, {"processes": 1, "nodes": 1, "port": 1, "timeout_s": 1, "grace_s": 1})
        if self.port > 65535:
            raise ConfigError(f"launch.port must be a port from 1 to 65535, got {self.port}")
        if self.offload:
            raise ConfigError("launch.offload=true is refused: DeepSpeed then replaces the optimizer by one of its own; leave it "
                              "false and set launch=zero3 with more processes")
        if self.strategy == "none" and self.processes * self.nodes > 1:
            raise ConfigError(f"launch.processes={self.processes} launch.nodes={self.nodes} need a way to share the work; set "
                              "launch.strategy to ddp, zero1, zero2, zero3 or fsdp2, or both to 1")
        if self.nodes > 1 and self.where == "here":
            raise ConfigError(f"launch.nodes={self.nodes} needs a job: launch=slurm launch.nodes={self.nodes}")

    @property
    def world(self) -> int:
        """Number of processes on all nodes together."""
        return self.processes * self.nodes
