"""A side of the numpy rows of the bench `abi`: numpy_side.py KIND FILE CPU.

Sums FILE as uint64 for each line on standard input, and answers "done NS SUM". "first": over a fresh mapping, whose pages
nobody has touched; "again": over what the last line looked at. KIND is softfault, huge (softfault with huge pages),
memmap, memfd (memmap of a copy in a memfd) or memory.
"""

import os
import sys
import time
from typing import Any, Callable, Optional

import numpy


HUGE = 2 << 20


def of_softfault(path: str, huge: bool = False) -> Callable[[], Any]:
    import softfault

    rt = softfault.Runtime()
    file = rt.open(path, huge_pages=huge, fill_window=512 if huge else 0)
    file.populate()
    # Huge pages are made in the background.
    deadline = time.monotonic() + 10
    while huge and rt.counter("nr_shmem_hugepages") < file.length // HUGE:
        if time.monotonic() > deadline:
            print("absent the kernel makes no huge pages of a memfd", flush=True)
            sys.exit()
        time.sleep(0.05)

    def fresh() -> Any:
        # The array keeps the arena.
        with rt.arena(file.length) as arena:
            arena.map(file)
            return arena.array("u8")

    return fresh


def of_memmap(path: str) -> Callable[[], Any]:
    return lambda: numpy.memmap(path, "u8", "r")


def of_memfd(path: str) -> Callable[[], Any]:
    fd = os.memfd_create("numpy")
    with open(path, "rb") as source, open(fd, "wb", closefd=False) as copy:
        while block := source.read(1 << 20):
            copy.write(block)
    return lambda: numpy.memmap(f"/proc/self/fd/{fd}", "u8", "r")


def of_memory(path: str) -> Callable[[], Any]:
    return lambda: numpy.fromfile(path, "u8")


def main() -> None:
    kind, path, cpu = sys.argv[1:]
    sides = {
        "softfault": of_softfault,
        "huge": lambda path: of_softfault(path, huge=True),
        "memmap": of_memmap,
        "memfd": of_memfd,
        "memory": of_memory,
    }
    fresh = sides[kind](path)
    # This thread alone: the runtime's own stay where they like.
    os.sched_setaffinity(0, {int(cpu)})
    table: Optional[Any] = None
    for line in sys.stdin:
        if line.strip() == "first" or table is None:
            table = None  # The former mapping first.
            table = fresh()
        start = time.perf_counter_ns()
        total = table.sum()
        ns = time.perf_counter_ns() - start
        print("done", ns, int(total), flush=True)


main()
