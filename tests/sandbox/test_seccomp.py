"""The system call filter, run by a small interpreter of BPF: what it does on a machine that is not this one, too."""

from __future__ import annotations

import struct

import pytest
from system_calls import syscalls

from routed_rl.sandbox.seccomp import ALLOWED, CHECKED, MACHINES, MISSING, REFUSED, seccomp_filter

KILLED, ALLOW, REFUSE, ABSENT = "killed", "allowed", 1, 38
CLONE_THREAD, CLONE_NEWUSER, SIGCHLD = 0x3D0F00, 0x10000000, 17


def judge(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> str | int:
    """What the filter does with a call: killed, allowed, or an error number."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*arguments, *[0] * 6)[:6])
    code, place, value = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        operation, yes, no, constant = code[place]
        place += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x06:
            return {0x80000000: KILLED, 0x7FFF0000: ALLOW}.get(constant, constant & 0xFFFF)
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            place += yes if holds else no


@pytest.fixture(params=MACHINES)
def machine(request):
    """(name or number of a call, its arguments) -> what the filter does; and the kernel's table for that machine."""
    name, arch = MACHINES[request.param]
    program, table = seccomp_filter(request.param), syscalls().load_arch_table(name)
    assert program

    def call(which: str | int, *arguments: int, arch: int = arch) -> str | int:
        return judge(program, arch, table[which] if isinstance(which, str) else which, arguments)

    return call, table


def test_every_call_of_the_kernels_table_was_decided_upon(machine):
    """A kernel with a new call fails here, once its table is installed, until somebody writes it into one of the lists."""
    _, table = machine
    lists = [ALLOWED, REFUSED, set(CHECKED), MISSING]
    assert sorted(table.keys() - frozenset().union(*lists)) == []
    assert sum(map(len, lists)) == len(frozenset().union(*lists))


def test_no_list_names_a_call_that_does_not_exist():
    known = {name for table, _ in MACHINES.values() for name in syscalls().load_arch_table(table)}
    assert sorted((ALLOWED | REFUSED | set(CHECKED) | MISSING) - known) == []


def test_the_filter_does_what_the_lists_say_and_knows_no_other_call(machine):
    call, table = machine
    names = {number: name for name, number in table.items()}

    def decided(number: int) -> str | int:
        name = names.get(number, "")
        return ALLOW if name in ALLOWED else REFUSE if name in REFUSED else ABSENT

    numbers = [number for number in range(1024) if names.get(number) not in CHECKED]
    assert [(number, call(number)) for number in numbers] == [(number, decided(number)) for number in numbers]


def test_threads_and_processes_start_and_namespaces_do_not(machine):
    call, _ = machine
    assert call("clone", SIGCHLD) == call("clone", CLONE_THREAD) == ALLOW
    assert all(call("clone", SIGCHLD | flag) == REFUSE for flag in (CLONE_NEWUSER, 0x20000, 0x40000000, 0x20000000, 0x80))
    assert call("clone3") == ABSENT


@pytest.mark.parametrize("name", ["socket", "socketpair"])
def test_sockets_are_local_only(machine, name):
    call, _ = machine
    assert [call(name, family) for family in (1, 2, 10, 16, 17, 30, 40)] == [ALLOW, *[REFUSE] * 6]


def test_files_are_not_locked_leased_or_watched(machine):
    call, _ = machine
    assert [call("fcntl", 3, command) for command in (0, 1, 2, 3, 4, 1030, 1032)] == [ALLOW] * 7
    assert [call("fcntl", 3, command) for command in (5, 6, 7, 8, 36, 37, 38, 1024, 1025, 1026, 1031, 1033)] == [REFUSE] * 12


def test_limits_priorities_and_cores_of_other_processes_are_not_changed(machine):
    call, _ = machine
    for name in ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
        assert [call(name, pid) for pid in (0, 1, 2)] == [ALLOW, REFUSE, REFUSE]
    assert [call("setpriority", which, who) for which, who in ((0, 0), (0, 1), (1, 0), (2, 0))] == [ALLOW, *[REFUSE] * 3]
    assert [call("prctl", option) for option in (15, 22, 62)] == [ALLOW, REFUSE, REFUSE]


def test_buffers_of_sockets_stay_as_they_are(machine):
    call, _ = machine
    assert [call("setsockopt", 3, 1, option) for option in (2, 7, 8, 32, 33)] == [ALLOW, *[REFUSE] * 4]


def test_other_calling_conventions_end_the_program(machine):
    call, table = machine
    assert call(0, arch=0x40000003) == KILLED
    assert "fork" not in table or call(0x40000000) == KILLED  # of the two only x86 has the call and a second convention


def test_a_machine_without_a_table_has_no_filter():
    assert seccomp_filter("riscv64") is None
