"""The system call filter, run by a small interpreter of BPF: what it does on a machine that is not this one, too."""

from __future__ import annotations

import struct

import pytest

from routed_rl.sandbox.seccomp import CLONE, CLONE3, MACHINES, REFUSED, SOCKET, seccomp_filter

KILLED, ALLOWED = "killed", "allowed"
CLONE_THREAD, CLONE_NEWUSER, SIGCHLD = 0x3D0F00, 0x10000000, 17


def judge(program: bytes, arch: int, number: int, argument: int = 0) -> str | int:
    """What the filter does with a call: killed, allowed, or an error number."""
    data = struct.pack("=IIQ6Q", number, arch, 0, argument, *[0] * 5)
    code, place, value = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        operation, yes, no, constant = code[place]
        place += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x06:
            return {0x80000000: KILLED, 0x7FFF0000: ALLOWED}.get(constant, constant & 0xFFFF)
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            place += yes if holds else no


@pytest.fixture(params=MACHINES)
def machine(request):
    column, arch = MACHINES[request.param]
    program = seccomp_filter(request.param)
    assert program
    return lambda number, argument=0, arch=arch: judge(program, arch, number, argument), column


def test_every_call_of_the_list_is_refused_and_no_other(machine):
    call, column = machine
    refused = {numbers[column] for numbers in REFUSED.values()} - {None}
    special = {CLONE[column], CLONE3[column], SOCKET[column]}
    assert {number for number in range(500) if call(number) == 1} - special == refused
    assert {number for number in range(500) if call(number) == ALLOWED} == set(range(500)) - refused - {CLONE3[column], SOCKET[column]}


def test_threads_and_processes_start_and_namespaces_do_not(machine):
    call, column = machine
    assert call(CLONE[column], SIGCHLD) == call(CLONE[column], CLONE_THREAD) == ALLOWED
    assert all(call(CLONE[column], SIGCHLD | flag) == 1 for flag in (CLONE_NEWUSER, 0x20000, 0x40000000, 0x20000000, 0x80))
    assert call(CLONE3[column]) == 38


def test_sockets_are_local_only(machine):
    call, column = machine
    assert [call(SOCKET[column], family) for family in (1, 2, 10, 16, 17, 40)] == [ALLOWED, 1, 1, 1, 1, 1]


def test_other_calling_conventions_end_the_program(machine):
    call, column = machine
    assert call(0, arch=0x40000003) == KILLED
    assert column == 1 or call(0x40000000) == KILLED


def test_a_machine_without_a_table_has_no_filter():
    assert seccomp_filter("riscv64") is None
