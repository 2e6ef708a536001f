"""What a container is asked for, and how its streams are read, by a fake engine: no real one runs here."""

from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from routed_rl.errors import SandboxError
from routed_rl.sandbox import Limits
from routed_rl.sandbox.container import REQUEST, Container
from routed_rl.sandbox.jail import INSIDE


def number(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def report(status: int, *files: bytes) -> bytes:
    frame = number(status) + number(10) + b"".join(number(len(data)) + data for data in files)
    return frame + number(len(frame))


class FakeContainer:
    """Ends at once with what it is told to say."""

    def __init__(self, options: dict, said: list[tuple[bytes | None, bytes | None]], out_of_memory: bool) -> None:
        (place,) = options["volumes"]
        self.options, self.said, self.calls = options, said, list[str]()
        data = Path(place).read_bytes()
        assert int.from_bytes(data[:8], "big") == len(data) - 8
        self.request = marshal.loads(data[8:])
        self.attrs = {"State": {"OOMKilled": out_of_memory}}

    def attach(self, stream: bool, demux: bool):
        self.calls.append("attach")
        return iter(self.said)

    def start(self) -> None:
        self.calls.append("start")

    def kill(self) -> None:
        self.calls.append("kill")

    def wait(self) -> None:
        self.calls.append("wait")

    def reload(self) -> None: ...

    def remove(self, force: bool) -> None:
        self.calls.append(f"remove {force}")


class FakeEngine:
    """`client.containers` of the SDK, as far as we use it."""

    def __init__(self) -> None:
        self.containers, self.made = self, list[FakeContainer]()
        self.says([(b"hello\n", None), (report(0), None)])

    def says(self, said: list[tuple[bytes | None, bytes | None]], out_of_memory: bool = False) -> None:
        self.said, self.out_of_memory = said, out_of_memory

    def create(self, image: str, **options) -> FakeContainer:
        assert image == "python:3.11-slim"
        self.made.append(FakeContainer(options, self.said, self.out_of_memory))
        return self.made[-1]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def test_a_container_may_do_nothing_and_gets_the_request(engine):
    limits = Limits(memory_mb=100, processes=5, disk_mb=7)
    Container(engine).run(["python", "a.py"], {"a.py": "x"}, b"in", limits, ["r"])
    asked = engine.made[-1]
    assert asked.options["command"] == ["python", "-I", "-S", "-B", "-c", INSIDE, REQUEST, "1", "0"]
    assert asked.options["network_mode"] == "none" and asked.options["network_disabled"] is True
    assert asked.options["read_only"] is True and asked.options["cap_drop"] == ["ALL"] and asked.options["user"] == "65534:65534"
    assert asked.options["security_opt"] == ["no-new-privileges"] and asked.options["init"] is False
    assert asked.options["mem_limit"] == asked.options["memswap_limit"] == 100 << 20 and asked.options["pids_limit"] == 6
    assert asked.options["tmpfs"] == {"/tmp": f"size={7 << 20},mode=1777,nosuid,nodev"}
    assert asked.options["log_config"] == {"type": "none"}
    assert [bound["mode"] for bound in asked.options["volumes"].values()] == ["ro"]
    assert set(asked.options["environment"]) == {"HOME", "LANG"}
    assert asked.request["argv"] == ["python", "a.py"]
    assert asked.request["files"] == {"a.py": b"x"} and asked.request["stdin"] == b"in"
    assert asked.request["limits"]["memory"] == 100 << 20 and asked.request["collect"] == ["r"]
    assert asked.calls == ["attach", "start", "wait", "remove True"]


def test_the_report_is_cut_off_the_output(engine):
    sandbox = Container(engine)
    engine.says([(b"ou", b"er"), (b"t" + report(3 << 8, b"data")[:9], None), (report(3 << 8, b"data")[9:], b"r")])
    outcome = sandbox.run(["python", "a.py"], {"a.py": ""}, collect=["r"])
    assert (outcome.exit_code, outcome.stdout, outcome.stderr, dict(outcome.collected)) == (3, b"out", b"err", {"r": b"data"})


def test_floods_and_memory_end_it(engine):
    sandbox = Container(engine)
    engine.says([(b"x" * 5000, None)] * 3)
    outcome = sandbox.run(["python", "a.py"], {"a.py": ""}, limits=Limits(output_bytes=1000))
    assert outcome.reason == "output" and len(outcome.stdout) == 1000 and "kill" in engine.made[-1].calls
    engine.says([(b"x", None)], out_of_memory=True)
    assert sandbox.run(["python", "a.py"], {"a.py": ""}).reason == "memory"
    engine.says([(b"x", None)])
    assert sandbox.run(["python", "a.py"], {"a.py": ""}).reason == "signal"


def test_an_image_without_python_and_an_engine_that_fails_are_refused(engine, monkeypatch):
    engine.says([(None, b"no python")])
    with pytest.raises(SandboxError, match="no python"):
        Container(engine)
    monkeypatch.setattr(engine, "create", lambda *_, **__: 1 / 0)
    with pytest.raises(SandboxError, match="division by zero"):
        Container(engine)
    assert all(made.calls[-1] == "remove True" for made in engine.made)
