"""The tests of the package: python3 -m unittest, in this folder, with SOFTFAULT_LIBRARY where it is not found by itself."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Iterator

import softfault
from softfault import _lib

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "bindings-c" / "include" / "softfault.h"
PAGE = 4096
MIB = 1 << 20


# Nothing ends before the process does.
STORES_AND_ENDS = """
import builtins, softfault
rt = softfault.Runtime(writeback_interval=3600, writeback_expire=3600, exit_wait={wait})
file = rt.open({path!r}, writable=True)
arena = rt.arena(file.length)
arena.map(file, writable=True)
view = arena.buffer()
view[:] = b"x" * len(view)
builtins.kept = (rt, file, arena, view)
import ctypes
ctypes.pythonapi.Py_IncRef(ctypes.py_object(builtins.kept))
"""


def work(path: str) -> None:
    exec(STORES_AND_ENDS.format(path=path, wait=None))


def pattern(page: int) -> bytes:
    return page.to_bytes(8, "little") * (PAGE // 8)


class WithFile(unittest.TestCase):
    """A runtime with a small cache, and a file four times as large: each page holds its number."""

    CACHE = 1 * MIB
    PAGES = 4 * CACHE // PAGE

    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="softfault-")
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name, "pages")
        self.path.write_bytes(b"".join(pattern(n) for n in range(self.PAGES)))
        self.rt = softfault.Runtime(cache_limit=self.CACHE)
        self.addCleanup(self.rt.close)

    def mapped(self, writable: bool = False, **options: Any) -> tuple[softfault.Object, softfault.Arena]:
        file = self.rt.open(self.path, writable=writable)
        arena = self.rt.arena(file.length, **options)
        arena.map(file, writable=writable)
        return file, arena


class Memory(WithFile):
    def test_a_memoryview_larger_than_the_cache(self) -> None:
        _, arena = self.mapped()
        with arena:
            words = arena.buffer().cast("Q")
            self.assertEqual(len(words), self.PAGES * 512)
            for _ in range(2):
                self.assertEqual(sum(words[:: PAGE // 8]), sum(range(self.PAGES)))
            self.assertEqual(words[-1], self.PAGES - 1)
            self.assertTrue(words.readonly)
            with self.assertRaises(TypeError):
                words[0] = 1
        self.assertLessEqual(self.rt.counter("nr_cached_pages"), self.CACHE // PAGE)
        self.assertGreater(self.rt.counter("pgmajfault"), 0)

    def test_a_file_is_mapped_in_one_call(self) -> None:
        arena, file = self.rt.map_file(self.path, writable=True)
        with arena:
            words = arena.buffer().cast("Q")
            self.assertEqual(sum(words[:: PAGE // 8]), sum(range(self.PAGES)))
            words[0] = 7
            del words
            file.sync()
        self.assertEqual(self.path.read_bytes()[:8], (7).to_bytes(8, "little"))
        with self.rt.map_file(self.path)[0] as arena:
            self.assertTrue(arena.buffer().readonly)

        empty = Path(self.folder.name, "empty")
        empty.touch()
        arena, file = self.rt.map_file(empty)
        self.assertEqual((file.length, arena.exported), (0, False))
        arena.close()
        with self.assertRaises(softfault.SoftfaultError) as caught:
            self.rt.map_file("/no/such/file")
        self.assertEqual((caught.exception.errno, caught.exception.filename), (errno.ENOENT, "/no/such/file"))

    def test_stores_reach_the_file(self) -> None:
        file, arena = self.mapped(writable=True)
        with arena:
            view = arena.buffer()
            for n in range(self.PAGES):
                view[n * PAGE : n * PAGE + 8] = (n * 3).to_bytes(8, "little")
            view[-1] = 255
            file.sync()
        data = self.path.read_bytes()
        for n in range(self.PAGES):
            self.assertEqual(int.from_bytes(data[n * PAGE : n * PAGE + 8], "little"), n * 3)
        self.assertEqual(data[-1], 255)

    def test_stores_are_in_the_file_after_exit(self) -> None:
        for end, want in [
            ("", b"x"),
            ("import sys; sys.exit()", b"x"),
            ("rt.write_back(); import os; os._exit(0)", b"x"),
            ("off", b"\0"),
        ]:
            self.path.write_bytes(bytes(16 * PAGE))
            wait = "0" if end == "off" else "None"
            subprocess.run(
                [sys.executable, "-c", STORES_AND_ENDS.format(path=str(self.path), wait=wait) + end.replace("off", "")],
                check=True,
                cwd=HERE,
                timeout=60,
            )
            self.assertEqual(self.path.read_bytes(), want * 16 * PAGE, end)

    def test_stores_of_workers_are_in_the_file(self) -> None:
        for method in ("spawn", "fork"):
            self.path.write_bytes(bytes(16 * PAGE))
            # From a process of its own: a child by fork of one that has a runtime cannot make another.
            program = f"""if __name__ == "__main__":
    import multiprocessing, test_softfault
    worker = multiprocessing.get_context({method!r}).Process(target=test_softfault.work, args=({str(self.path)!r},))
    worker.start()
    worker.join()
    raise SystemExit(worker.exitcode)
"""
            subprocess.run([sys.executable, "-c", program], check=True, cwd=HERE, timeout=60)
            self.assertEqual(self.path.read_bytes(), b"x" * 16 * PAGE, method)

    def test_private_stores_stay(self) -> None:
        file = self.rt.open(self.path)
        with self.rt.arena(file.length) as arena:
            arena.map(file, writable=True, private=True)
            view = arena.buffer(0, PAGE)
            view[0] = 99
            self.assertEqual((view[0], arena.read(0, 1)), (99, b"c"))
            del view
        self.assertEqual(self.path.read_bytes()[0], 0)

    def test_calls_instead_of_touches(self) -> None:
        file, arena = self.mapped(writable=True)
        self.assertEqual(file.read(3 * PAGE, 8), pattern(3)[:8])
        self.assertEqual(file.read(file.length - 2, 100), pattern(self.PAGES - 1)[-2:])
        self.assertEqual(file.write(PAGE, b"bytes"), 5)
        arena.write(PAGE + 5, bytearray(b" and more"))
        self.assertEqual(arena.read(PAGE, 14), b"bytes and more")
        self.assertGreater(file.cached_pages, 0)
        file.sync()
        file.evict()
        with self.path.open("rb") as f:
            f.seek(PAGE)
            self.assertEqual(f.read(14), b"bytes and more")

    def test_anonymous_memory_beyond_the_cache_by_swap(self) -> None:
        with softfault.Runtime(cache_limit=MIB, swap=(self.folder.name, 8 * MIB), zswap=MIB // 2) as rt:
            with rt.anonymous(4 * MIB) as memory, rt.arena(4 * MIB) as arena:
                arena.map(memory, writable=True)
                words = arena.buffer().cast("Q")
                for n in range(0, len(words), 512):
                    words[n] = n + 1
                self.assertEqual(sum(words[::512]), sum(n + 1 for n in range(0, len(words), 512)))

    def test_threads(self) -> None:
        _, arena = self.mapped()
        view = arena.buffer().cast("Q")
        sums = [0] * 4

        def work(i: int) -> None:
            sums[i] = sum(view[n * 512] for n in range(i, self.PAGES, 4))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sum(sums), sum(range(self.PAGES)))
        self.assertEqual(self.rt.audit_threads(), [])

    def test_system_calls_need_a_pin(self) -> None:
        _, arena = self.mapped()
        view = arena.buffer(0, 16 * PAGE)
        with (Path(self.folder.name) / "copy").open("w+b", buffering=0) as copy:
            if arena.delivery == softfault.Delivery.IN_THREAD:
                with self.assertRaises(OSError) as caught:
                    copy.write(view)
                self.assertEqual(caught.exception.errno, errno.EFAULT)
            with arena.pin(0, 16 * PAGE):
                copy.write(view)
            copy.seek(0)
            self.assertEqual(copy.read(), b"".join(pattern(n) for n in range(16)))

    def test_words_about_the_runtime(self) -> None:
        self.assertIn("thread", self.rt.delivery_report().lower())
        self.assertIn(self.rt.delivery, (softfault.Delivery.IN_THREAD, softfault.Delivery.SEGV))
        self.assertIsInstance(self.rt.stats(), dict)
        self.rt.set_cache_limit(2 * MIB)
        self.assertEqual(self.rt.warnings(), [])
        self.assertRegex(softfault.version(), r"^\d+\.\d+\.\d+$")

    def test_a_cache_that_is_locked(self) -> None:
        with softfault.Runtime(cache_limit=MIB, lock_cache=True) as rt:
            try:
                memory = rt.anonymous(MIB)
            except softfault.SoftfaultError as refused:
                self.assertIn("RLIMIT_MEMLOCK", str(refused))
                self.skipTest(str(refused))
            memory.write(0, b"here")
            status = Path("/proc/self/status").read_text()
            locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck:"))
            self.assertGreaterEqual(locked, 4)
            arena = rt.arena(MIB)
            arena.map(memory, writable=True)
            with arena.pin(0, PAGE) as pin:
                self.assertTrue(pin.locked)
            arena.close()
            memory.close()

    def test_an_end_that_others_move(self) -> None:
        file = self.rt.open(self.path, writable=True, growable=True)
        end = file.length
        with self.path.open("ab") as other:
            other.write(b"more")
        self.assertEqual((file.length, file.follow_length(), file.length), (end, end + 4, end + 4))
        self.assertEqual(file.read(end, 9), b"more")
        file.write(0, b"written")
        file.write_back(0, PAGE)
        self.assertEqual(self.path.read_bytes()[:7], b"written")

    def test_one_object_in_place_of_another(self) -> None:
        file, memory = self.rt.open(self.path), self.rt.anonymous(2 * PAGE)
        memory.write(0, b"new" * PAGE)
        spare = self.rt.arena(2 * MIB)
        base = spare.base
        spare.close()
        with self.rt.arena(2 * MIB, address=base) as arena:
            self.assertEqual(arena.base, base)
            arena.map(file, length=4 * PAGE)
            with arena.buffer(PAGE, PAGE), self.assertRaises(BufferError):
                arena.replace(memory, offset=PAGE)
            arena.replace(memory, offset=PAGE, writable=True)
            self.assertEqual(arena.read(PAGE, 6), b"newnew")
            self.assertEqual(arena.read(0, 8), pattern(0)[:8])
            self.assertEqual(arena.read(3 * PAGE, 8), pattern(3)[:8])


class Errors(WithFile):
    def test_errno_kind_and_words(self) -> None:
        with self.assertRaises(softfault.SoftfaultError) as caught:
            self.rt.open("/no/such/file")
        self.assertEqual((caught.exception.errno, caught.exception.kind), (errno.ENOENT, softfault.ErrorKind.IO))
        self.assertIn("/no/such/file", str(caught.exception))
        self.assertIsInstance(caught.exception, OSError)

        file = self.rt.open(self.path)
        arena = self.rt.arena(file.length + 2 * MIB)
        arena.map(file)
        for refused, number in (
            (lambda: arena.map(file), errno.EEXIST),
            (lambda: arena.map(file, offset=1), errno.EINVAL),
            (lambda: arena.read(file.length, 1), errno.ENXIO),
            (lambda: file.write(0, b"x"), errno.EACCES),
            (lambda: self.rt.counter("no such counter"), errno.ENOENT),
        ):
            with self.assertRaises(softfault.SoftfaultError) as caught:
                refused()
            self.assertEqual(caught.exception.errno, number)

    def test_a_page_that_cannot_be_had(self) -> None:
        file, arena = self.mapped()
        os.truncate(self.path, PAGE)
        self.assertEqual(arena.read(0, 8), pattern(0)[:8])
        for refused in (lambda: arena.read(64 * PAGE, 1), lambda: arena.fault_in(64 * PAGE, PAGE)):
            with self.assertRaises(softfault.SoftfaultError) as caught:
                refused()
            self.assertEqual(caught.exception.kind, softfault.ErrorKind.FAULT)
            self.assertIn(softfault.FaultReason.SIGBUS, caught.exception.reason)

    def test_closed(self) -> None:
        file, arena = self.mapped()
        for closed in (arena, file, self.rt):
            closed.close()
            closed.close()
            self.assertTrue(closed.closed)
        for refused in (lambda: arena.buffer(0, 1), lambda: file.read(0, 1), lambda: self.rt.anonymous(PAGE)):
            with self.assertRaises(ValueError):
                refused()

    def test_any_order(self) -> None:
        file, arena = self.mapped()
        self.rt.close()
        file.close()
        self.assertEqual(arena.buffer()[8 * PAGE], 8)


class IllRow(ctypes.Structure):
    _fields_ = [
        ("answer", ctypes.c_int),
        ("error", ctypes.c_int),
        ("cause", ctypes.c_uint32),
        ("store_errno", ctypes.c_int),
    ]


def ill() -> ctypes.CDLL:
    """The store that fails as it is told: ../../bindings-c/tests/languages/ill_store.h."""
    store = ctypes.CDLL(os.environ["SOFTFAULT_ILL_STORE"])
    store.ill_row_at.argtypes, store.ill_row_at.restype = [ctypes.c_size_t, ctypes.c_int], ctypes.POINTER(IllRow)
    store.ill_operations.restype = ctypes.c_void_p
    return store


def ill_object(store: ctypes.CDLL, **options: Any) -> tuple[softfault.Runtime, softfault.Object, softfault.Arena]:
    """Page 5 of the object is page 6 of the arena."""
    rt = softfault.Runtime(cache_limit=4 * MIB, **options)
    of = rt.from_store(
        16 * PAGE, store.ill_operations(), writable=True, label="the ill one", fill_window=1, readahead=0
    )
    arena = rt.arena(16 * PAGE)
    arena.map(of, offset=3 * PAGE, object_offset=2 * PAGE, length=8 * PAGE)
    return rt, of, arena


def touch_ill(answer: int) -> None:
    store = ill()
    rt, of, arena = ill_object(store, report_signals=True)
    view = arena.buffer(6 * PAGE, PAGE)
    store.ill_answers(answer, 0, 0)
    view[9]


@unittest.skipUnless("SOFTFAULT_ILL_STORE" in os.environ, "SOFTFAULT_ILL_STORE names no library")
class Causes(unittest.TestCase):
    """What a store said is in the exceptions; of a touch, on standard error."""

    def rows(self) -> Iterator[tuple[IllRow, IllRow]]:
        """Of reads and writes, and of flushes."""
        store, n = ill(), 0
        while store.ill_row_at(n, 0):
            yield store.ill_row_at(n, 0).contents, store.ill_row_at(n, 1).contents
            n += 1
        self.assertGreaterEqual(n, 10)

    def test_reads_and_syncs(self) -> None:
        store = ill()
        rt, of, arena = ill_object(store)
        kinds = softfault.ErrorKind

        def fails(want: IllRow, kind: softfault.ErrorKind, at: Any, in_arena: Any, call: Any, *args: Any) -> None:
            with self.assertRaises(OSError) as caught:
                call(*args)
            e = caught.exception
            assert isinstance(e, softfault.SoftfaultError)
            self.assertEqual((e.errno, e.kind), (want.error, kind), e)
            self.assertEqual(e.fault, (want.cause, want.store_errno, "the ill one", at, in_arena))
            self.assertIn("the ill one", str(e))
            if want.store_errno:
                self.assertIn(os.strerror(want.store_errno), str(e))

        for row, in_flush in self.rows():
            store.ill_answers(row.answer, 0, 0)
            fails(row, kinds.FAULT, 5 * PAGE + 1, None, of.read, 5 * PAGE + 1, 1)
            fails(row, kinds.FAULT, 5 * PAGE + 2, 6 * PAGE + 2, arena.read, 6 * PAGE + 2, 1)
            fails(row, kinds.FAULT, 5 * PAGE, 6 * PAGE, arena.fault_in, 6 * PAGE, PAGE)
            store.ill_answers(0, 0, 0)
            of.write(9 * PAGE, b"x")
            store.ill_answers(0, row.answer, 0)
            fails(row, kinds.WRITEBACK, 9 * PAGE, None, of.sync)
            store.ill_answers(0, 0, row.answer)
            fails(in_flush, kinds.FLUSH, None, None, of.sync)
            store.ill_answers(0, 0, 0)
            of.sync()

            last = rt.recent_failures()
            for op, at in ((softfault.FailedOp.READ, 5 * PAGE), (softfault.FailedOp.WRITE, 9 * PAGE)):
                of_it = [f for f in last if (f.op, f.store_errno, f.cause) == (op, row.store_errno, row.cause)]
                self.assertTrue(of_it and of_it[-1].object_offset == at, last)
                self.assertEqual((of_it[-1].object, of_it[-1].address), ("the ill one", 0))
        with self.assertRaises(softfault.SoftfaultError) as caught:
            rt.open("/no/such/file")
        self.assertIsNone(caught.exception.fault)

    def test_touches(self) -> None:
        for row, _ in self.rows():
            out = python(f"import test_softfault; test_softfault.touch_ill({row.answer})")
            self.assertEqual(out.returncode, -signal.SIGBUS, out.stderr)
            words = os.strerror(row.store_errno) if row.store_errno else ""
            self.assertIn("byte 0x5009 of the ill one: " + words, out.stderr)


class Buffers(WithFile):
    """Memory is not taken away from who looks at it."""

    def test_close_refuses(self) -> None:
        _, arena = self.mapped()
        view = arena.buffer()
        part = view[PAGE : 2 * PAGE].cast("Q")
        del view
        self.assertTrue(arena.exported)
        with self.assertRaises(BufferError):
            arena.close()
        self.assertEqual(part[0], 1)
        part.release()
        self.assertFalse(arena.exported)
        arena.close()

    def test_a_view_that_outlives_everything(self) -> None:
        with softfault.Runtime(cache_limit=self.CACHE) as rt:
            with rt.open(self.path) as file, rt.arena(file.length) as arena:
                arena.map(file)
                view = arena.buffer().cast("Q")
        self.assertTrue(arena.closed and file.closed and rt.closed)
        del arena, file, rt
        gc.collect()
        self.assertEqual(sum(view[::512]), sum(range(self.PAGES)))

    def test_the_memory_goes_with_the_last_view(self) -> None:
        with self.rt.open(self.path) as file, self.rt.arena(file.length) as arena:
            arena.map(file)
            base = arena.base
            view = arena.buffer()
        self.assertTrue(is_mapped(base))
        del view
        gc.collect()
        self.assertFalse(is_mapped(base))

    def test_an_exception_passes(self) -> None:
        with self.assertRaises(KeyError):
            with self.rt.open(self.path) as file, self.rt.arena(file.length) as arena:
                arena.map(file)
                view = arena.buffer()
                raise KeyError(view[0])

    def test_unmap_protect_and_set_length_refuse(self) -> None:
        file, arena = self.mapped(writable=True)
        view = arena.buffer(8 * PAGE, PAGE)
        with self.assertRaises(BufferError):
            arena.unmap(0, 16 * PAGE)
        with self.assertRaises(BufferError):
            arena.protect(8 * PAGE, PAGE, writable=False)
        with self.assertRaises(BufferError):
            arena.protect(0, 64 * PAGE, readable=False)
        with self.assertRaises(BufferError):
            file.set_length(8 * PAGE)
        view[0] = 1
        arena.protect(16 * PAGE, PAGE)  # others may
        arena.unmap(32 * PAGE, PAGE)
        del view
        arena.protect(8 * PAGE, PAGE)
        self.assertTrue(arena.buffer(8 * PAGE, PAGE).readonly)
        self.assertTrue(arena.buffer(0, 17 * PAGE).readonly)
        self.assertFalse(arena.buffer(0, 8 * PAGE).readonly)
        with self.assertRaises(ValueError):
            arena.buffer(31 * PAGE, 2 * PAGE)
        self.assertEqual(len(arena.buffer()), 32 * PAGE)
        file.set_length(10 * PAGE + 1)
        self.assertEqual(len(arena.buffer()), 10 * PAGE + 1)

    def test_only_what_can_be_touched(self) -> None:
        file, arena = self.mapped()
        for offset, length in ((0, file.length + 1), (file.length, 1), (-1, 1), (0, 0), (0, -1)):
            with self.assertRaises(ValueError):
                arena.buffer(offset, length)
        # Another file: the first is open with the length it had.
        other_path = Path(self.folder.name, "longer")
        other_path.write_bytes(self.path.read_bytes() + b"tail")
        with self.rt.open(other_path) as longer, self.rt.arena(longer.length + PAGE) as other:
            other.map(longer, length=longer.length + PAGE)
            self.assertEqual(bytes(other.buffer(file.length)), b"tail")
            with self.assertRaises(ValueError):
                other.buffer(0, longer.length + PAGE)


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(n, 16) for n in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False


@unittest.skipUnless(np is not None, "numpy is not installed")
class Numpy(WithFile):
    def test_statistics_and_sort_over_four_times_the_cache(self) -> None:
        import out_of_core

        self.assertEqual(out_of_core.main(8 * MIB, 2 * MIB), 0)

    def test_arrays(self) -> None:
        file, arena = self.mapped(writable=True)
        table = arena.array("<u8").reshape(self.PAGES, -1)
        self.assertTrue((table == np.arange(self.PAGES, dtype="u8")[:, None]).all())
        row = arena.array("u4", offset=4 * PAGE + 8, shape=(2, 3))
        self.assertEqual((row.shape, row[0, 0], row.flags.writeable), ((2, 3), 4, True))
        row[:] = 5
        self.assertEqual(table[4, 1], 5 + (5 << 32))
        with self.assertRaises(BufferError):
            arena.close()
        with self.assertRaises(ValueError):
            arena.array(object)
        del table
        self.assertTrue(arena.exported)
        del row
        arena.close()

    def test_read_only_arrays_refuse_stores(self) -> None:
        _, arena = self.mapped()
        array = arena.array()
        with self.assertRaises(ValueError):
            array[0] = 1

    def test_an_array_that_outlives_everything(self) -> None:
        with softfault.Runtime(cache_limit=self.CACHE) as rt:
            with rt.open(self.path) as file, rt.arena(file.length) as arena:
                arena.map(file)
                column = arena.array("<u8")[::512]
        del arena, file, rt
        gc.collect()
        self.assertEqual(int(column.sum()), sum(range(self.PAGES)))

    def test_threads_of_blas(self) -> None:
        """Its threads are not Python's; they take faults, too."""
        rng = np.random.default_rng(1)
        matrix = rng.normal(size=(2048, 256))
        self.path.write_bytes(matrix.tobytes())
        _, arena = self.mapped()
        seen = arena.array("f8").reshape(2048, 256)
        self.assertTrue(np.allclose(seen.T @ seen, matrix.T @ matrix))
        self.assertEqual(self.rt.audit_threads(), [])


PRELUDE = """
import ctypes, faulthandler, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import softfault
rt = softfault.Runtime(cache_limit=1 << 20)
file = rt.open(sys.argv[1])
arena = rt.arena(file.length)
arena.map(file)
def touch():
    assert sum(arena.buffer().cast("Q")[::512]) == sum(range(file.length // 4096))
    print("touched", flush=True)
def crash():
    ctypes.string_at(8)
"""


def python(
    script: str, *args: str, options: tuple[str, ...] = (), **how: Any
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(HERE))
    environment.pop("PYTHONFAULTHANDLER", None)
    command = [sys.executable, *options, "-c", script, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **how)


class Faulthandler(WithFile):
    """Touches are ours, crashes are faulthandler's, in whatever order it is enabled."""

    def run_script(self, script: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        return python(PRELUDE + script, str(self.path), **kw)

    def assert_touched(self, out: subprocess.CompletedProcess[str], code: int = 0) -> None:
        self.assertEqual((out.returncode, out.stdout.split()[:1]), (code, ["touched"]), out.stderr)

    def assert_reported(self, out: subprocess.CompletedProcess[str], number: int, words: str) -> None:
        self.assert_touched(out, -number)
        self.assertEqual(out.stderr.count("Fatal Python error"), 1, out.stderr)
        self.assertIn("Fatal Python error: " + words, out.stderr)
        self.assertIn("most recent call first", out.stderr)

    def test_enabled_before(self) -> None:
        out = self.run_script("touch(); crash()", options=("-X", "faulthandler"))
        self.assert_reported(out, signal.SIGSEGV, "Segmentation fault")

    def test_enabled_after(self) -> None:
        out = self.run_script("faulthandler.enable(); rt.reinstall_handlers(); touch(); crash()")
        self.assert_reported(out, signal.SIGSEGV, "Segmentation fault")

    def test_enabled_after_and_not_told(self) -> None:
        """What reinstall_handlers() is for: this is how it looks without."""
        out = self.run_script("faulthandler.enable(); touch()")
        self.assertIn(out.returncode, (-signal.SIGSEGV, -signal.SIGBUS))
        self.assertIn("Fatal Python error", out.stderr)

    def test_disabled_again(self) -> None:
        """It puts back who was there before it: that is not us, if it was enabled first."""
        out = self.run_script(
            "faulthandler.disable(); rt.reinstall_handlers(); touch(); crash()", options=("-X", "faulthandler")
        )
        self.assert_touched(out, -signal.SIGSEGV)
        self.assertNotIn("Fatal Python error", out.stderr)

    def test_enabled_twice(self) -> None:
        script = "faulthandler.enable(); rt.reinstall_handlers(); faulthandler.disable(); faulthandler.enable()\n"
        out = self.run_script(script + "rt.reinstall_handlers(); touch(); crash()", options=("-X", "faulthandler"))
        self.assert_reported(out, signal.SIGSEGV, "Segmentation fault")

    def test_a_page_that_cannot_be_had_is_no_silent_end(self) -> None:
        out = self.run_script(
            "touch(); os.truncate(sys.argv[1], 0); file.evict(); arena.buffer()[0]", options=("-X", "faulthandler")
        )
        self.assert_reported(out, signal.SIGBUS, "Bus error")

    def test_handlers_of_python_stay(self) -> None:
        # A shell's background jobs ignore the signal, and Python leaves that as it finds it.
        out = self.run_script(
            "import signal; signal.raise_signal(signal.SIGINT)\ntouch()",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.assertIn("KeyboardInterrupt", out.stderr)


def child_without_arenas(queue: Any) -> None:
    queue.put(sum(range(1000)))


def child_that_makes_a_runtime(queue: Any) -> None:
    try:
        softfault.Runtime()
    except softfault.SoftfaultError as e:
        queue.put(e.errno)


def child_that_touches(view: Any) -> None:
    faulthandler.disable()
    os.close(2)
    view[-1]


class Fork(WithFile):
    """multiprocessing's children by fork(2) have no arenas; by spawn they make their own."""

    def in_child(self, target: Any, *args: Any) -> Any:
        process = multiprocessing.get_context("fork").Process(target=target, args=args)
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
            self.fail("the child hangs")
        return process.exitcode

    def test_a_child_that_leaves_arenas_alone(self) -> None:
        _, arena = self.mapped()
        view = arena.buffer()
        queue = multiprocessing.get_context("fork").SimpleQueue()
        self.assertEqual(view[PAGE], 1)
        self.assertEqual(self.in_child(child_without_arenas, queue), 0)
        self.assertEqual(queue.get(), sum(range(1000)))
        self.assertEqual(view[9 * PAGE], 9)

    def test_a_child_is_refused_a_runtime(self) -> None:
        queue = multiprocessing.get_context("fork").SimpleQueue()
        self.assertEqual(self.in_child(child_that_makes_a_runtime, queue), 0)
        self.assertEqual(queue.get(), errno.EACCES)

    def test_a_touch_in_a_child_is_a_signal(self) -> None:
        for resident in (False, True):
            _, arena = self.mapped()
            view = arena.buffer()
            if resident:
                view[-1]
            self.assertIn(self.in_child(child_that_touches, view), (-signal.SIGSEGV, -signal.SIGBUS))
            self.assertEqual(view[-8], (self.PAGES - 1) & 0xFF)  # the parent's is as it was


class Images(unittest.TestCase):
    """An image of two regions, made here; each page holds its number."""

    PAGES = 1024

    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="softfault-")
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name, "heap.sfi")
        self.rt = softfault.Runtime()
        self.addCleanup(self.rt.close)
        half = self.PAGES * PAGE // 2
        with softfault.ImageWriter(self.path, 2 * half, codec=softfault.Codec.LZ4) as writer:
            writer.region(softfault.Region("code", 0x300000000000, 0, half, 1))
            writer.region(softfault.Region("heap", 0x300040000000, half, half, 3))
            writer.key("application", b"1.4.2")
            for page in range(self.PAGES):
                writer.write(page * PAGE, pattern(page))
            self.digest = writer.finish()

    def test_an_image_says_what_it_is(self) -> None:
        with softfault.Image(self.path) as image:
            self.assertEqual((image.length, image.file_digest), (self.PAGES * PAGE, self.digest))
            self.assertEqual([r.name for r in image.regions], ["code", "heap"])
            self.assertEqual((image.keys, image.key("application")), (["application"], b"1.4.2"))
            self.assertEqual(image.read(7 * PAGE + 8, PAGE), (pattern(7) + pattern(8))[8 : PAGE + 8])
            self.assertTrue(image.verifiable)
            image.verify()
            with self.assertRaises(softfault.SoftfaultError) as raised:
                image.restore()
            self.assertIn("without a runtime", str(raised.exception))
            flat = Path(self.folder.name, "flat.sfi")
            image.convert(flat)
            with softfault.Image(flat) as other:
                self.assertEqual((other.content_digest, image.diff(other)), (image.content_digest, []))

    def test_a_session_is_lazy_private_and_a_buffer(self) -> None:
        with self.rt.open_image(self.path) as image:
            with image.restore() as one, image.restore() as two:
                self.assertEqual(one.progress.cached, 0)
                heap, other = one.buffer("heap"), two.buffer("heap")
                self.assertEqual(bytes(heap[:8]), pattern(self.PAGES // 2)[:8])
                self.assertTrue(0 < one.progress.cached < self.PAGES)
                heap[:4] = b"mine"
                self.assertEqual(bytes(other), b"".join(pattern(p) for p in range(self.PAGES // 2, self.PAGES)))
                self.assertEqual(one.read("heap", 0, 8), b"mine" + pattern(self.PAGES // 2)[4:8])
                code = one.buffer("code")
                self.assertTrue(code.readonly)
                with self.assertRaises(BufferError):
                    one.close()
                with self.assertRaises(ValueError):
                    one.buffer("heap", 5, self.PAGES * PAGE)
                with self.assertRaises(softfault.SoftfaultError):
                    one.buffer("stack")
        # Buffers keep what they look at.
        self.assertEqual(bytes(heap[:4]), b"mine")
        self.assertEqual(bytes(code[PAGE : 2 * PAGE]), pattern(1))

    def test_overlays_and_addresses(self) -> None:
        with self.rt.open_image(self.path) as image:
            restore = softfault.Restore(image, at_original_addresses=True)
            restore.overlay("entropy", (self.PAGES // 2 + 3) * PAGE, b"e" * PAGE)
            with restore.build() as session:
                self.assertEqual(session.address("heap"), 0x300040000000)
                self.assertEqual(session.read("heap", 3 * PAGE, PAGE), b"e" * PAGE)
                with self.assertRaises(softfault.SoftfaultError) as raised:
                    restore.build()
                self.assertEqual(raised.exception.kind, softfault.ErrorKind.OCCUPIED)

    def test_a_working_set_is_recorded_and_replayed(self) -> None:
        with self.rt.open_image(self.path) as image:
            with image.restore(record=0.001) as session:
                heap = session.buffer("heap")
                self.assertEqual(heap[5 * PAGE], pattern(self.PAGES // 2 + 5)[0])
                touched = session.mark()
            assert touched is not None
            self.assertEqual(touched.pages, 1)
            at = (self.PAGES // 2 + 5) * PAGE
            self.assertEqual([r for _, ranges in touched.windows() for r in ranges], [range(at, at + PAGE)])
            touched.save_beside(image)
            found = softfault.WorkingSet.find(image)
            assert found is not None
            self.assertEqual(softfault.WorkingSet.merge([touched, found], 2).pages, 1)
            with image.restore(replay=found) as session:
                while not session.progress.replay_ended:
                    pass
                self.assertGreaterEqual(session.progress.replayed, 1)
                self.assertIsNone(session.mark())

    def test_damage_is_named(self) -> None:
        data = bytearray(self.path.read_bytes())
        data[len(data) // 2] ^= 1
        self.path.write_bytes(data)
        with softfault.Image(self.path) as image, self.assertRaises(softfault.SoftfaultError) as raised:
            image.verify()
        error = raised.exception
        self.assertEqual((error.kind, error.errno), (softfault.ErrorKind.IMAGE, errno.EBADMSG))
        assert error.image is not None and error.image.offset is not None
        self.assertEqual((error.image.cause, error.image.file), (softfault.ImageCause.DIGEST, str(self.path)))
        self.assertLessEqual(error.image.offset, len(data) // 2)
        with self.assertRaises(softfault.SoftfaultError) as raised:
            softfault.Image(Path(self.folder.name, "none.sfi"))
        self.assertEqual(raised.exception.errno, errno.ENOENT)


@unittest.skipUnless(HEADER.exists(), "not in the repository: no softfault.h to compare with")
class Header(unittest.TestCase):
    """What the package says of the ABI is what the header says."""

    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S) if HEADER.exists() else ""

    def constant(self, name: str) -> int:
        found = re.search(rf"#define SOFTFAULT_{name} (\S+)", self.text)
        assert found is not None, name
        return 0xFFFFFFFF if found[1] == "UINT32_MAX" else int(found[1], 0)

    def test_constants(self) -> None:
        for prefix, members in (
            ("DELIVERY", softfault.Delivery),
            ("FAILURE", softfault.FailurePolicy),
            ("ACCESS", softfault.Access),
            ("ADVICE", softfault.Advice),
            ("ERROR", softfault.ErrorKind),
            ("IMAGE_CAUSE", softfault.ImageCause),
            ("INTEGRITY", softfault.Integrity),
            ("IMAGE_FORMAT", softfault.ImageFormat),
            ("CODEC", softfault.Codec),
            ("VM_FAULT", softfault.FaultReason),
        ):
            for name, member in members.__members__.items():
                self.assertEqual(self.constant(f"{prefix}_{name}"), member.value, name)
        for name, value in (
            ("OBJECT_WRITABLE", softfault._WRITABLE),
            ("OBJECT_DIRECT", softfault._DIRECT),
            ("OBJECT_EXCLUSIVE", softfault._EXCLUSIVE),
            ("OBJECT_HUGE_PAGES", softfault._HUGE_PAGES),
            ("ARENA_KERNEL_ACCESS", softfault._KERNEL_ACCESS),
            ("ARENA_NO_FAULT_AROUND", softfault._NO_FAULT_AROUND),
            ("ARENA_NO_NATIVE_EXTENTS", softfault._NO_NATIVE_EXTENTS),
            ("RUNTIME_REPORT_SIGNALS", softfault._REPORT_SIGNALS),
            ("PROT_READ", softfault._PROT_READ),
            ("PROT_WRITE", softfault._PROT_WRITE),
            ("MAP_SHARED", softfault._MAP_SHARED),
            ("MAP_PRIVATE", softfault._MAP_PRIVATE),
            ("OFF", _lib.OFF),
        ):
            self.assertEqual(self.constant(name), value, name)

    def test_structures(self) -> None:
        """Fields at the end may be missing: a shorter structure is an earlier version's."""
        types = {"size_t": 8, "uint64_t": 8, "uint32_t": 4, "int": 4, "int32_t": 4, "struct softfault_digest": 32}
        for name, structure in (
            ("runtime_options", _lib.RuntimeOptions),
            ("object_options", _lib.ObjectOptions),
            ("arena_options", _lib.ArenaOptions),
            ("range", _lib.Range),
            ("fault", _lib.LastFault),
            ("image_failure", _lib.ImageFailure),
            ("region", _lib.RegionOfImage),
            ("image_options", _lib.ImageOptions),
            ("image_properties", _lib.ImageProperties),
            ("image_writer_options", _lib.ImageWriterOptions),
            ("overlay", _lib.OverlayPages),
            ("restore_options", _lib.RestoreOptions),
            ("progress", _lib.Progress),
            ("working_set_properties", _lib.WorkingSetProperties),
        ):
            body = re.search(rf"typedef struct softfault_{name} {{(.*?)}}", self.text, flags=re.S)
            assert body is not None, name
            fields = re.findall(r"^\s*(.*?[ *])(\w+);", body[1], flags=re.M)
            declared = [(field, 8 if "*" in ctype else types[ctype.strip()]) for ctype, field in fields]
            ours = [(field[0], ctypes.sizeof(field[1])) for field in structure._fields_]
            self.assertEqual(declared[: len(ours)], ours, name)

    def test_functions(self) -> None:
        for name, takes in _lib.FUNCTIONS.items():
            found = re.search(rf"\bsoftfault_{name}\((.*?)\);", self.text, flags=re.S)
            assert found is not None, name
            # A function that is given is one parameter.
            text = re.sub(r"\(\*\w+\)\(.*?\)", "*", found[1], flags=re.S)
            declared = [] if text.strip() == "void" else text.split(",")
            self.assertEqual(len(declared), len(takes), name)
            for text, ctype in zip(declared, takes):
                wide = "*" in text or "size_t" in text or "uint64_t" in text
                self.assertEqual(ctypes.sizeof(ctype), 8 if wide else 4, f"{name}: {text.strip()}")


if __name__ == "__main__":
    unittest.main()
