"""softfault.h for ctypes: the library, its structures, and what its functions take."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_size_t,
    c_ubyte,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, Iterator

ABI_VERSION = 1
SONAME = "libsoftfault.so.0.1"
OFF = 0xFFFFFFFF


class RuntimeOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("cache_limit_bytes", c_uint64),
        ("swap_path", c_char_p),
        ("swap_bytes", c_uint64),
        ("zswap_bytes", c_uint64),
        ("fillers", c_uint32),
        ("fill_window_pages", c_uint32),
        ("readahead_pages", c_uint32),
        ("dirty_background_percent", c_uint32),
        ("dirty_percent", c_uint32),
        ("exit_wait_ms", c_uint32),
        ("writeback_interval_ns", c_uint64),
        ("writeback_expire_ns", c_uint64),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class ObjectOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("failure_policy", c_uint32),
        ("max_len_bytes", c_uint64),
        ("cache_limit_bytes", c_uint64),
        ("deadline_ns", c_uint64),
        ("retries", c_uint32),
        ("fill_window_pages", c_uint32),
        ("retry_backoff_ns", c_uint64),
        ("readahead_pages", c_uint32),
        ("reserved", c_uint32),
        ("label", c_char_p),
    ]


class ArenaOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("delivery", c_uint32),
        ("granule_bytes", c_uint64),
        ("address", c_void_p),
    ]


class Range(Structure):
    _fields_ = [("start", c_uint64), ("end", c_uint64)]


class LastFault(Structure):
    _fields_ = [
        ("cause", c_uint32),
        ("store_errno", c_int),
        ("object_offset", c_uint64),
        ("arena_offset", c_uint64),
    ]


class LastFailure(Structure):
    _fields_ = [
        ("number", c_uint64),
        ("op", c_uint32),
        ("cause", c_uint32),
        ("store_errno", c_int),
        ("reserved", c_uint32),
        ("object_offset", c_uint64),
        ("address", c_uint64),
        ("age_ns", c_uint64),
        ("object", c_char * 104),
    ]


class Digest(Structure):
    _fields_ = [("bytes", c_ubyte * 32)]


class ImageFailure(Structure):
    _fields_ = [
        ("cause", c_uint32),
        ("system_errno", c_int),
        ("file_offset", c_uint64),
        ("wanted", Digest),
        ("found", Digest),
    ]


class RegionOfImage(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("address", c_uint64),
        ("offset", c_uint64),
        ("len_bytes", c_uint64),
        ("prot", c_uint32),
        ("reserved", c_uint32),
    ]


class ImageOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("integrity", c_uint32),
        ("format", c_uint32),
        ("diffs", c_void_p),
        ("nr_diffs", c_size_t),
        ("regions", c_void_p),
        ("nr_regions", c_size_t),
        ("process_id", c_uint32),
        ("reserved", c_uint32),
    ]


class ImageProperties(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("len_bytes", c_uint64),
        ("nr_regions", c_size_t),
        ("nr_keys", c_size_t),
        ("integrity", c_uint32),
        ("flags", c_uint32),
        ("file_digest", Digest),
        ("content_digest", Digest),
    ]


class ImageWriterOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("codec", c_uint32),
        ("level", c_int32),
        ("reserved", c_uint32),
        ("frame_bytes", c_size_t),
        ("parent", c_void_p),
    ]


class OverlayPages(Structure):
    _fields_ = [("name", c_char_p), ("offset", c_uint64), ("bytes", c_void_p), ("len_bytes", c_size_t)]


class RestoreOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("reserved", c_uint32),
        ("arena", c_void_p),
        ("overlays", c_void_p),
        ("nr_overlays", c_size_t),
        ("record_window_ns", c_uint64),
        ("replay", c_void_p),
    ]


class Progress(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pages", c_uint64),
        ("cached", c_uint64),
        ("native_extents", c_uint64),
        ("direct_extents", c_uint64),
        ("replayed", c_uint64),
        ("replay_ended", c_uint32),
        ("reserved", c_uint32),
    ]


class WorkingSetProperties(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("nr_pages", c_uint64),
        ("image_pages", c_uint64),
        ("nr_windows", c_size_t),
        ("resolution_pages", c_uint32),
        ("recordings", c_uint32),
        ("content_digest", Digest),
    ]


# What each function takes. All return an int (0 or a negative errno) but those in RETURNS.
_HANDLE = c_void_p
FUNCTIONS: dict[str, list[Any]] = {
    "last_error": [c_char_p, c_size_t],
    "last_error_kind": [],
    "last_fault_reason": [],
    "last_fault": [POINTER(LastFault)],
    "last_object": [c_char_p, c_size_t],
    "last_lost_ranges": [POINTER(Range), c_size_t],
    "last_image_failure": [POINTER(ImageFailure)],
    "abi_version": [],
    "version": [],
    "runtime_new": [POINTER(RuntimeOptions), POINTER(_HANDLE)],
    "runtime_free": [_HANDLE],
    "runtime_set_cache_limit": [_HANDLE, c_uint64],
    "runtime_write_back": [_HANDLE, c_uint64, POINTER(c_bool)],
    "runtime_delivery": [_HANDLE, POINTER(c_uint32)],
    "runtime_delivery_report": [_HANDLE, c_char_p, c_size_t, POINTER(c_size_t)],
    "runtime_audit_threads": [_HANDLE, POINTER(c_size_t), c_char_p, c_size_t, POINTER(c_size_t)],
    "runtime_warnings": [_HANDLE, POINTER(c_size_t), c_char_p, c_size_t, POINTER(c_size_t)],
    "runtime_recent_failures": [_HANDLE, POINTER(LastFailure), c_size_t, POINTER(c_size_t)],
    "reinstall_handlers": [_HANDLE],
    "object_open": [_HANDLE, c_char_p, POINTER(ObjectOptions), POINTER(_HANDLE)],
    "object_from_fd": [_HANDLE, c_int, POINTER(ObjectOptions), POINTER(_HANDLE)],
    "object_anonymous": [_HANDLE, c_uint64, POINTER(ObjectOptions), POINTER(_HANDLE)],
    "object_from_store": [_HANDLE, c_uint64, c_void_p, c_void_p, POINTER(ObjectOptions), POINTER(_HANDLE)],
    "object_free": [_HANDLE],
    "object_len": [_HANDLE, POINTER(c_uint64)],
    "object_set_len": [_HANDLE, c_uint64],
    "object_follow_len": [_HANDLE, POINTER(c_uint64)],
    "object_read_at": [_HANDLE, c_uint64, c_void_p, c_size_t, POINTER(c_size_t)],
    "object_write_at": [_HANDLE, c_uint64, c_void_p, c_size_t, POINTER(c_size_t)],
    "object_populate": [_HANDLE, c_uint64, c_uint64],
    "object_cached_pages": [_HANDLE, POINTER(c_uint64)],
    "object_advise": [_HANDLE, c_uint64, c_uint64, c_uint32],
    "object_evict": [_HANDLE, c_uint64, c_uint64, POINTER(c_uint64)],
    "object_punch_hole": [_HANDLE, c_uint64, c_uint64],
    "object_write_back": [_HANDLE, c_uint64, c_uint64],
    "object_sync": [_HANDLE, c_uint64, c_uint64],
    "object_sync_all": [_HANDLE],
    "object_barrier": [_HANDLE],
    "object_hold_dirty": [_HANDLE, c_uint64, c_uint64, POINTER(_HANDLE)],
    "object_lost": [_HANDLE, POINTER(Range), c_size_t, POINTER(c_size_t)],
    "object_forget_lost": [_HANDLE, c_uint64, c_uint64],
    "held_free": [_HANDLE],
    "arena_new": [_HANDLE, c_size_t, POINTER(ArenaOptions), POINTER(_HANDLE)],
    "arena_free": [_HANDLE],
    "arena_base": [_HANDLE, POINTER(c_void_p)],
    "arena_len": [_HANDLE, POINTER(c_size_t)],
    "arena_delivery": [_HANDLE, POINTER(c_uint32)],
    "arena_map_file": [_HANDLE, c_char_p, POINTER(ObjectOptions), POINTER(_HANDLE), POINTER(_HANDLE)],
    "arena_map": [_HANDLE, c_size_t, _HANDLE, c_uint64, c_size_t, c_uint32, c_uint32],
    "arena_replace": [_HANDLE, c_size_t, _HANDLE, c_uint64, c_size_t, c_uint32, c_uint32],
    "arena_unmap": [_HANDLE, c_size_t, c_size_t],
    "arena_protect": [_HANDLE, c_size_t, c_size_t, c_uint32],
    "arena_advise": [_HANDLE, c_size_t, c_size_t, c_uint32],
    "arena_fault_in": [_HANDLE, c_size_t, c_size_t, c_uint32],
    "arena_zap": [_HANDLE, c_size_t, c_size_t],
    "arena_read_at": [_HANDLE, c_size_t, c_void_p, c_size_t],
    "arena_write_at": [_HANDLE, c_size_t, c_void_p, c_size_t],
    "arena_pin": [_HANDLE, c_size_t, c_size_t, c_uint32, POINTER(_HANDLE)],
    "pin_is_locked": [_HANDLE, POINTER(c_bool)],
    "pin_free": [_HANDLE],
    "stats_read": [_HANDLE, POINTER(_HANDLE)],
    "stats_free": [_HANDLE],
    "stats_get": [_HANDLE, c_char_p, POINTER(c_uint64)],
    "stats_json": [_HANDLE, c_char_p, c_size_t, POINTER(c_size_t)],
    "image_open": [_HANDLE, c_char_p, POINTER(ImageOptions), POINTER(_HANDLE)],
    "image_open_file": [c_char_p, POINTER(ImageOptions), POINTER(_HANDLE)],
    "image_free": [_HANDLE],
    "image_info": [_HANDLE, POINTER(ImageProperties)],
    "image_path": [_HANDLE, c_char_p, c_size_t, POINTER(c_size_t)],
    "image_needs": [_HANDLE, POINTER(c_size_t), c_char_p, c_size_t, POINTER(c_size_t)],
    "image_is_verifiable": [_HANDLE, POINTER(c_bool)],
    "image_region": [_HANDLE, c_size_t, c_char_p, c_size_t, POINTER(c_size_t), POINTER(RegionOfImage)],
    "image_key_name": [_HANDLE, c_size_t, c_char_p, c_size_t, POINTER(c_size_t)],
    "image_key": [_HANDLE, c_char_p, c_void_p, c_size_t, POINTER(c_size_t)],
    "image_read_at": [_HANDLE, c_uint64, c_void_p, c_size_t],
    "image_verify": [_HANDLE, c_void_p, c_void_p],
    "image_object": [_HANDLE, POINTER(_HANDLE)],
    "image_convert": [_HANDLE, c_char_p, POINTER(ImageWriterOptions), POINTER(Digest)],
    "image_compact": [_HANDLE, c_char_p, POINTER(ImageWriterOptions), c_uint32, POINTER(Digest)],
    "image_rebase": [_HANDLE, _HANDLE, c_char_p, POINTER(ImageWriterOptions), POINTER(Digest)],
    "image_diff": [_HANDLE, _HANDLE, c_uint32, POINTER(Range), c_size_t, POINTER(c_size_t), POINTER(c_uint64)],
    "image_extract": [_HANDLE, c_uint64, c_uint64, c_char_p],
    "image_writer_new": [c_char_p, c_uint64, POINTER(ImageWriterOptions), POINTER(_HANDLE)],
    "image_writer_free": [_HANDLE],
    "image_writer_region": [_HANDLE, POINTER(RegionOfImage)],
    "image_writer_key": [_HANDLE, c_char_p, c_void_p, c_size_t],
    "image_writer_write": [_HANDLE, c_uint64, c_void_p, c_size_t],
    "image_writer_finish": [_HANDLE, POINTER(Digest)],
    "restore": [_HANDLE, POINTER(RestoreOptions), POINTER(_HANDLE)],
    "session_free": [_HANDLE],
    "session_region": [_HANDLE, c_size_t, POINTER(c_void_p), POINTER(c_size_t)],
    "session_find": [_HANDLE, c_char_p, POINTER(c_size_t)],
    "session_arena": [_HANDLE, c_size_t, POINTER(_HANDLE), POINTER(c_size_t)],
    "session_progress": [_HANDLE, POINTER(Progress)],
    "session_mark": [_HANDLE, POINTER(_HANDLE)],
    "session_complete": [_HANDLE, c_void_p],
    "working_set_open": [c_char_p, POINTER(_HANDLE)],
    "working_set_find": [_HANDLE, POINTER(_HANDLE)],
    "working_set_free": [_HANDLE],
    "working_set_info": [_HANDLE, POINTER(WorkingSetProperties)],
    "working_set_window": [_HANDLE, c_size_t, POINTER(c_uint64), POINTER(c_uint64), POINTER(c_uint64)],
    "working_set_ranges": [_HANDLE, c_size_t, POINTER(Range), c_size_t, POINTER(c_size_t)],
    "working_set_merge": [POINTER(_HANDLE), c_size_t, c_size_t, POINTER(_HANDLE)],
    "working_set_save": [_HANDLE, c_char_p],
    "working_set_save_beside": [_HANDLE, _HANDLE],
}
RETURNS: dict[str, Any] = {
    "last_error": c_size_t,
    "last_error_kind": c_uint32,
    "last_fault_reason": c_uint32,
    "last_object": c_size_t,
    "last_lost_ranges": c_size_t,
    "abi_version": c_uint32,
    "version": c_char_p,
}


def _candidates() -> Iterator[str]:
    named = os.environ.get("SOFTFAULT_LIBRARY")
    if named:
        yield named
        return
    yield SONAME
    found = ctypes.util.find_library("softfault")
    if found:
        yield found
    # A build of the repository that this file is in.
    for profile in ("release", "debug"):
        built = Path(__file__).resolve().parents[3] / "target" / profile / "libsoftfault.so"
        if built.exists():
            yield str(built)


def _load() -> ctypes.CDLL:
    said = []
    for name in _candidates():
        try:
            # CDLL, not PyDLL: calls let go of the interpreter's lock, so that other threads run while one waits for pages.
            lib = ctypes.CDLL(name)
        except OSError as e:
            said.append(str(e))
            continue
        for function, takes in FUNCTIONS.items():
            f = getattr(lib, "softfault_" + function)
            f.argtypes = takes
            f.restype = RETURNS.get(function, c_int)
        if lib.softfault_abi_version() < ABI_VERSION:
            raise ImportError(f"{name} is older than this package")
        return lib
    raise ImportError("no libsoftfault.so: set SOFTFAULT_LIBRARY to its path (" + "; ".join(said) + ")")


LIB = _load()


def function(name: str) -> Any:
    return getattr(LIB, "softfault_" + name)
