"""Finds the sandbox that works on this machine."""

from collections.abc import Callable
from functools import cache

from routed_rl.errors import SandboxError
from routed_rl.sandbox.bubblewrap import Bubblewrap
from routed_rl.sandbox.container import Container
from routed_rl.sandbox.core import Sandbox

SANDBOXES: dict[str, Callable[[], Sandbox]] = {"bubblewrap": Bubblewrap, "container": Container}
WAY_OUT = ("install bubblewrap (Debian and Ubuntu: apt-get install bubblewrap; inside Docker also start the container with "
           "--security-opt seccomp=unconfined --security-opt apparmor=unconfined), or a container engine and the extra container")


@cache
def find_sandbox(name: str = "auto") -> Sandbox:
    """The sandbox `name` ("bubblewrap" or "container"), or, for "auto", the first one that works. It is searched for once in each
    process.

    The sandbox has already run a test program when this function returns. SandboxError if no sandbox works, because untrusted
    code must then not be run at all.
    """
    if name != "auto" and name not in SANDBOXES:
        raise SandboxError(f"unknown sandbox {name!r}; there are auto, {', '.join(SANDBOXES)}")
    problems: list[str] = []
    for each in SANDBOXES if name == "auto" else [name]:
        try:
            return SANDBOXES[each]()
        except SandboxError as error:
            problems.append(f"{each}: {error}")
    raise SandboxError(f"no sandbox works here, so untrusted code is not run ({'; '.join(problems)}); {WAY_OUT}")
