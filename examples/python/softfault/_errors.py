"""What a call that failed left behind."""

from __future__ import annotations

import ctypes
import enum

from ._lib import Range, function


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


class SoftfaultError(OSError):
    """A call failed: `errno`, the words (`strerror`), the `kind`, and for a fault its `reason`."""

    kind: ErrorKind
    reason: FaultReason
    #: What a failed flush took away, where `kind` is LOST: ranges of bytes of the object.
    lost: list[range]

    @classmethod
    def of_last_call(cls, result: int) -> SoftfaultError:
        words = ctypes.create_string_buffer(function("last_error")(None, 0) + 1)
        function("last_error")(words, len(words))
        error = cls(-result, words.value.decode("utf-8", "replace"))
        error.kind = ErrorKind(function("last_error_kind")())
        error.reason = FaultReason(function("last_fault_reason")())
        ranges = (Range * function("last_lost_ranges")(None, 0))()
        function("last_lost_ranges")(ranges, len(ranges))
        error.lost = [range(r.start, r.end) for r in ranges]
        return error


def call(name: str, *args: object) -> None:
    """Calls softfault_NAME, and raises what it says."""
    result = function(name)(*args)
    if result != 0:
        raise SoftfaultError.of_last_call(result)
