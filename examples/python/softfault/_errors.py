"""What a call that failed left behind."""

from __future__ import annotations

import ctypes
import enum
from typing import NamedTuple, Optional

from . import _lib
from ._lib import LastFault, Range, function


class ErrorKind(enum.IntEnum):
    """SOFTFAULT_ERROR_*: several kinds share an errno."""

    NONE = 0
    ARGUMENT = 1
    HANDLE = 2
    NOT_MAPPED = 3
    OCCUPIED = 4
    PINNED = 5
    DENIED = 6
    FAULT = 7
    DELIVERY = 8
    EXHAUSTED = 9
    SYSTEM = 10
    WRITEBACK = 11
    FLUSH = 12
    LOST = 13
    HELD = 14
    IO = 15
    NO_ENTRY = 16
    INTERNAL = 17
    OTHER = 18
    FILE_TYPE = 19
    CONFLICT = 20
    LIMIT = 21
    IMAGE = 22
    OVERLAY = 23
    CAPTURE = 24

    @classmethod
    def _missing_(cls, value: object) -> ErrorKind:
        return cls.OTHER


class FaultReason(enum.IntFlag):
    """SOFTFAULT_VM_FAULT_*: why a page could not be had."""

    OOM = 0x1
    SIGBUS = 0x2
    MAJOR = 0x4
    HWPOISON = 0x10
    HWPOISON_LARGE = 0x20
    SIGSEGV = 0x40
    NOPAGE = 0x100
    LOCKED = 0x200
    RETRY = 0x400
    FALLBACK = 0x800
    DONE_COW = 0x1000
    NEEDDSYNC = 0x2000
    COMPLETED = 0x4000
    UFFD_MINOR = 0x8000


class Cause(enum.IntEnum):
    """SOFTFAULT_CAUSE_*: what the store, or the runtime, had to say."""

    NONE = 0
    IO = 1
    SHORT = 2
    CORRUPT = 3
    DEADLINE = 4
    NO_MEMORY = 5
    REFUSED = 6
    CACHE_FULL = 7
    PAST_END = 8
    NO_PINS = 9
    NOT_PERMITTED = 10
    NOT_MAPPED = 11
    BROKEN = 12

    @classmethod
    def _missing_(cls, value: object) -> Cause:
        return cls.NONE


class ImageCause(enum.IntEnum):
    """SOFTFAULT_IMAGE_CAUSE_*: what is wrong with an image."""

    IO = 1
    CORRUPT = 2
    DIGEST = 3
    UNSUPPORTED = 4
    CHANGED = 5
    IN_USE = 6
    MIXED = 7
    OTHER = 8

    @classmethod
    def _missing_(cls, value: object) -> ImageCause:
        return cls.OTHER


class ImageFailure(NamedTuple):
    """What is wrong with an image, and where."""

    cause: ImageCause
    file: str
    #: The byte of the file; None where it is about no byte.
    offset: Optional[int]


class Fault(NamedTuple):
    """Why, and where, a page could not be had, or was not written."""

    cause: Cause
    #: The store's; 0 if it gave none.
    store_errno: int
    #: The object's label, or the path of its file.
    object: str
    object_offset: Optional[int]
    #: The same byte; None for calls on objects.
    arena_offset: Optional[int]


_UNKNOWN = (1 << 64) - 1


def _last_fault() -> Optional[Fault]:
    last = LastFault()
    if function("last_fault")(ctypes.byref(last)) != 0:
        return None
    label = ctypes.create_string_buffer(function("last_object")(None, 0) + 1)
    function("last_object")(label, len(label))
    object_offset, arena_offset = (None if n == _UNKNOWN else n for n in (last.object_offset, last.arena_offset))
    words = label.value.decode("utf-8", "replace")
    return Fault(Cause(last.cause), last.store_errno, words, object_offset, arena_offset)


def _last_image_failure() -> Optional[ImageFailure]:
    last = _lib.ImageFailure()
    if function("last_image_failure")(ctypes.byref(last)) != 0:
        return None
    file = ctypes.create_string_buffer(function("last_object")(None, 0) + 1)
    function("last_object")(file, len(file))
    offset = None if last.file_offset == _UNKNOWN else last.file_offset
    return ImageFailure(ImageCause(last.cause), file.value.decode("utf-8", "replace"), offset)


class SoftfaultError(OSError):
    """A call failed: `errno`, the words (`strerror`), the `kind`, and for a fault its `reason` and `fault`."""

    kind: ErrorKind
    reason: FaultReason
    #: Where `kind` is FAULT, WRITEBACK or FLUSH.
    fault: Optional[Fault]
    #: Where `kind` is IMAGE.
    image: Optional[ImageFailure]
    #: What a failed flush took away, where `kind` is LOST: ranges of bytes of the object.
    lost: list[range]

    @classmethod
    def of_last_call(cls, result: int) -> SoftfaultError:
        words = ctypes.create_string_buffer(function("last_error")(None, 0) + 1)
        function("last_error")(words, len(words))
        error = cls(-result, words.value.decode("utf-8", "replace"))
        error.kind = ErrorKind(function("last_error_kind")())
        error.reason = FaultReason(function("last_fault_reason")())
        error.fault = _last_fault()
        error.image = _last_image_failure()
        ranges = (Range * function("last_lost_ranges")(None, 0))()
        function("last_lost_ranges")(ranges, len(ranges))
        error.lost = [range(r.start, r.end) for r in ranges]
        return error


def call(name: str, *args: object) -> None:
    """Calls softfault_NAME, and raises what it says."""
    result = function(name)(*args)
    if result != 0:
        raise SoftfaultError.of_last_call(result)
