"""The system calls that untrusted code may make: a seccomp filter, assembled here as classic BPF.

The filter closes what namespaces leave open: new namespaces, other processes' memory, limits and descriptors, mounts, kernel
interfaces, locks and watches on files that all jails see, and memory that no other limit counts. Every call of the kernel's
table is either allowed or refused here by name; a call that is in neither list, one of a newer kernel, does not exist for
the program (ENOSYS). Futexes on pages of shared libraries are not closed: two programs that run at once can signal by them.
"""

import platform
import struct
from itertools import groupby

from system_calls import syscalls

MACHINES = {"x86_64": ("x86_64", 0xC000003E), "aarch64": ("arm64", 0xC00000B7)}
"""Maps a machine to its name in the table of system calls, and to its AUDIT_ARCH."""

ALLOWED_CALLS = """
    accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown clock_getres clock_gettime
    clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
    epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fallocate
    fchdir fchmod fchmodat fchmodat2 fchown fchownat fdatasync fgetxattr flistxattr fork fstat fstatfs fsync ftruncate futex
    futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp
    getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid
    gettimeofday getuid getxattr getxattrat ioctl ioprio_get kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lgetxattr link linkat listen listxattr listxattrat llistxattr lseek lstat madvise
    map_shadow_stack membarrier mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock
    munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
    pkey_free pkey_mprotect poll ppoll pread64 preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read readlink readlinkat
    readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir rseq rseq_slice_yield rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setfsgid
    setfsuid setgid setgroups setitimer setpgid setregid setresgid setresuid setreuid setrlimit setsid setuid shutdown
    sigaltstack signalfd signalfd4 splice stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
    time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
    timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork wait4 waitid write writev"""
ALLOWED = frozenset(ALLOWED_CALLS.split())

REFUSED_CALLS = """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp get_robust_list
    unshare setns mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr
    statmount listmount listns name_to_handle_at open_by_handle_at quotactl quotactl_fd fanotify_init fanotify_mark
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch flock mincore cachestat readahead fadvise64
    setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat file_getattr file_setattr
    bpf perf_event_open userfaultfd uprobe uretprobe seccomp lsm_get_self_attr lsm_list_modules lsm_set_self_attr
    io_uring_setup io_uring_enter io_uring_register io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents
    add_key request_key keyctl memfd_create memfd_secret remap_file_pages vmsplice futex_requeue futex_wait futex_waitv futex_wake
    shmget shmat shmctl shmdt semget semctl semop semtimedop msgget msgctl msgrcv msgsnd
    mq_open mq_getsetattr mq_notify mq_timedreceive mq_timedsend mq_unlink
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct syslog vhangup sysfs ustat
    lookup_dcookie settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname personality
    mbind set_mempolicy set_mempolicy_home_node get_mempolicy migrate_pages move_pages ioprio_set iopl ioperm modify_ldt
    set_thread_area get_thread_area epoll_ctl_old epoll_wait_old"""
REFUSED = frozenset(REFUSED_CALLS.split())

AF_UNIX, EPERM, ENOSYS = 1, 1, 38
NEW_NAMESPACES = 0x7E020080
"""The flags CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME together."""
ONLY, NONE_OF, NO_BIT = "only", "none of", "no bit"
CHECKED: dict[str, list[tuple[int, str, tuple[int, ...]]]] = {
    "clone": [(0, NO_BIT, (NEW_NAMESPACES,))],
    "socket": [(0, ONLY, (AF_UNIX,))],
    "socketpair": [(0, ONLY, (AF_UNIX,))],
    # Allowed are duplicates, flags and reading the size of a pipe. Not allowed are locks and leases (5 to 7, 36 to 38, 1024,
    # 1025), by which jails could notice each other on the files that all of them have, watches on folders (1026), and larger
    # pipes (1031).
    "fcntl": [(1, ONLY, (0, 1, 2, 3, 4, 1030, 1032))],
    # Buffers stay at their default, which the count of a jail's memory relies on.
    "setsockopt": [(2, NONE_OF, (7, 8, 32, 33))],
    # Only for the process itself (0), because process 1 has the program's uid.
    "prlimit64": [(0, ONLY, (0,))], "sched_setaffinity": [(0, ONLY, (0,))], "sched_setscheduler": [(0, ONLY, (0,))],
    "sched_setparam": [(0, ONLY, (0,))], "sched_setattr": [(0, ONLY, (0,))], "setpriority": [(0, ONLY, (0,)), (1, ONLY, (0,))],
    # Neither its own filters nor sharing a core with process 1.
    "prctl": [(0, NONE_OF, (22, 62))],
}
"""Calls that are allowed only if the lower halves of some arguments fulfil these conditions: (index of the argument, relation,
values)."""
MISSING = frozenset({"clone3"})
"""Calls that appear not to exist. The flags of clone3 are behind a pointer, which a filter cannot follow; the C library then uses
clone."""
X32 = 0x40000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""
KILL, ALLOW, NO = 0x80000000, 0x7FFF0000, 0x00050000
Code = list[tuple[int, int, int, int]]


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter for the kind of machine `machine` (by default this one), in the form that `bwrap --seccomp` reads; None if there
    is no table of system calls for that kind of machine."""
    found = MACHINES.get(machine or platform.machine())
    if found is None:
        return None
    table, arch = syscalls().load_arch_table(found[0]), found[1]
    code = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    if found[0] == "x86_64":
        code += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for name in CHECKED.keys() & table.keys():
        check = [step for condition in CHECKED[name] for step in _unless(*condition)] + [(RETURN, 0, 0, ALLOW)]
        code += [(EQUAL, 0, len(check), table[name]), *check]
    verdicts = {table[name]: ALLOW if name in ALLOWED else NO | EPERM for name in (ALLOWED | REFUSED) & table.keys()}
    numbers = range(max(table.values()) + 1)
    for verdict, run in groupby(numbers, lambda number: verdicts.get(number, NO | ENOSYS)):
        code += [(AT_LEAST, 1, 0, max(run) + 1), (RETURN, 0, 0, verdict)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, (RETURN, 0, 0, NO | ENOSYS)])


def _unless(place: int, relation: str, values: tuple[int, ...]) -> Code:
    """Instructions that refuse a call unless its argument at the index `place` fulfils the condition of `relation` and `values`,
    as in `CHECKED`. If the argument fulfils it, the filter continues with the next instruction."""
    load = (LOAD, 0, 0, ARGUMENTS + 8 * place)
    if relation == ONLY:  # the last comparison falls through to the refusal; the others jump over the rest and over it
        return [load, *((EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)), (RETURN, 0, 0, NO | EPERM)]
    test = EQUAL if relation == NONE_OF else ANY_BIT
    return [load, *(step for value in values for step in ((test, 0, 1, value), (RETURN, 0, 0, NO | EPERM)))]
