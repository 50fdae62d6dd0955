"""numpy over a table four times as large as the cache it is seen through, checked against numpy in memory.

    python3 out_of_core.py [MEGABYTES [CACHE_MEGABYTES]]       by default 64 through 16

Mean, deviation and correlation of the columns, a spectrum, and quantiles by sorting a copy in place. Each is computed by
the same function over arrays in an arena and over arrays in memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import softfault

COLUMNS = 16
MIB = 1 << 20


def make_table(path: Path, size: int) -> None:
    """Writes random rows whose columns have means of their own, and depend on each other."""
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(COLUMNS, COLUMNS))
    with path.open("wb") as out:
        for _ in range(size // MIB):
            rows = rng.normal(size=(MIB // 8 // COLUMNS, COLUMNS))
            out.write((rows @ mix + np.arange(COLUMNS)).tobytes())


def describe(table: Any) -> dict[str, Any]:
    """Statistics of the columns of a table that need not fit in memory: nothing here is larger than a block of it."""
    n, block = len(table), 16384
    total, product = np.zeros(COLUMNS), np.zeros((COLUMNS, COLUMNS))
    for at in range(0, n, block):
        total += table[at : at + block].sum(axis=0)
    mean = total / n
    for at in range(0, n, block):
        centred = table[at : at + block] - mean
        product += centred.T @ centred
    std = np.sqrt(np.diag(product) / n)
    # One column: every page of the table, for a sixteenth of its bytes.
    spectrum = np.abs(np.fft.rfft(table[: 1 << (n.bit_length() - 1), 3]))[:64]
    return {"mean": mean, "std": std, "correlation": product / n / np.outer(std, std), "spectrum": spectrum}


def quantiles(flat: Any) -> Any:
    """Sorts in place, and picks."""
    flat.sort()
    return flat[np.linspace(0, len(flat) - 1, 101).astype(np.int64)]


def main(size: int, cache: int) -> int:
    with tempfile.TemporaryDirectory(prefix="softfault-") as folder:
        table_path, sorted_path = Path(folder, "table.f64"), Path(folder, "sorted.f64")
        make_table(table_path, size)
        with sorted_path.open("wb") as out:
            out.truncate(size)

        with softfault.Runtime(cache_limit=cache) as rt:
            with rt.open(table_path) as file, rt.open(sorted_path, writable=True) as copy:
                with rt.arena(size) as source, rt.arena(size) as target:
                    source.map(file)
                    target.map(copy, writable=True)
                    table = source.array("f8").reshape(-1, COLUMNS)
                    flat = target.array("f8")

                    found = describe(table)
                    flat[:] = table.reshape(-1)
                    found["quantiles"] = quantiles(flat)
                    copy.sync()  # durable from here on, or an exception that says what is not

                    cached, major = rt.counter("nr_cached_pages"), rt.counter("pgmajfault")
                    # Without them the arenas would live on behind the with block.
                    del table, flat

        in_memory = np.fromfile(table_path)
        expected = describe(in_memory.reshape(-1, COLUMNS))
        expected["quantiles"] = quantiles(in_memory)
        in_file = np.fromfile(sorted_path)

    wrong = [name for name in expected if not np.allclose(found[name], expected[name], rtol=1e-10, atol=1e-10)]
    if not np.array_equal(in_file, in_memory):
        wrong.append("sorted file")
    if cached > cache // 4096:
        wrong.append(f"{cached} pages cached")
    print(f"{size // MIB} MiB, twice, through a cache of {cache // MIB} MiB: {cached} pages cached, {major} major faults")
    print("median", found["quantiles"][50], "of columns with means", np.round(found["mean"][:4], 2), "..")
    print("wrong: " + ", ".join(wrong) if wrong else "every result is as in memory")
    return 1 if wrong else 0


if __name__ == "__main__":
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    cache_megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else megabytes // 4
    sys.exit(main(megabytes * MIB, cache_megabytes * MIB))
