"""Runs each program in a container, by a running engine (Docker, or Podman's Docker-compatible socket) through the SDK `docker`.

This sandbox is for machines that have an engine and no bubblewrap. The tests use a fake client and check what is sent; they never
use a real engine. The engine must see this machine's files. A container takes about half a second.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from routed_rl.errors import SandboxError
from routed_rl.sandbox.core import Sandbox
from routed_rl.sandbox.jail import ENVIRONMENT, INSIDE, INTERPRETER
from routed_rl.sandbox.limits import MEBIBYTE, Limits, Outcome, Request
from routed_rl.sandbox.reply import Report

IMAGE = "python:3.11-slim"
REQUEST = "/request"


def engine() -> Any:
    """A client of the running container engine. SandboxError if the SDK is not installed or no engine answers."""
    try:
        import docker
    except ImportError:
        raise SandboxError("the SDK of the container engine is not installed: pip install 'routed-rl[container]'") from None
    try:
        client = docker.from_env()
        client.ping()
    except Exception as error:  # The SDK passes on errors of several libraries.
        raise SandboxError(f"no container engine answers: {error}") from error
    return client


def settings(limits: Limits, request: Path) -> dict[str, Any]:
    """The arguments of the SDK's `containers.create`. The container is held to `limits`, and sees nothing but its image, the file
    `request` (read-only) and a /tmp of its own."""
    return {
        "command": ["python", *INTERPRETER, "-c", INSIDE, REQUEST, "1", "0"],
        "entrypoint": [], "environment": dict(ENVIRONMENT), "working_dir": "/tmp", "user": "65534:65534",
        "network_disabled": True, "network_mode": "none", "read_only": True, "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"], "ipc_mode": "private", "init": False,
        "mem_limit": limits.memory_mb * MEBIBYTE, "memswap_limit": limits.memory_mb * MEBIBYTE,
        "pids_limit": limits.processes + 1,
        "tmpfs": {"/tmp": f"size={limits.disk_mb * MEBIBYTE},mode=1777,nosuid,nodev"}, "shm_size": MEBIBYTE,
        "volumes": {str(request): {"bind": REQUEST, "mode": "ro"}}, "log_config": {"type": "none"},
    }


def end(container: Any) -> None:
    try:
        container.kill()
    except Exception:
        pass  # It has ended in the meantime; if not, removing it by force ends it.


class Container(Sandbox):
    """Starts a container for each program. `client` is used instead of a client of the running engine, `image` instead of the
    default image. SandboxError if the image does not run Python."""

    name = "container"
    confines_by = "a container; memory and processes by its control group"

    def __init__(self, client: Any = None, image: str = IMAGE) -> None:
        self.client, self.image = client or engine(), image
        if problem := self.does_not_work(30):
            raise SandboxError(f"image {image} does not run python: {problem}")

    def run_request(self, request: Request) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "request")
            file.write_bytes(request.encoded)
            file.chmod(0o444)
            Path(folder).chmod(0o755)
            try:
                container = self.client.containers.create(self.image, **settings(request.limits, file))
            except Exception as error:
                raise SandboxError(f"no container of image {self.image} can be made: {error}") from error
            try:
                return self.watch(container, request)
            finally:
                container.remove(force=True)

    def watch(self, container: Any, request: Request) -> Outcome:
        """Start the container, read its standard output and standard error until it ends or exceeds a limit, and return the
        outcome. The report of the container's process 1 (inside.py) comes at the end of standard output, after the program's own
        output."""
        limits = request.limits
        output, caps = [bytearray(), bytearray()], (limits.output_bytes + request.report_size, limits.output_bytes)
        stream = container.attach(stream=True, demux=True)
        began, late = time.monotonic(), threading.Event()
        timer = threading.Timer(limits.wall_s, lambda: (late.set(), end(container)))
        container.start()
        timer.start()
        flood = False
        for parts in stream:
            for data, part, cap in zip(output, parts, caps, strict=True):
                data += part or b""
                flood = flood or len(data) > cap
            if flood:
                end(container)
                break
        timer.cancel()
        container.wait()
        container.reload()
        wall_s, out_of_memory = time.monotonic() - began, bool(container.attrs["State"]["OOMKilled"])
        stdout, stderr = bytes(output[0]), bytes(output[1][:limits.output_bytes])
        report = None if flood or late.is_set() else Report.parse(stdout, request.collect)
        if report is None:
            reason = "memory" if out_of_memory else "output" if flood else "timeout" if late.is_set() else "signal"
            return Outcome(None, reason, stdout[:limits.output_bytes], stderr, {}, wall_s)
        return report.outcome(limits, out_of_memory=out_of_memory, stdout=stdout[:-report.size], stderr=stderr, wall_s=wall_s)
