"""Images of memory, sessions that are restored from them, and working sets: see softfault.Image."""

from __future__ import annotations

import ctypes
import enum
import os
import threading
import weakref
from ctypes import byref, c_bool, c_size_t, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import Delivery, Object, Runtime, _arena_options, _bytes_of, _Closing, _Handle, _made, _text
from ._errors import SoftfaultError, call
from ._lib import (
    Digest,
    ImageOptions,
    ImageProperties,
    ImageWriterOptions,
    OverlayPages,
    Progress,
    Range,
    RegionOfImage,
    RestoreOptions,
    WorkingSetProperties,
)

if TYPE_CHECKING:
    import numpy

_Path = Union[str, "os.PathLike[str]"]

_AT_ORIGINAL_ADDRESSES = 0x1
_HAS_FILE_DIGEST, _HAS_CONTENT_DIGEST = 0x1, 0x2
_READ, _WRITE = 1, 2


class Integrity(enum.IntEnum):
    """How often bytes of an image are verified."""

    LAZY = 0
    ONCE = 1
    TRUSTED = 2


class ImageFormat(enum.IntEnum):
    """What a path names."""

    AUTO = 0
    CRIU = 1
    CLOUD_HYPERVISOR = 2
    QEMU = 3


class Codec(enum.IntEnum):
    """How an image stores its pages."""

    RAW = 0
    LZ4 = 1
    ZSTD = 2


class Region(NamedTuple):
    """A range of memory that an image is of."""

    name: str
    #: Where it was.
    address: int
    #: Where it begins in the image.
    offset: int
    length: int
    #: The bits of mmap(2): 1 to read, 2 to write, 4 to execute.
    prot: int = 3


class SessionProgress(NamedTuple):
    """How far a session has come, in pages."""

    pages: int
    #: Of the image, for whichever session.
    cached: int
    #: Of 2 MiB: what the kernel serves by itself.
    native_extents: int
    #: Of 2 MiB: what is mapped from the image's file itself.
    direct_extents: int
    replayed: int
    replay_ended: bool


def _hex(digest: Digest) -> str:
    return bytes(digest.bytes).hex()


def _writer_options(codec: Codec, level: int, frame: int) -> ImageWriterOptions:
    return ImageWriterOptions(
        size=ctypes.sizeof(ImageWriterOptions), codec=codec, level=level, frame_bytes=frame
    )


def _region(region: Region) -> RegionOfImage:
    name = region.name.encode()
    return RegionOfImage(name, region.address, region.offset, region.length, region.prot, 0)


class Image(_Closing):
    """An image of memory: an .sfi file, a raw one with sparse diffs, a snapshot of another program.

    With a runtime it can be restored (Restore); without, looked at, read, verified and converted.
    """

    def __init__(
        self,
        path: _Path,
        *,
        runtime: Optional[Runtime] = None,
        integrity: Integrity = Integrity.LAZY,
        format: ImageFormat = ImageFormat.AUTO,
        diffs: Sequence[_Path] = (),
        regions: Sequence[Region] = (),
        process: int = 0,
    ) -> None:
        """diffs: sparse files over a raw image, the oldest first. regions: instead of those that the image says."""
        self._handle = None
        names = (ctypes.c_char_p * len(diffs))(*(os.fsencode(d) for d in diffs))
        places = (RegionOfImage * len(regions))(*(_region(r) for r in regions))
        o = ImageOptions(size=ctypes.sizeof(ImageOptions), integrity=integrity, format=format, process_id=process)
        o.diffs, o.nr_diffs = ctypes.cast(names, c_void_p) if diffs else None, len(diffs)
        o.regions, o.nr_regions = ctypes.cast(places, c_void_p) if regions else None, len(regions)
        try:
            if runtime is None:
                self._handle = _made("image", "image_open_file", os.fsencode(path), byref(o))
            else:
                self._handle = _made("image", "image_open", runtime._raw, os.fsencode(path), byref(o))
        except SoftfaultError as e:
            e.filename = os.fspath(path)
            raise

    def _info(self) -> ImageProperties:
        info = ImageProperties(size=ctypes.sizeof(ImageProperties))
        call("image_info", self._raw, byref(info))
        return info

    @property
    def path(self) -> str:
        return _text(lambda buf, length, full: call("image_path", self._raw, buf, length, full))

    @property
    def length(self) -> int:
        return int(self._info().len_bytes)

    @property
    def regions(self) -> List[Region]:
        found = []
        for i in range(self._info().nr_regions):
            r = RegionOfImage()
            call("image_region", self._raw, i, None, 0, None, byref(r))
            name = _text(lambda buf, length, full: call("image_region", self._raw, i, buf, length, full, None))
            found.append(Region(name, r.address, r.offset, r.len_bytes, r.prot))
        return found

    @property
    def keys(self) -> List[str]:
        def name(i: int) -> str:
            return _text(lambda buf, length, full: call("image_key_name", self._raw, i, buf, length, full))

        return [name(i) for i in range(self._info().nr_keys)]

    def key(self, name: str) -> bytes:
        """Returns what is kept beside the memory under a key."""
        full = c_size_t()
        call("image_key", self._raw, name.encode(), None, 0, byref(full))
        value = ctypes.create_string_buffer(max(full.value, 1))
        call("image_key", self._raw, name.encode(), value, full.value, byref(full))
        return value.raw[: full.value]

    @property
    def file_digest(self) -> Optional[str]:
        """Returns the digest of the file, which covers everything in it; None: the format has none."""
        info = self._info()
        return _hex(info.file_digest) if info.flags & _HAS_FILE_DIGEST else None

    @property
    def content_digest(self) -> Optional[str]:
        """Returns the digest of the memory, whatever file it lies in; None: the image does not know it."""
        info = self._info()
        return _hex(info.content_digest) if info.flags & _HAS_CONTENT_DIGEST else None

    @property
    def needs(self) -> List[str]:
        """Returns the files that it needs besides its own."""
        text = _text(lambda buf, length, full: call("image_needs", self._raw, None, buf, length, full))
        return text.splitlines()

    @property
    def verifiable(self) -> bool:
        found = c_bool()
        call("image_is_verifiable", self._raw, byref(found))
        return found.value

    def verify(self) -> None:
        """Verifies everything, as it lies in the files now; raises what is wrong, with `image` saying where."""
        call("image_verify", self._raw, None, None)

    def read(self, offset: int, length: int) -> bytes:
        """Returns a copy of bytes, verified, without a fault and without the cache."""
        into = ctypes.create_string_buffer(max(length, 1))
        call("image_read_at", self._raw, offset, into, length)
        return into.raw[:length]

    def object(self) -> Object:
        """Returns the object whose pages are the image's, which cannot be written."""
        return Object(_made("object", "image_object", self._raw), False)

    def convert(self, path: _Path, *, codec: Codec = Codec.RAW, level: int = 0, frame: int = 0) -> str:
        """Writes the same memory as one file that needs no other; returns that file's digest."""
        made = Digest()
        o = _writer_options(codec, level, frame)
        call("image_convert", self._raw, os.fsencode(path), byref(o), byref(made))
        return _hex(made)

    def compact(
        self, path: _Path, budget: int = 8, *, codec: Codec = Codec.RAW, level: int = 0, frame: int = 0
    ) -> str:
        """As convert(), with no more than budget pieces in any 2 MiB."""
        made = Digest()
        o = _writer_options(codec, level, frame)
        call("image_compact", self._raw, os.fsencode(path), byref(o), budget, byref(made))
        return _hex(made)

    def rebase(
        self, parent: Image, path: _Path, *, codec: Codec = Codec.RAW, level: int = 0, frame: int = 0
    ) -> str:
        """Writes the same memory as what differs from another image in that folder."""
        made = Digest()
        o = _writer_options(codec, level, frame)
        call("image_rebase", self._raw, parent._raw, os.fsencode(path), byref(o), byref(made))
        return _hex(made)

    def diff(self, newer: Image, *, by_pages: bool = False) -> List[range]:
        """Returns the ranges of bytes in which the newer image differs; by_pages: digests are not believed."""
        full = c_size_t()
        call("image_diff", self._raw, newer._raw, int(by_pages), None, 0, byref(full), None)
        ranges = (Range * full.value)()
        call("image_diff", self._raw, newer._raw, int(by_pages), ranges, len(ranges), byref(full), None)
        return [range(r.start, r.end) for r in ranges]

    def extract(self, path: _Path, offset: int = 0, length: Optional[int] = None) -> None:
        """Writes bytes into a raw file that begins with them."""
        length = self.length - offset if length is None else length
        call("image_extract", self._raw, offset, length, os.fsencode(path))

    def restore(self, **options: Any) -> Session:
        """Makes it memory again: Restore(image, ..).build()."""
        return Restore(self, **options).build()


class ImageWriter(_Closing):
    """Makes an .sfi file: of a memory, or of what has changed since a parent. Left without finish(), nothing is left of it."""

    def __init__(
        self,
        path: _Path,
        length: int,
        *,
        parent: Optional[Image] = None,
        codec: Codec = Codec.RAW,
        level: int = 0,
        frame: int = 0,
    ) -> None:
        self._handle = None
        o = _writer_options(codec, level, frame)
        o.parent = None if parent is None else parent._raw
        try:
            self._handle = _made("image_writer", "image_writer_new", os.fsencode(path), length, byref(o))
        except SoftfaultError as e:
            e.filename = os.fspath(path)
            raise

    def region(self, region: Region) -> None:
        """Says what a range of the image is of, in the order of the offsets."""
        call("image_writer_region", self._raw, byref(_region(region)))

    def key(self, name: str, value: bytes) -> None:
        """Keeps a value beside the memory."""
        call("image_writer_key", self._raw, name.encode(), value, len(value))

    def write(self, offset: int, data: Any) -> None:
        """Writes whole pages, behind those that were written before."""
        source, length = _bytes_of(data)
        call("image_writer_write", self._raw, offset, source, length)

    def finish(self) -> str:
        """Makes everything durable, and gives the file its name; returns its digest."""
        made = Digest()
        call("image_writer_finish", self._raw, byref(made))
        return _hex(made)


class Restore:
    """What a session is to be: build() makes it.

    at_original_addresses: each region where it was; SoftfaultError names what is in the way. record: windows of so many
    seconds in which what is touched first is recorded, until Session.mark(). replay: a working set that is read before it is
    touched. What is left are options of arenas, as in Runtime.arena().
    """

    def __init__(
        self,
        image: Image,
        *,
        at_original_addresses: bool = False,
        record: float = 0.0,
        replay: Optional[WorkingSet] = None,
        delivery: Delivery = Delivery.AUTO,
        kernel_access: bool = False,
        fault_around: bool = True,
        native_extents: bool = True,
        granule: int = 0,
    ) -> None:
        self._image, self._replay = image, replay
        self._original, self._record = at_original_addresses, int(record * 1e9)
        self._arena = _arena_options(delivery, kernel_access, fault_around, native_extents, granule, None)
        self._overlays: List[Tuple[str, int, bytes]] = []

    def overlay(self, name: str, offset: int, data: Any) -> Restore:
        """Gives the session whole pages of its own from the image's byte offset on: entropy, a mailbox."""
        self._overlays.append((name, offset, bytes(data)))
        return self

    def build(self) -> Session:
        """Makes the session: maps its regions, and stores the overlays. Nothing else is read."""
        o = RestoreOptions(size=ctypes.sizeof(RestoreOptions), record_window_ns=self._record)
        o.flags = _AT_ORIGINAL_ADDRESSES if self._original else 0
        o.arena = ctypes.cast(ctypes.pointer(self._arena), c_void_p)
        pages = [ctypes.create_string_buffer(data, max(len(data), 1)) for _, _, data in self._overlays]
        overlays = (OverlayPages * len(pages))(
            *(
                OverlayPages(name.encode(), offset, ctypes.cast(page, c_void_p), len(data))
                for (name, offset, data), page in zip(self._overlays, pages)
            )
        )
        o.overlays, o.nr_overlays = ctypes.cast(overlays, c_void_p) if pages else None, len(pages)
        o.replay = None if self._replay is None else self._replay._raw
        return Session(_made("session", "restore", self._image._raw, byref(o)), self._image.regions)


class Session(_Closing):
    """An image that is memory again: private to the session, filled as it is touched, verified before anybody sees it.

    A page that fails its digest is SIGBUS for who touches it; read() raises instead.
    """

    def __init__(self, handle: _Handle, regions: List[Region]) -> None:
        self._handle = handle
        self._lock = threading.RLock()
        self._exporters: List["weakref.ref[Any]"] = []
        self.regions = regions

    def _index(self, region: Union[str, int]) -> int:
        if isinstance(region, int):
            return region
        index = c_size_t()
        call("session_find", self._raw, region.encode(), byref(index))
        return index.value

    def address(self, region: Union[str, int] = 0) -> int:
        """Returns the region's first address; regions have names, and numbers in the image's order."""
        base = c_void_p()
        call("session_region", self._raw, self._index(region), byref(base), None)
        return base.value or 0

    def buffer(self, region: Union[str, int] = 0, offset: int = 0, length: Optional[int] = None) -> memoryview:
        """Returns a region's bytes as a memoryview, which keeps the session: read-only where the region was."""
        with self._lock:
            index = self._index(region)
            of = self.regions[index]
            length = of.length - offset if length is None else length
            if offset < 0 or length <= 0 or offset + length > of.length:
                raise ValueError(f"{offset}..{offset + length} is not in a region of {of.length} bytes")
            if not of.prot & _READ:
                raise ValueError(f"region {of.name!r} may not be read")
            exporter: Any = (ctypes.c_ubyte * length).from_address(self.address(index) + offset)
            exporter._keeps = self._handle
            self._exporters = [e for e in self._exporters if e() is not None]
            self._exporters.append(weakref.ref(exporter))
            view = memoryview(exporter).cast("B")
            return view if of.prot & _WRITE else view.toreadonly()

    def array(self, region: Union[str, int] = 0, dtype: Any = "u1") -> "numpy.ndarray[Any, Any]":
        """Returns a region as a numpy array."""
        import numpy

        if numpy.dtype(dtype).hasobject:
            raise ValueError("sessions hold plain data, no references")
        return numpy.frombuffer(self.buffer(region), dtype)

    def read(self, region: Union[str, int], offset: int, length: int) -> bytes:
        """Returns a copy; raises where touching the bytes would be a signal."""
        arena, at = c_void_p(), c_size_t()
        index = self._index(region)
        if offset < 0 or length < 0 or offset + length > self.regions[index].length:
            raise ValueError(f"{offset}..{offset + length} is not in the region")
        call("session_arena", self._raw, index, byref(arena), byref(at))
        held = _Handle(arena, "arena")
        into = ctypes.create_string_buffer(max(length, 1))
        call("arena_read_at", held.raw, at.value + offset, into, length)
        return into.raw[:length]

    @property
    def progress(self) -> SessionProgress:
        p = Progress(size=ctypes.sizeof(Progress))
        call("session_progress", self._raw, byref(p))
        return SessionProgress(p.pages, p.cached, p.native_extents, p.direct_extents, p.replayed, bool(p.replay_ended))

    def mark(self) -> Optional[WorkingSet]:
        """Says that the session is ready: returns what was touched first, if that was recorded."""
        out = c_void_p()
        call("session_mark", self._raw, byref(out))
        return None if out.value is None else WorkingSet(_Handle(out, "working_set"))

    def complete(self) -> None:
        """Makes all of it resident and verified."""
        call("session_complete", self._raw, None)

    def close(self) -> None:
        """Unmaps everything. BufferError while a memoryview or array looks at it."""
        with self._lock:
            if not self.closed and any(e() is not None for e in self._exporters):
                raise BufferError("cannot close a session that memoryviews or arrays look at")
            super().close()

    def __exit__(self, *_: object) -> None:
        """Closes; buffers that are left keep the memory until the last of them goes."""
        with self._lock:
            if any(e() is not None for e in self._exporters):
                self._handle = None
            else:
                super().close()


class WorkingSet(_Closing):
    """Which pages of an image a program touched first, in windows of time."""

    def __init__(self, handle: _Handle) -> None:
        self._handle = handle

    @classmethod
    def open(cls, path: _Path) -> WorkingSet:
        return cls(_made("working_set", "working_set_open", os.fsencode(path)))

    @classmethod
    def find(cls, image: Image) -> Optional[WorkingSet]:
        """Returns the set that lies beside an image."""
        out = c_void_p()
        call("working_set_find", image._raw, byref(out))
        return None if out.value is None else cls(_Handle(out, "working_set"))

    @classmethod
    def merge(cls, sets: Iterable[WorkingSet], least: int = 1) -> WorkingSet:
        """Returns what was touched in least of the sets at least."""
        raw = [s._raw for s in sets]
        return cls(_made("working_set", "working_set_merge", (c_void_p * len(raw))(*raw), len(raw), least))

    @property
    def pages(self) -> int:
        info = WorkingSetProperties(size=ctypes.sizeof(WorkingSetProperties))
        call("working_set_info", self._raw, byref(info))
        return int(info.nr_pages)

    def windows(self) -> List[Tuple[float, List[range]]]:
        """Returns when each window of time ended, in seconds, and the ranges of the image's bytes touched first in it."""
        info = WorkingSetProperties(size=ctypes.sizeof(WorkingSetProperties))
        call("working_set_info", self._raw, byref(info))
        found = []
        for i in range(info.nr_windows):
            end, full = c_uint64(), c_size_t()
            call("working_set_window", self._raw, i, None, byref(end), None)
            call("working_set_ranges", self._raw, i, None, 0, byref(full))
            ranges = (Range * full.value)()
            call("working_set_ranges", self._raw, i, ranges, len(ranges), byref(full))
            found.append((end.value / 1e9, [range(r.start, r.end) for r in ranges]))
        return found

    def save(self, path: _Path) -> None:
        call("working_set_save", self._raw, os.fsencode(path))

    def save_beside(self, image: Image) -> None:
        call("working_set_save_beside", self._raw, image._raw)
