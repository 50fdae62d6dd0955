"""Page faults resolved in this process: files and memory larger than the cache they are seen through.

    with softfault.Runtime(cache_limit=64 << 20) as rt:
        with rt.open("table.f64") as file, rt.arena(file.length) as arena:
            arena.map(file)
            table = arena.array("f8").reshape(-1, 16)     # numpy; arena.buffer() is a memoryview
            print(table.mean(axis=0))

What is touched is faulted in by this process, what the cache has no room for leaves it; numpy sees ordinary memory.

Buffers keep what they look at: a memoryview or an array that outlives its `with` block stays good, and its arena ends
when the last of them does. close(), unmap() and what else would take memory away from one raise BufferError.

A page that cannot be had (an I/O error, a file that was cut) is SIGBUS for who touches it, which ends the process, as with
mmap; faulthandler prints where, and Runtime(report_signals=True) why. fault_in(), read() and write() raise SoftfaultError
instead: `errno` is what the store said, and `fault` where.

Snapshots are memory again, page by page as they are touched:

    with softfault.Runtime() as rt, rt.open_image("heap.sfi") as image, image.restore() as session:
        heap = session.buffer("heap")                     # private to the session, and verified

Nothing here is written in Python that runs inside a fault: stores and delegates in Python would wait for the interpreter's
lock, which the thread that faults holds. They are made in C (../c) or are files.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import mmap
import multiprocessing.process
import multiprocessing.util
import os
import threading
import weakref
from ctypes import byref, c_bool, c_size_t, c_uint32, c_uint64, c_void_p
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, Optional, Tuple, Type, TypeVar, Union

from ._errors import Cause, ErrorKind, Fault, FaultReason, ImageCause, ImageFailure, SoftfaultError, call
from ._lib import OFF, ArenaOptions, LastFailure, ObjectOptions, Range, RuntimeOptions, function

if TYPE_CHECKING:
    import numpy

__all__ = [
    "Access",
    "Advice",
    "Arena",
    "Cause",
    "Codec",
    "Delivery",
    "ErrorKind",
    "FailedOp",
    "Failure",
    "FailurePolicy",
    "Fault",
    "FaultReason",
    "Held",
    "Image",
    "ImageCause",
    "ImageFailure",
    "ImageFormat",
    "ImageWriter",
    "Integrity",
    "Object",
    "Pin",
    "Region",
    "Restore",
    "Runtime",
    "Session",
    "SessionProgress",
    "SoftfaultError",
    "WorkingSet",
    "version",
]

PAGE = 4096
_Self = TypeVar("_Self", bound="_Closing")


class Delivery(enum.IntEnum):
    """How faults arrive."""

    AUTO = 0
    IN_THREAD = 1
    SEGV = 2
    MONITOR = 3


class FailurePolicy(enum.IntEnum):
    """What happens when a page cannot be read."""

    POISON = 0
    ZERO = 1
    ABORT = 2


class FailedOp(enum.IntEnum):
    READ = 1
    WRITE = 2
    FLUSH = 3
    #: A load or a store that became SIGBUS or SIGSEGV.
    TOUCH = 4


class Failure(NamedTuple):
    """One of a runtime's last failures."""

    #: Counts them: a gap means that some were not kept.
    number: int
    op: FailedOp
    cause: Cause
    #: The store's; 0 if it gave none.
    store_errno: int
    #: The object's label, or the end of a longer one.
    object: str
    object_offset: int
    #: What was touched; 0: nothing was.
    address: int
    age_seconds: float


class Access(enum.IntEnum):
    READ = 0
    WRITE = 1


class Advice(enum.IntEnum):
    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23


_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_WRITABLE, _DIRECT, _EXCLUSIVE, _HUGE_PAGES, _GROWABLE = 0x1, 0x2, 0x20, 0x80, 0x100
_LOCK_CACHE, _REPORT_SIGNALS = 0x1, 0x2
_KERNEL_ACCESS, _NO_FAULT_AROUND, _NO_NATIVE_EXTENTS = 0x1, 0x2, 0x4


def version() -> str:
    """Returns the version of the library."""
    text: bytes = function("version")()
    return text.decode()


class _Handle:
    """A handle of softfault.h. Freed when nobody refers to it any more, or before."""

    def __init__(self, raw: c_void_p, kind: str) -> None:
        self.raw: Optional[int] = raw.value
        self.kind = kind
        self._free = function(kind + "_free")

    def free(self) -> None:
        raw, self.raw = self.raw, None
        if raw is not None:
            result = self._free(raw)
            if result != 0:
                raise SoftfaultError.of_last_call(result)

    def __del__(self) -> None:
        raw, self.raw = getattr(self, "raw", None), None
        if raw is not None:
            self._free(raw)


class _Closing:
    """What has a handle, and is a context manager."""

    _handle: Optional[_Handle]

    @property
    def closed(self) -> bool:
        return self._handle is None

    @property
    def _raw(self) -> int:
        handle = self._handle
        if handle is None or handle.raw is None:
            raise ValueError(f"the {type(self).__name__.lower()} is closed")
        return handle.raw

    def close(self) -> None:
        """Frees the handle. What other handles need of it stays."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.free()

    def __enter__(self: _Self) -> _Self:
        self._raw
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _made(kind: str, name: str, *args: object) -> _Handle:
    out = c_void_p()
    call(name, *args, byref(out))
    return _Handle(out, kind)


def _number(ctype: Any, name: str, raw: int) -> int:
    out = ctype()
    call(name, raw, byref(out))
    return int(out.value or 0)


def _text(write: Callable[[Any, int, Any], None]) -> str:
    """Asks for the length, then for the text; what has grown in between is asked for again."""
    full = c_size_t()
    write(None, 0, byref(full))
    while True:
        text = ctypes.create_string_buffer(full.value + 1)
        write(text, len(text), byref(full))
        if full.value < len(text):
            return text.value.decode()


def _bytes_of(data: Any) -> Tuple[Any, int]:
    """Returns what ctypes takes for the bytes of an object that has a buffer, without copying it if it is writable."""
    view = memoryview(data).cast("B")
    if view.readonly:
        return view.tobytes(), len(view)
    return (ctypes.c_ubyte * len(view)).from_buffer(view), len(view)


class Runtime(_Closing):
    """A cache, its counters, its threads.

    Installs handlers for SIGBUS and SIGSEGV; what is not about an arena goes on to who was there before. Who installs
    handlers later (faulthandler.enable(), faulthandler.disable()) takes ours away: call reinstall_handlers() then.
    """

    def __init__(
        self,
        *,
        cache_limit: int = 0,
        swap: Optional[Tuple[Union[str, "os.PathLike[str]"], int]] = None,
        zswap: int = 0,
        fillers: int = 0,
        fill_window: int = 0,
        readahead: Optional[int] = None,
        dirty_background_percent: Optional[int] = None,
        dirty_percent: int = 0,
        writeback_interval: float = 0.0,
        writeback_expire: float = 0.0,
        exit_wait: Optional[float] = None,
        lock_cache: bool = False,
        report_signals: bool = False,
    ) -> None:
        """Bytes, pages for the windows, seconds; what is left out has its default.

        swap is a file or folder, and a size: anonymous memory goes there when the cache is full.

        When the process exits, what was stored and not synced is written, for which it waits exit_wait seconds (30) at
        most; 0: nothing is. Workers of multiprocessing are such processes, whatever started them; os._exit() and signals
        that kill write nothing.

        lock_cache: what is cached is locked in memory (mlock); RLIMIT_MEMLOCK must permit it.

        report_signals: a touch that becomes SIGBUS or SIGSEGV writes a line to standard error that says why.
        """
        o = RuntimeOptions(size=ctypes.sizeof(RuntimeOptions), cache_limit_bytes=cache_limit, zswap_bytes=zswap)
        if swap is not None:
            o.swap_path, o.swap_bytes = os.fsencode(swap[0]), swap[1]
        o.fillers, o.fill_window_pages, o.dirty_percent = fillers, fill_window, dirty_percent
        o.readahead_pages = _or_off(readahead)
        o.dirty_background_percent = _or_off(dirty_background_percent)
        o.writeback_interval_ns, o.writeback_expire_ns = int(writeback_interval * 1e9), int(writeback_expire * 1e9)
        o.exit_wait_ms = 0 if exit_wait is None else (OFF if exit_wait <= 0 else max(1, int(exit_wait * 1e3)))
        o.flags = (_LOCK_CACHE if lock_cache else 0) | (_REPORT_SIGNALS if report_signals else 0)
        self._handle = None
        self._handle = _made("runtime", "runtime_new", byref(o))
        if exit_wait is None or exit_wait > 0:
            _write_back_in_worker(self, 30.0 if exit_wait is None else exit_wait)

    def open(self, path: Union[str, "os.PathLike[str]"], *, writable: bool = False, **options: Any) -> Object:
        """Opens a file as an object; options as of object options below."""
        o = _object_options(writable=writable, **options)
        try:
            return Object(_made("object", "object_open", self._raw, os.fsencode(path), byref(o)), writable)
        except SoftfaultError as e:
            e.filename = os.fspath(path)
            raise

    def map_file(
        self, path: Union[str, "os.PathLike[str]"], *, writable: bool = False, **options: Any
    ) -> Tuple[Arena, Object]:
        """Opens a file and maps it whole, as mmap(2) does: returns the arena and the object; options as open()'s.

        An empty file leaves the arena without a mapping.
        """
        o = _object_options(writable=writable, **options)
        arena, file = c_void_p(), c_void_p()
        try:
            call("arena_map_file", self._raw, os.fsencode(path), byref(o), byref(arena), byref(file))
        except SoftfaultError as e:
            e.filename = os.fspath(path)
            raise
        made, what = Arena(_Handle(arena, "arena")), Object(_Handle(file, "object"), writable)
        length = what.length
        if length > 0:
            with made._lock:
                made._note(what, (0, 0, length), writable)
        return made, what

    def open_image(self, path: Union[str, "os.PathLike[str]"], **options: Any) -> Image:
        """Opens an image of memory, of which sessions are restored: Image(path, runtime=self, ..)."""
        return Image(path, runtime=self, **options)

    def open_fd(self, fd: int, *, writable: bool = False, **options: Any) -> Object:
        """As open(), of a descriptor, which stays the caller's."""
        o = _object_options(writable=writable, **options)
        return Object(_made("object", "object_from_fd", self._raw, fd, byref(o)), writable)

    def anonymous(self, length: int, **options: Any) -> Object:
        """Makes memory, which begins as zeros. It leaves the cache only where there is swap."""
        o = _object_options(**options)
        return Object(_made("object", "object_anonymous", self._raw, length, byref(o)), True)

    def from_store(self, length: int, operations: int, ctx: int = 0, *, writable: bool = False, **options: Any) -> Object:
        """Makes an object over a store that is written in C: the addresses of its softfault_store_operations, and of ctx.

        Functions made by ctypes from Python must not be among them: they would wait for the interpreter's lock.
        """
        o = _object_options(writable=writable, **options)
        return Object(_made("object", "object_from_store", self._raw, length, operations, ctx, byref(o)), writable)

    def arena(
        self,
        length: int,
        *,
        delivery: Delivery = Delivery.AUTO,
        kernel_access: bool = False,
        fault_around: bool = True,
        native_extents: bool = True,
        granule: int = 0,
        address: Optional[int] = None,
    ) -> Arena:
        """Reserves address space, rounded up to 2 MiB; at an address, if one is given: a multiple of 2 MiB."""
        o = _arena_options(delivery, kernel_access, fault_around, native_extents, granule, address)
        return Arena(_made("arena", "arena_new", self._raw, length, byref(o)))

    def write_back(self, timeout: float = 30.0) -> bool:
        """Writes everything that was stored to the files, as exit does, without making it durable; False: not in time."""
        done = c_bool()
        call("runtime_write_back", self._raw, int(timeout * 1e9), byref(done))
        return done.value

    def set_cache_limit(self, limit: int) -> None:
        call("runtime_set_cache_limit", self._raw, limit)

    @property
    def delivery(self) -> Delivery:
        return Delivery(_number(c_uint32, "runtime_delivery", self._raw))

    def delivery_report(self) -> str:
        """Says what can be had here, what was chosen, and why."""
        return _text(lambda buf, length, full: call("runtime_delivery_report", self._raw, buf, length, full))

    def audit_threads(self) -> list[str]:
        """Returns a line for each thread that could not take a fault."""
        nr = c_size_t()
        text = _text(lambda buf, length, full: call("runtime_audit_threads", self._raw, byref(nr), buf, length, full))
        return text.splitlines() if nr.value else []

    def warnings(self) -> list[str]:
        """Returns a line for each thread that made or mapped something while it blocked our signals."""
        nr = c_size_t()
        text = _text(lambda buf, length, full: call("runtime_warnings", self._raw, byref(nr), buf, length, full))
        return text.splitlines() if nr.value else []

    def reinstall_handlers(self) -> None:
        """Puts our handlers in front again, after faulthandler.enable() or .disable() and the like."""
        call("reinstall_handlers", self._raw)

    def recent_failures(self) -> list[Failure]:
        """Returns the last failures, oldest first: of stores, whoever was told, and touches that became signals."""
        all_of_them = c_size_t()
        last = (LastFailure * 64)()
        call("runtime_recent_failures", self._raw, last, len(last), byref(all_of_them))
        return [
            Failure(
                f.number, FailedOp(f.op), Cause(f.cause), f.store_errno, f.object.decode("utf-8", "replace"),
                f.object_offset, f.address, f.age_ns / 1e9,
            )
            for f in last[: all_of_them.value]
        ]  # fmt: skip

    def counter(self, name: str) -> int:
        """Returns a counter: "pgfault", "pgmajfault", "nr_cached_pages"."""
        stats = _made("stats", "stats_read", self._raw)
        value = c_uint64()
        call("stats_get", stats.raw, name.encode(), byref(value))
        return value.value

    def stats(self) -> dict[str, Any]:
        """Returns all counters, reasons and latencies."""
        stats = _made("stats", "stats_read", self._raw)
        text = _text(lambda buf, length, full: call("stats_json", stats.raw, buf, length, full))
        result: dict[str, Any] = json.loads(text)
        return result


def _write_back_in_worker(runtime: Runtime, timeout: float) -> None:
    """A worker that multiprocessing forked ends by os._exit(), after what is registered with it."""
    if multiprocessing.process.parent_process() is None:
        return
    weak = weakref.ref(runtime)

    def write_back() -> None:
        alive = weak()
        if alive is not None and not alive.closed:
            alive.write_back(timeout)

    multiprocessing.util.Finalize(None, write_back, exitpriority=0)


def _or_off(value: Optional[int]) -> int:
    return 0 if value is None else (OFF if value == 0 else value)


def _object_options(
    *,
    writable: bool = False,
    direct: bool = False,
    exclusive: bool = False,
    huge_pages: bool = False,
    growable: bool = False,
    on_failure: FailurePolicy = FailurePolicy.POISON,
    max_length: int = 0,
    cache_limit: int = 0,
    deadline: float = 0.0,
    retries: int = 0,
    retry_backoff: float = 0.0,
    fill_window: int = 0,
    readahead: Optional[int] = None,
    label: Optional[str] = None,
) -> ObjectOptions:
    o = ObjectOptions(size=ctypes.sizeof(ObjectOptions), failure_policy=on_failure, max_len_bytes=max_length)
    o.flags = (
        (_WRITABLE if writable else 0)
        | (_DIRECT if direct else 0)
        | (_EXCLUSIVE if exclusive else 0)
        | (_HUGE_PAGES if huge_pages else 0)
        | (_GROWABLE if growable else 0)
    )
    o.cache_limit_bytes, o.deadline_ns = cache_limit, int(deadline * 1e9)
    o.retries, o.retry_backoff_ns = retries, int(retry_backoff * 1e9)
    o.fill_window_pages, o.readahead_pages = fill_window, _or_off(readahead)
    o.label = None if label is None else label.encode()
    return o


def _arena_options(
    delivery: Delivery,
    kernel_access: bool,
    fault_around: bool,
    native_extents: bool,
    granule: int,
    address: Optional[int],
) -> ArenaOptions:
    o = ArenaOptions(size=ctypes.sizeof(ArenaOptions), delivery=delivery, granule_bytes=granule, address=address)
    o.flags = (
        (_KERNEL_ACCESS if kernel_access else 0)
        | (0 if fault_around else _NO_FAULT_AROUND)
        | (0 if native_extents else _NO_NATIVE_EXTENTS)
    )
    return o


class Held(_Closing):
    """Dirty pages that are not written back before it is closed."""

    def __init__(self, handle: _Handle) -> None:
        self._handle = handle


class Pin(_Closing):
    """Pages of an arena that stay resident until it is closed: system calls may be given them."""

    def __init__(self, handle: _Handle) -> None:
        self._handle = handle

    @property
    def locked(self) -> bool:
        """Returns whether the pages are locked in memory; if not, what the kernel swaps is read back at a touch."""
        return bool(_number(c_bool, "pin_is_locked", self._raw))


class Object(_Closing):
    """Bytes that can be mapped: a file, or memory. Lives as long as it is mapped, whoever closes it.

    What is dirty at its end is written back, but nobody hears of errors: sync() before raises them.
    """

    def __init__(self, handle: _Handle, writable: bool) -> None:
        self._handle = handle
        self.writable = writable
        self._last_length = self.length
        self._mapped_in: "weakref.WeakSet[Arena]" = weakref.WeakSet()

    @property
    def length(self) -> int:
        """Returns the end of the object, in bytes; of a closed one, where it was then."""
        if not self.closed:
            self._last_length = _number(c_uint64, "object_len", self._raw)
        return self._last_length

    def close(self) -> None:
        if not self.closed:
            self.length
        super().close()

    def set_length(self, length: int) -> None:
        """Moves the end, up to the max_length it was made with. BufferError if a buffer looks at what would go."""
        with self._cut_to(length if length < self.length else None):
            call("object_set_len", self._raw, length)

    def follow_length(self) -> int:
        """Takes the file's end, which others may have moved, for the object's; returns it. BufferError if a buffer looks at it.

        Where the file ends is not known before, so any buffer forbids it.
        """
        end = c_uint64()
        with self._cut_to(0):
            call("object_follow_len", self._raw, byref(end))
        return end.value

    @contextlib.contextmanager
    def _cut_to(self, length: Optional[int]) -> Iterator[None]:
        """Keeps buffers from looking at what lies past a lower end; None: there is none."""
        with contextlib.ExitStack() as locks:
            for arena in list(self._mapped_in) if length is not None else []:
                locks.enter_context(arena._lock)
                arena._refuse_past(self, _page_up(length or 0))
            yield

    def read(self, offset: int, length: int) -> bytes:
        """Returns a copy of bytes, fewer at the end of the object, without a fault."""
        done, into = c_size_t(), ctypes.create_string_buffer(max(length, 1))
        call("object_read_at", self._raw, offset, into, length, byref(done))
        return into.raw[: done.value]

    def write(self, offset: int, data: Any) -> int:
        """Writes bytes, and returns how many there was room for before the end."""
        done, (source, length) = c_size_t(), _bytes_of(data)
        call("object_write_at", self._raw, offset, source, length, byref(done))
        return done.value

    def populate(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Reads the range into the cache."""
        call("object_populate", self._raw, offset, self._rest(offset, length))

    def advise(self, advice: Advice, offset: int = 0, length: Optional[int] = None) -> None:
        call("object_advise", self._raw, offset, self._rest(offset, length), advice)

    def evict(self, offset: int = 0, length: Optional[int] = None) -> int:
        """Drops clean pages from the cache, and returns how many."""
        evicted = c_uint64()
        call("object_evict", self._raw, offset, self._rest(offset, length), byref(evicted))
        return evicted.value

    def punch_hole(self, offset: int, length: int) -> None:
        call("object_punch_hole", self._raw, offset, length)

    @property
    def cached_pages(self) -> int:
        return _number(c_uint64, "object_cached_pages", self._raw)

    def write_back(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Gives the file what was written before the call, and does not make it durable."""
        call("object_write_back", self._raw, offset, self._rest(offset, length))

    def sync(self, offset: Optional[int] = None, length: Optional[int] = None) -> None:
        """Makes durable what was written before the call: of the range, or all."""
        if offset is None:
            call("object_sync_all", self._raw)
        else:
            call("object_sync", self._raw, offset, self._rest(offset, length))

    def barrier(self) -> None:
        """Makes what was written before the call durable before anything that is written after it."""
        call("object_barrier", self._raw)

    def hold_dirty(self, offset: int, length: int) -> Held:
        return Held(_made("held", "object_hold_dirty", self._raw, offset, length))

    def lost(self) -> list[range]:
        """Returns the ranges whose writes a failed flush took away."""
        total = c_size_t()
        call("object_lost", self._raw, None, 0, byref(total))
        ranges = (Range * total.value)()
        call("object_lost", self._raw, ranges, len(ranges), byref(total))
        return [range(r.start, r.end) for r in ranges[: total.value]]

    def forget_lost(self, offset: int, length: int) -> None:
        call("object_forget_lost", self._raw, offset, length)

    def _rest(self, offset: int, length: Optional[int]) -> int:
        return max(self.length - offset, 0) if length is None else length


class _Mapping(NamedTuple):
    start: int
    end: int
    readable: bool
    writable: bool
    object: Object
    #: Where the object's byte 0 would be in the arena.
    origin: int

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


class _Export(NamedTuple):
    exporter: "weakref.ref[Any]"
    start: int
    end: int
    writable: bool


def _page_up(n: int) -> int:
    return -(-n // PAGE) * PAGE


class Arena(_Closing):
    """A range of address space, over which objects are mapped.

    System calls on its memory (file.write(buffer), socket.recv_into(buffer)) fail with EFAULT where a page is not
    resident, unless the arena was made with kernel_access: pin() such ranges, or read() and write().
    """

    def __init__(self, handle: _Handle) -> None:
        self._handle = handle
        self._lock = threading.RLock()
        self._mappings: list[_Mapping] = []
        self._exports: list[_Export] = []

    @property
    def base(self) -> int:
        return _number(c_void_p, "arena_base", self._raw)

    @property
    def length(self) -> int:
        return _number(c_size_t, "arena_len", self._raw)

    @property
    def delivery(self) -> Delivery:
        return Delivery(_number(c_uint32, "arena_delivery", self._raw))

    @property
    def exported(self) -> bool:
        """Returns whether a memoryview or array looks at it."""
        with self._lock:
            return bool(self._live())

    def close(self) -> None:
        """Unmaps everything. BufferError while a memoryview or array looks at it."""
        with self._lock:
            if not self.closed and self._live():
                raise BufferError("cannot close an arena that memoryviews or arrays look at")
            super().close()

    def __exit__(self, *_: object) -> None:
        """Closes; buffers that are left keep the memory until the last of them goes."""
        with self._lock:
            if self._live():
                self._handle = None  # each exporter has it, too
            else:
                super().close()

    def map(
        self,
        what: Object,
        *,
        offset: int = 0,
        object_offset: int = 0,
        length: Optional[int] = None,
        writable: bool = False,
        private: bool = False,
    ) -> None:
        """Maps an object's bytes (default: all from object_offset on) at offset.

        Writable and not private, stores reach the object; private, they stay in this mapping.
        """
        length = max(what.length - object_offset, 0) if length is None else length
        self._map("arena_map", what, (offset, object_offset, length), writable, private)

    def replace(
        self,
        what: Object,
        *,
        offset: int = 0,
        object_offset: int = 0,
        length: Optional[int] = None,
        writable: bool = False,
        private: bool = False,
    ) -> None:
        """Maps as map(), instead of what is mapped there, in one step for whoever touches it (mmap's MAP_FIXED).

        BufferError while a memoryview or array looks at the range.
        """
        length = max(what.length - object_offset, 0) if length is None else length
        self._map("arena_replace", what, (offset, object_offset, length), writable, private)

    def _map(self, by: str, what: Object, at: Tuple[int, int, int], writable: bool, private: bool) -> None:
        offset, object_offset, length = at
        end = offset + _page_up(length)
        prot = _PROT_READ | (_PROT_WRITE if writable else 0)
        with self._lock:
            self._refuse(offset, end, "replace", lambda export: True)
            sharing = _MAP_PRIVATE if private else _MAP_SHARED
            call(by, self._raw, offset, what._raw, object_offset, length, prot, sharing)
            self._note(what, at, writable)

    def _note(self, what: Object, at: Tuple[int, int, int], writable: bool) -> None:
        """Notes what is mapped now; under the lock."""
        offset, object_offset, length = at
        end = offset + _page_up(length)
        left = [m for m in self._split(offset, end) if not m.overlaps(offset, end)]
        mapped = _Mapping(offset, end, True, writable, what, offset - object_offset)
        self._mappings = sorted([*left, mapped], key=lambda m: m.start)
        what._mapped_in.add(self)

    def unmap(self, offset: int, length: int) -> None:
        """Unmaps the range. BufferError while a memoryview or array looks at it."""
        end = offset + _page_up(length)
        with self._lock:
            self._refuse(offset, end, "unmap", lambda export: True)
            call("arena_unmap", self._raw, offset, length)
            self._mappings = [m for m in self._split(offset, end) if not m.overlaps(offset, end)]

    def protect(self, offset: int, length: int, *, readable: bool = True, writable: bool = False) -> None:
        """Changes what may be done. BufferError while a buffer looks at it that may do more."""
        end = offset + _page_up(length)
        prot = (_PROT_READ if readable else 0) | (_PROT_WRITE if writable else 0)
        with self._lock:
            self._refuse(offset, end, "protect", lambda e: not readable or (e.writable and not writable))
            call("arena_protect", self._raw, offset, length, prot)
            self._mappings = [
                m._replace(readable=readable, writable=writable) if m.overlaps(offset, end) else m
                for m in self._split(offset, end)
            ]

    def advise(self, advice: Advice, offset: int = 0, length: Optional[int] = None) -> None:
        call("arena_advise", self._raw, offset, self._extent(offset, length), advice)

    def fault_in(self, offset: int = 0, length: Optional[int] = None, access: Access = Access.READ) -> None:
        """Makes the range resident, for as long as there is room; raises where touching it would be a signal."""
        call("arena_fault_in", self._raw, offset, self._extent(offset, length), access)

    def zap(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Drops page-table entries; the pages stay cached."""
        call("arena_zap", self._raw, offset, self._extent(offset, length))

    def pin(self, offset: int = 0, length: Optional[int] = None, access: Access = Access.READ) -> Pin:
        """Keeps the range resident until the pin is closed."""
        return Pin(_made("pin", "arena_pin", self._raw, offset, self._extent(offset, length), access))

    def read(self, offset: int, length: int) -> bytes:
        """Returns a copy of mapped bytes; raises where touching them would be a signal."""
        into = ctypes.create_string_buffer(max(length, 1))
        call("arena_read_at", self._raw, offset, into, length)
        return into.raw[:length]

    def write(self, offset: int, data: Any) -> None:
        source, length = _bytes_of(data)
        call("arena_write_at", self._raw, offset, source, length)

    def buffer(self, offset: int = 0, length: Optional[int] = None) -> memoryview:
        """Returns the bytes as a memoryview: read-only, unless all of them are mapped writable.

        length is by default what is mapped from offset on, up to the object's end. The range must be mapped, and lie
        before the ends of its objects: beyond them touches are SIGBUS.
        """
        with self._lock:
            length = self._extent(offset, length)
            end, at, writable = offset + length, offset, True
            for m in self._mappings:
                if m.overlaps(offset, end) and m.start <= at and m.readable:
                    if min(end, m.end) > m.origin + _page_up(m.object.length):
                        raise ValueError(f"{offset}..{end} goes past the end of an object")
                    at, writable = m.end, writable and m.writable
            if offset < 0 or length <= 0 or at < end:
                raise ValueError(f"{offset}..{end} is not wholly mapped")
            exporter: Any = (ctypes.c_ubyte * length).from_address(self.base + offset)
            exporter._keeps = self._handle
            self._exports.append(_Export(weakref.ref(exporter), offset, end, writable))
            view = memoryview(exporter).cast("B")
            return view if writable else view.toreadonly()

    def array(
        self, dtype: Any = "u1", *, offset: int = 0, shape: Union[int, Tuple[int, ...], None] = None
    ) -> "numpy.ndarray[Any, Any]":
        """Returns the bytes as a numpy array, of as many elements as there are from offset on, or of that shape."""
        import numpy

        element = numpy.dtype(dtype)
        if element.hasobject:
            raise ValueError("arenas hold plain data, no references")
        if shape is None:
            length = self._extent(offset, None) // element.itemsize * element.itemsize
            return numpy.frombuffer(self.buffer(offset, length), element)
        dims = (shape,) if isinstance(shape, int) else shape
        length = element.itemsize
        for n in dims:
            length *= n
        return numpy.frombuffer(self.buffer(offset, length), element).reshape(dims)

    def _extent(self, offset: int, length: Optional[int]) -> int:
        """Returns length, or how much is mapped from offset on without a gap, before the objects' ends."""
        if length is not None:
            return length
        with self._lock:
            at = offset
            for m in self._mappings:
                if m.start <= at < m.end and m.readable:
                    at = min(m.end, max(m.origin + m.object.length, at))
            return at - offset

    def _live(self) -> list[_Export]:
        self._exports = [e for e in self._exports if e.exporter() is not None]
        return self._exports

    def _refuse(self, start: int, end: int, what: str, harms: Callable[[_Export], bool]) -> None:
        if any(e.start < end and start < e.end and harms(e) for e in self._live()):
            raise BufferError(f"cannot {what} what memoryviews or arrays look at")

    def _refuse_past(self, what: Object, end: int) -> None:
        for m in self._mappings:
            if m.object is what and m.origin + end < m.end:
                self._refuse(max(m.start, m.origin + end), m.end, "cut off", lambda export: True)

    def _split(self, *at: int) -> list[_Mapping]:
        """Returns the mappings, none of which crosses one of the offsets."""
        parts = self._mappings
        for offset in at:
            cut = []
            for m in parts:
                if m.start < offset < m.end:
                    cut += [m._replace(end=offset), m._replace(start=offset)]
                else:
                    cut.append(m)
            parts = cut
        return parts


# They are made of what is above.
from ._images import (  # noqa: E402
    Codec,
    Image,
    ImageFormat,
    ImageWriter,
    Integrity,
    Region,
    Restore,
    Session,
    SessionProgress,
    WorkingSet,
)

assert mmap.PAGESIZE == PAGE, "softfault is for pages of 4 KiB"
