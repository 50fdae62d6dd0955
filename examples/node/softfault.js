// softfault.h for Node, by koffi: files and memory larger than the cache they are seen through, as ArrayBuffers.
//
// A buffer keeps its arena: memory is not taken away from a typed array that is still reachable. close() frees an arena at
// once if no buffer was made, else when the last one has been collected.
//
// There are no stores in JavaScript: they would have to run on the thread that waits inside a load. System calls on buffers
// (fs.writeSync) fail with EFAULT where a page is not resident: pin() the range, or read() and write().
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const koffi = require('koffi');

const PROT_READ = 1, PROT_WRITE = 2, MAP_SHARED = 1, OBJECT_WRITABLE = 1, ERROR_FAULT = 7, PAGE = 4096;
const RUNTIME_LOCK_CACHE = 1, RUNTIME_REPORT_SIGNALS = 2, FAILURES = 64;

function load() {
    if (process.env.SOFTFAULT_LIBRARY)
        return koffi.load(process.env.SOFTFAULT_LIBRARY);
    // A build of the repository that this file is in, or an installed library.
    const built = path.join(__dirname, '../../target/release/libsoftfault.so');
    return koffi.load(fs.existsSync(built) ? built : 'libsoftfault.so.0.1');
}

const lib = load();

const RuntimeOptions = koffi.struct('softfault_runtime_options', {
    size: 'size_t', cache_limit_bytes: 'uint64_t', swap_path: 'const char *', swap_bytes: 'uint64_t',
    zswap_bytes: 'uint64_t', fillers: 'uint32_t', fill_window_pages: 'uint32_t', readahead_pages: 'uint32_t',
    dirty_background_percent: 'uint32_t', dirty_percent: 'uint32_t', exit_wait_ms: 'uint32_t',
    writeback_interval_ns: 'uint64_t', writeback_expire_ns: 'uint64_t', flags: 'uint32_t', reserved: 'uint32_t',
});
const ObjectOptions = koffi.struct('softfault_object_options', {
    size: 'size_t', flags: 'uint32_t', failure_policy: 'uint32_t', max_len_bytes: 'uint64_t',
    cache_limit_bytes: 'uint64_t', deadline_ns: 'uint64_t', retries: 'uint32_t', fill_window_pages: 'uint32_t',
    retry_backoff_ns: 'uint64_t', readahead_pages: 'uint32_t', reserved: 'uint32_t',
    label: 'const char *',
});
koffi.struct('softfault_fault', {
    cause: 'uint32_t', store_errno: 'int', object_offset: 'uint64_t', arena_offset: 'uint64_t',
});
const LastFailure = koffi.struct('softfault_failure', {
    number: 'uint64_t', op: 'uint32_t', cause: 'uint32_t', store_errno: 'int', reserved: 'uint32_t',
    object_offset: 'uint64_t', address: 'uint64_t', age_ns: 'uint64_t', object: koffi.array('char', 104, 'String'),
});

koffi.struct('softfault_image_failure', {
    cause: 'uint32_t', system_errno: 'int', file_offset: 'uint64_t', wanted: koffi.array('uint8_t', 32),
    found: koffi.array('uint8_t', 32),
});
const ImageProperties = koffi.struct('softfault_image_properties', {
    size: 'size_t', len_bytes: 'uint64_t', nr_regions: 'size_t', nr_keys: 'size_t', integrity: 'uint32_t', flags: 'uint32_t',
    file_digest: koffi.array('uint8_t', 32), content_digest: koffi.array('uint8_t', 32),
});
const WriterOptions = koffi.struct('softfault_image_writer_options', {
    size: 'size_t', flags: 'uint32_t', codec: 'uint32_t', level: 'int32_t', reserved: 'uint32_t', frame_bytes: 'size_t',
    parent: 'void *',
});
const RestoreOptions = koffi.struct('softfault_restore_options', {
    size: 'size_t', flags: 'uint32_t', reserved: 'uint32_t', arena: 'void *', overlays: 'void *', nr_overlays: 'size_t',
    record_window_ns: 'uint64_t', replay: 'void *',
});
const Progress = koffi.struct('softfault_progress', {
    size: 'size_t', pages: 'uint64_t', cached: 'uint64_t', native_extents: 'uint64_t', direct_extents: 'uint64_t', replayed: 'uint64_t',
    replay_ended: 'uint32_t', reserved: 'uint32_t',
});

// Handles are names, not addresses: BigInts.
const c = {};
for (const [name, prototype] of Object.entries({
    last_error: 'size_t softfault_last_error(_Out_ uint8_t *buf, size_t len)',
    last_error_kind: 'uint32_t softfault_last_error_kind()',
    last_fault_reason: 'uint32_t softfault_last_fault_reason()',
    last_fault: 'int softfault_last_fault(_Out_ softfault_fault *out)',
    last_object: 'size_t softfault_last_object(_Out_ uint8_t *buf, size_t len)',
    recent_failures: 'int softfault_runtime_recent_failures(void *runtime, _Out_ uint8_t *failures, size_t nr, _Out_ size_t *all)',
    runtime_new: 'int softfault_runtime_new(softfault_runtime_options *options, _Out_ void **out)',
    runtime_free: 'int softfault_runtime_free(void *runtime)',
    reinstall_handlers: 'int softfault_reinstall_handlers(void *runtime)',
    object_open: 'int softfault_object_open(void *runtime, const char *path, softfault_object_options *options, _Out_ void **out)',
    object_anonymous: 'int softfault_object_anonymous(void *runtime, uint64_t len, softfault_object_options *options, _Out_ void **out)',
    object_from_store: 'int softfault_object_from_store(void *runtime, uint64_t len, void *operations, void *ctx, softfault_object_options *options, _Out_ void **out)',
    object_free: 'int softfault_object_free(void *object)',
    object_len: 'int softfault_object_len(void *object, _Out_ uint64_t *len)',
    object_sync_all: 'int softfault_object_sync_all(void *object)',
    arena_new: 'int softfault_arena_new(void *runtime, size_t len, void *options, _Out_ void **out)',
    arena_free: 'int softfault_arena_free(void *arena)',
    arena_base: 'int softfault_arena_base(void *arena, _Out_ void **base)',
    arena_map_file: 'int softfault_arena_map_file(void *runtime, const char *path, softfault_object_options *options, _Out_ void **arena, _Out_ void **object)',
    arena_map: 'int softfault_arena_map(void *arena, size_t offset, void *object, uint64_t object_offset, size_t len, uint32_t prot, uint32_t sharing)',
    arena_read_at: 'int softfault_arena_read_at(void *arena, size_t offset, _Out_ uint8_t *buf, size_t len)',
    arena_write_at: 'int softfault_arena_write_at(void *arena, size_t offset, const uint8_t *buf, size_t len)',
    arena_fault_in: 'int softfault_arena_fault_in(void *arena, size_t offset, size_t len, uint32_t access)',
    arena_pin: 'int softfault_arena_pin(void *arena, size_t offset, size_t len, uint32_t access, _Out_ void **out)',
    pin_free: 'int softfault_pin_free(void *pin)',
    last_image_failure: 'int softfault_last_image_failure(_Out_ softfault_image_failure *out)',
    image_open: 'int softfault_image_open(void *runtime, const char *path, void *options, _Out_ void **out)',
    image_open_file: 'int softfault_image_open_file(const char *path, void *options, _Out_ void **out)',
    image_free: 'int softfault_image_free(void *image)',
    image_info: 'int softfault_image_info(void *image, _Inout_ softfault_image_properties *properties)',
    image_read_at: 'int softfault_image_read_at(void *image, uint64_t offset, _Out_ uint8_t *buf, size_t len)',
    image_verify: 'int softfault_image_verify(void *image, void *progress, void *ctx)',
    image_convert: 'int softfault_image_convert(void *image, const char *path, softfault_image_writer_options *options, void *digest)',
    restore: 'int softfault_restore(void *image, softfault_restore_options *options, _Out_ void **out)',
    session_free: 'int softfault_session_free(void *session)',
    session_find: 'int softfault_session_find(void *session, const char *name, _Out_ size_t *index)',
    session_region: 'int softfault_session_region(void *session, size_t index, _Out_ void **base, _Out_ size_t *len)',
    session_progress: 'int softfault_session_progress(void *session, _Inout_ softfault_progress *progress)',
    session_complete: 'int softfault_session_complete(void *session, void *completion)',
    stats_read: 'int softfault_stats_read(void *runtime, _Out_ void **out)',
    stats_free: 'int softfault_stats_free(void *stats)',
    stats_get: 'int softfault_stats_get(void *stats, const char *name, _Out_ uint64_t *value)',
}))
    c[name] = lib.func(prototype);

function text(write) {
    const words = Buffer.alloc(write(null, 0) + 1);
    write(words, words.length);
    return words.toString('utf8', 0, words.length - 1);
}

const UNKNOWN = 2n ** 64n - 1n;
const offset = (n) => (BigInt(n) === UNKNOWN ? null : Number(n));

/** Why, and where, a page could not be had, or was not written; null where the last failure was another. */
function lastFault() {
    const fault = {};
    if (c.last_fault(fault) !== 0)
        return null;
    return {
        cause: fault.cause, storeErrno: fault.store_errno, object: text(c.last_object),
        objectOffset: offset(fault.object_offset), arenaOffset: offset(fault.arena_offset),
    };
}

/** What is wrong with an image; null where the last failure was another. */
function lastImageFailure() {
    const failure = {};
    if (c.last_image_failure(failure) !== 0)
        return null;
    return { cause: failure.cause, file: text(c.last_object), offset: offset(failure.file_offset) };
}

/**
 * A call failed: `errno` (positive), `kind` (SOFTFAULT_ERROR_*), and words. If a page could not be had, `reason`
 * (SOFTFAULT_VM_FAULT_* bits); had or written, `fault`: { cause (SOFTFAULT_CAUSE_*), storeErrno (0: the store gave none),
 * object (its label or path), objectOffset, arenaOffset }, offsets null where there is none. If an image is not what it should be,
 * `image`: { cause (SOFTFAULT_IMAGE_CAUSE_*), file, offset }.
 */
class SoftfaultError extends Error {
    constructor(result) {
        super(text(c.last_error));
        this.kind = c.last_error_kind();
        this.fault = lastFault();
        this.image = lastImageFailure();
        this.name = 'SoftfaultError';
        this.errno = -result;
        this.reason = this.kind === ERROR_FAULT ? c.last_fault_reason() : 0;
    }
}

function call(name, ...args) {
    const result = c[name](...args);
    if (result !== 0)
        throw new SoftfaultError(result);
}

/** Calls, and returns what the last parameter got. */
function ask(name, ...args) {
    const out = [null];
    call(name, ...args, out);
    return out[0];
}

class Handle {
    constructor(handle, free) {
        this.handle = handle;
        this.free = free;
    }

    close() {
        const handle = this.handle;
        this.handle = null;
        if (handle !== null)
            call(this.free, handle);
    }
}

class Runtime extends Handle {
    /**
     * Limits are bytes. swap is { path, bytes }: where anonymous memory goes when the cache is full. lockCache: what is cached
     * is locked in memory (mlock); RLIMIT_MEMLOCK must permit it. reportSignals: a touch that becomes SIGBUS or SIGSEGV, which
     * ends the process, writes a line to standard error that says why.
     */
    constructor({ cacheLimit = 0, swap = null, lockCache = false, reportSignals = false } = {}) {
        const options = {
            size: koffi.sizeof(RuntimeOptions), cache_limit_bytes: cacheLimit, swap_path: swap?.path ?? null,
            swap_bytes: swap?.bytes ?? 0, zswap_bytes: 0, fillers: 0, fill_window_pages: 0, readahead_pages: 0,
            dirty_background_percent: 0, dirty_percent: 0, exit_wait_ms: 0, writeback_interval_ns: 0, writeback_expire_ns: 0,
            flags: (lockCache ? RUNTIME_LOCK_CACHE : 0) | (reportSignals ? RUNTIME_REPORT_SIGNALS : 0), reserved: 0,
        };
        super(ask('runtime_new', options), 'runtime_free');
    }

    open(file, { writable = false } = {}) {
        try {
            return new SoftfaultObject(ask('object_open', this.handle, file, objectOptions(writable)), 'object_free');
        } catch (e) {
            throw Object.assign(e, { path: file });
        }
    }

    /** Opens a file and maps it whole, as mmap(2) does: { arena, object }. Of an empty one nothing is mapped. */
    mapFile(file, { writable = false } = {}) {
        const [arena, object] = [[null], [null]];
        try {
            call('arena_map_file', this.handle, file, objectOptions(writable), arena, object);
        } catch (e) {
            throw Object.assign(e, { path: file });
        }
        const made = new SoftfaultObject(object[0], 'object_free');
        return { arena: Arena.over(arena[0], made, writable), object: made };
    }

    /** Opens an image of memory, of which sessions are restored. */
    openImage(file) {
        return Image.opened(file, () => ask('image_open', this.handle, file, null));
    }

    anonymous(length) {
        return new SoftfaultObject(ask('object_anonymous', this.handle, length, objectOptions(false)), 'object_free');
    }

    /** Over a store that is written in C: pointers to its softfault_store_operations, and to what they get as ctx. */
    fromStore(length, operations, ctx = null, { label = null, writable = false } = {}) {
        const options = { ...objectOptions(writable), label };
        return new SoftfaultObject(ask('object_from_store', this.handle, length, operations, ctx, options), 'object_free');
    }

    arena(length) {
        return new Arena(ask('arena_new', this.handle, length, null));
    }

    /** The last failures, oldest first: of stores, whoever was told. */
    recentFailures() {
        const last = Buffer.alloc(FAILURES * koffi.sizeof(LastFailure));
        const nr = Math.min(Number(ask('recent_failures', this.handle, last, FAILURES)), FAILURES);
        return koffi.decode(last, koffi.array(LastFailure, nr)).map((f) => ({
            number: Number(f.number), op: f.op, cause: f.cause, storeErrno: f.store_errno, object: f.object,
            objectOffset: Number(f.object_offset), address: BigInt(f.address), ageMs: Number(f.age_ns) / 1e6,
        }));
    }

    counter(name) {
        const stats = ask('stats_read', this.handle);
        try {
            return Number(ask('stats_get', stats, name));
        } finally {
            call('stats_free', stats);
        }
    }

    reinstallHandlers() {
        call('reinstall_handlers', this.handle);
    }
}

function objectOptions(writable) {
    return {
        size: koffi.sizeof(ObjectOptions), flags: writable ? OBJECT_WRITABLE : 0, failure_policy: 0, max_len_bytes: 0,
        cache_limit_bytes: 0, deadline_ns: 0, retries: 0, fill_window_pages: 0, retry_backoff_ns: 0, readahead_pages: 0,
        reserved: 0, label: null,
    };
}

class SoftfaultObject extends Handle {
    get length() {
        return Number(ask('object_len', this.handle));
    }

    /** Makes durable what was written before the call. */
    sync() {
        call('object_sync_all', this.handle);
    }
}

// What is left of an arena: how many buffers look at it, and whether it was closed.
const collected = new FinalizationRegistry((state) => {
    state.buffers--;
    release(state);
});

function release(state) {
    if (state.closed && state.buffers === 0 && state.handle !== null) {
        const handle = state.handle;
        state.handle = null;
        call(state.free ?? 'arena_free', handle);
    }
}

/** An image of memory. One that a runtime has opened can be restored; any can be read, verified and converted. */
class Image extends Handle {
    /** Opens an image without a runtime. */
    static open(file) {
        return Image.opened(file, () => ask('image_open_file', file, null));
    }

    static opened(file, open) {
        try {
            return new Image(open(), 'image_free');
        } catch (e) {
            throw Object.assign(e, { path: file });
        }
    }

    get length() {
        const info = { size: koffi.sizeof(ImageProperties) };
        for (const field of ['len_bytes', 'nr_regions', 'nr_keys', 'integrity', 'flags'])
            info[field] = 0;
        info.file_digest = info.content_digest = new Uint8Array(32);
        call('image_info', this.handle, info);
        return Number(info.len_bytes);
    }

    /** Returns a copy of bytes, verified, without a fault. */
    read(offset, length) {
        const bytes = new Uint8Array(length);
        call('image_read_at', this.handle, offset, bytes, length);
        return bytes;
    }

    /** Verifies everything that has digests; throws what is wrong, and where. */
    verify() {
        call('image_verify', this.handle, null, null);
    }

    /** Writes the same memory as one file that needs no other; codec: 0 raw, 1 LZ4. */
    convert(file, { codec = 1 } = {}) {
        const size = koffi.sizeof(WriterOptions);
        const options = { size, flags: 0, codec, level: 0, reserved: 0, frame_bytes: 0, parent: null };
        call('image_convert', this.handle, file, options, null);
    }

    /** Makes it memory again: filled and verified as it is touched, and private to the session. */
    restore({ atOriginalAddresses = false } = {}) {
        return new Session(ask('restore', this.handle, {
            size: koffi.sizeof(RestoreOptions), flags: atOriginalAddresses ? 1 : 0, reserved: 0, arena: null, overlays: null,
            nr_overlays: 0, record_window_ns: 0, replay: null,
        }));
    }
}

/** An image that is memory again. Buffers keep it. */
class Session {
    #state;

    constructor(handle) {
        this.#state = { handle, buffers: 0, closed: false, free: 'session_free' };
    }

    get #handle() {
        if (this.#state.closed)
            throw new TypeError('the session is closed');
        return this.#state.handle;
    }

    /** Frees the session when no buffer of it is left. */
    close() {
        this.#state.closed = true;
        release(this.#state);
    }

    /** Returns a region, by its name or its number, as an ArrayBuffer, which keeps the session. */
    buffer(region = 0) {
        const index = typeof region === 'string' ? Number(ask('session_find', this.#handle, region)) : region;
        const [base, length] = [[null], [null]];
        call('session_region', this.#handle, index, base, length);
        const buffer = koffi.view(base[0], Number(length[0]));
        this.#state.buffers++;
        collected.register(buffer, this.#state);
        return buffer;
    }

    /** Pages of the image that are in memory, for whichever session. */
    get cachedPages() {
        const progress = {
            size: koffi.sizeof(Progress), pages: 0, cached: 0, native_extents: 0, direct_extents: 0, replayed: 0,
            replay_ended: 0, reserved: 0,
        };
        call('session_progress', this.#handle, progress);
        return Number(progress.cached);
    }

    /** Makes all of it resident and verified. */
    complete() {
        call('session_complete', this.#handle, null);
    }
}

class Arena {
    #state;
    #mappings = [];

    constructor(handle) {
        this.#state = { handle, buffers: 0, closed: false };
    }

    get #handle() {
        if (this.#state.closed)
            throw new TypeError('the arena is closed');
        return this.#state.handle;
    }

    /** Frees the arena when no buffer of it is left. */
    close() {
        this.#state.closed = true;
        release(this.#state);
    }

    /** Maps an object's bytes (default: all) at offset; writable, stores reach the object. */
    map(object, { offset = 0, objectOffset = 0, length = object.length - objectOffset, writable = false } = {}) {
        const prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
        call('arena_map', this.#handle, offset, object.handle, objectOffset, length, prot, MAP_SHARED);
        this.#note(object, offset, objectOffset, length, writable);
    }

    // An arena that was made with a whole object in it.
    static over(handle, object, writable) {
        const arena = new Arena(handle);
        if (object.length > 0)
            arena.#note(object, 0, 0, object.length, writable);
        return arena;
    }

    #note(object, offset, objectOffset, length, writable) {
        // Bytes past the object's end are zeros in its last page, and SIGBUS after it.
        const end = Math.min(length, Math.ceil((object.length - objectOffset) / PAGE) * PAGE);
        this.#mappings.push({ start: offset, end: offset + end, writable });
    }

    /**
     * Returns the bytes as an ArrayBuffer, which keeps the arena. JavaScript has no read-only buffers: storing to one of a
     * mapping that is not writable is SIGSEGV, and ends the process.
     */
    buffer(offset = 0, length = undefined) {
        const handle = this.#handle;
        const mapping = this.#mappings.find((m) => m.start <= offset && offset < m.end);
        length ??= mapping === undefined ? 0 : mapping.end - offset;
        if (mapping === undefined || length <= 0 || offset + length > mapping.end)
            throw new RangeError(`${offset}..${offset + length} is not in one mapping`);
        const buffer = koffi.view(ask('arena_base', handle) + BigInt(offset), length);
        this.#state.buffers++;
        collected.register(buffer, this.#state);
        return buffer;
    }

    /** Returns a copy; throws where touching the bytes would be a signal. */
    read(offset, length) {
        const bytes = new Uint8Array(length);
        call('arena_read_at', this.#handle, offset, bytes, length);
        return bytes;
    }

    write(offset, bytes) {
        call('arena_write_at', this.#handle, offset, bytes, bytes.length);
    }

    /** Makes the range resident, for as long as there is room; throws where touching it would be a signal. */
    faultIn(offset, length, { writable = false } = {}) {
        call('arena_fault_in', this.#handle, offset, length, writable ? 1 : 0);
    }

    /** Keeps the range resident until the pin is closed. */
    pin(offset, length, { writable = false } = {}) {
        return new Handle(ask('arena_pin', this.#handle, offset, length, writable ? 1 : 0), 'pin_free');
    }
}

module.exports = { Image, Runtime, SoftfaultError };
