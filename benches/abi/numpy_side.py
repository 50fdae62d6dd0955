"""A side of the numpy rows of the bench `abi`: numpy_side.py softfault|memmap|memory FILE CPU.

Sums FILE as uint64 for each line on standard input, and answers "done NS SUM". "first": over a fresh mapping, whose pages
nobody has touched; "again": over what the last line looked at.
"""

import os
import sys
import time
from typing import Any, Callable, Optional

import numpy


def of_softfault(path: str) -> Callable[[], Any]:
    import softfault

    rt = softfault.Runtime()
    file = rt.open(path)
    file.populate()

    def fresh() -> Any:
        # The array keeps the arena.
        with rt.arena(file.length) as arena:
            arena.map(file)
            return arena.array("u8")

    return fresh


def of_memmap(path: str) -> Callable[[], Any]:
    return lambda: numpy.memmap(path, "u8", "r")


def of_memory(path: str) -> Callable[[], Any]:
    return lambda: numpy.fromfile(path, "u8")


def main() -> None:
    kind, path, cpu = sys.argv[1:]
    fresh = {"softfault": of_softfault, "memmap": of_memmap, "memory": of_memory}[kind](path)
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
