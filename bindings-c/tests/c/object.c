/* Objects: files, anonymous memory; their bytes, cache, durability. */
#include "env.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* In one call, as mmap(2). */
static void map_whole(softfault_runtime *rt, const char *path)
{
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    softfault_arena *arena = NULL, *again = NULL;
    softfault_object *object = NULL;
    unsigned char *base;
    void *address;
    char label[512];
    size_t size;
    uint64_t len;

    FAILS(softfault_arena_map_file(rt, "/does/not/exist", NULL, &arena, &object), ENOENT, IO, "FileOptions::open");
    FAILS(softfault_arena_map_file(rt, path, NULL, NULL, &object), EINVAL, ARGUMENT, "arena is NULL");
    FAILS(softfault_arena_map_file(rt, path, NULL, &arena, NULL), EINVAL, ARGUMENT, "object is NULL");
    FAILS(softfault_arena_map_object(rt, NULL, &again), EINVAL, HANDLE, "NULL");
    CHECK(arena == NULL && object == NULL && again == NULL);
    OK(softfault_arena_map_file(rt, path, NULL, &arena, &object));
    OK(softfault_object_len(object, &len));
    OK(softfault_object_label(object, label, sizeof label, &size));
    CHECK_IS(strcmp(label, path), 0);
    CHECK_IS(size, strlen(path));
    OK(softfault_object_label(object, label, 3, NULL));
    CHECK_IS(strncmp(label, path, 2), 0);
    CHECK_IS(label[2], 0);
    FAILS(softfault_object_label(NULL, label, sizeof label, &size), EINVAL, HANDLE, "NULL");
    OK(softfault_arena_base(arena, &address));
    base = address;
    CHECK_IS(len, 10000);
    CHECK(is_pattern(base, 0, 10000));
    OK(softfault_arena_map_object(rt, object, &again));
    OK(softfault_arena_base(again, &address));
    CHECK(is_pattern(address, 0, 10000));
    FAILS(softfault_arena_map_object(rt, object, NULL), EINVAL, ARGUMENT, "arena is NULL");
    OK(softfault_arena_free(again));
    OK(softfault_object_free(object));
    CHECK(is_pattern(base, 0, 10000));
    OK(softfault_arena_free(arena));
    OK(softfault_arena_map_file(rt, path, &options, &arena, &object));
    OK(softfault_arena_base(arena, &address));
    base = address;
    base[77] = base[77];
    OK(softfault_object_sync_all(object));
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
}

void test_object(void)
{
    softfault_runtime *rt = new_runtime(512);
    softfault_object *object = NULL, *rw;
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    unsigned char buf[3 * 4096];
    const char *path;
    uint64_t len;
    size_t n;
    int fd;

    FAILS(softfault_object_open(rt, "/does/not/exist", NULL, &object), ENOENT, IO, "FileOptions::open");
    FAILS(softfault_object_open(rt, NULL, NULL, &object), EINVAL, ARGUMENT, "path is NULL");
    FAILS(softfault_object_open(rt, "/", NULL, NULL), EINVAL, ARGUMENT, "out is NULL");
    CHECK(object == NULL);
    path = make_file("object", 10000);
    OK(softfault_object_open(rt, path, NULL, &object));
    OK(softfault_object_len(object, &len));
    CHECK_IS(len, 10000);
    FAILS(softfault_object_len(object, NULL), EINVAL, ARGUMENT, "len_bytes is NULL");
    OK(softfault_object_read_at(object, 100, buf, sizeof buf, &n));
    CHECK_IS(n, 9900);
    CHECK(is_pattern(buf, 100, n));
    OK(softfault_object_read_at(object, 20000, buf, 1, &n));
    CHECK_IS(n, 0);
    OK(softfault_object_read_at(object, 0, NULL, 0, NULL));
    FAILS(softfault_object_read_at(object, 0, NULL, 1, NULL), EINVAL, ARGUMENT, "buffer is NULL");
    FAILS(softfault_object_read_at(object, 0, buf, SIZE_MAX, NULL), EINVAL, ARGUMENT, "leaves the address space");
    FAILS(softfault_object_read_at(object, UINT64_MAX, buf, 2, NULL), EINVAL, ARGUMENT, "larger than 64 bits");
    FAILS(softfault_object_write_at(object, 0, buf, 1, NULL), EACCES, DENIED, "writable");
    OK(softfault_object_free(object));
    FAILS(softfault_object_len(object, &len), EBADF, HANDLE, "freed");
    map_whole(rt, path);

    options.max_len_bytes = 1 << 20;
    options.flags |= SOFTFAULT_OBJECT_DIRECT;
    OK(softfault_object_open(rt, path, &options, &rw));
    OK(softfault_object_write_at(rw, 9000, "0123456789", 10, &n));
    CHECK_IS(n, 10);
    OK(softfault_object_write_at(rw, 9999, "ab", 2, &n));
    CHECK_IS(n, 1);
    FAILS(softfault_object_write_at(rw, 0, NULL, 1, NULL), EINVAL, ARGUMENT, "NULL");
    OK(softfault_object_set_len(rw, 5 * PAGE));
    OK(softfault_object_len(rw, &len));
    CHECK_IS(len, 5 * PAGE);
    OK(softfault_object_read_at(rw, 4 * PAGE, buf, 1, NULL));
    CHECK_IS(buf[0], 0);
    FAILS(softfault_object_set_len(rw, 1ull << 40), EINVAL, ARGUMENT, "past the maximal length");
    OK(softfault_object_sync_all(rw));
    OK(softfault_object_free(rw));

    fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    OK(pread(fd, buf, 10, 9000) == 10 && memcmp(buf, "0123456789", 10) == 0 ? 0 : 1);
    options.flags = SOFTFAULT_OBJECT_WRITABLE;
    OK(softfault_object_from_fd(rt, fd, &options, &rw));
    OK(close(fd));
    OK(softfault_object_read_at(rw, 9000, buf, 10, &n));
    CHECK(memcmp(buf, "0123456789", 10) == 0);
    OK(softfault_object_free(rw));
    FAILS(softfault_object_from_fd(rt, fd, NULL, &rw), EBADF, IO, "fd");
    FAILS(softfault_object_from_fd(rt, -1, NULL, &rw), EBADF, IO, "no descriptor");
    fd = open(path, O_WRONLY);
    FAILS(softfault_object_from_fd(rt, fd, NULL, &object), EACCES, DENIED, "not open for reading");
    OK(close(fd));
    fd = open(path, O_RDONLY);
    FAILS(softfault_object_from_fd(rt, fd, &options, &object), EACCES, DENIED, "not open for reading and writing");
    OK(close(fd));

    OK(softfault_object_anonymous(rt, PAGE, NULL, &rw));
    OK(softfault_object_read_at(rw, 0, buf, PAGE, &n));
    CHECK(n == PAGE && buf[0] == 0 && memcmp(buf, buf + 1, PAGE - 1) == 0);
    OK(softfault_object_free(rw));
    FAILS(softfault_object_anonymous(rt, UINT64_MAX, NULL, &rw), EINVAL, ARGUMENT, "larger than the address space");
    FAILS(softfault_object_anonymous(rt, PAGE, NULL, NULL), EINVAL, ARGUMENT, "out is NULL");
    OK(softfault_runtime_free(rt));
}

/* Whether another process finds the file locked. */
static int is_locked(const char *path)
{
    int status = -1;
    pid_t child = fork();

    if (child == 0) {
        struct flock lock = {.l_type = F_WRLCK};
        int fd = open(path, O_RDWR);
        _exit(fd < 0 || fcntl(fd, F_GETLK, &lock) != 0 ? 2 : lock.l_type != F_UNLCK);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    CHECK(WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status);
}

/* Files are shared: with other handles, with the program's own locks, with whoever moves their end. */
void test_files(void)
{
    softfault_runtime *rt = new_runtime(512), *other = new_runtime(512);
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    softfault_object_options direct = {.size = sizeof direct, .flags = SOFTFAULT_OBJECT_WRITABLE | SOFTFAULT_OBJECT_DIRECT};
    softfault_object *object, *again;
    struct flock lock = {.l_type = F_WRLCK};
    const char *path = make_file("files", 4 * PAGE);
    struct rlimit limit, low;
    uint64_t len;
    unsigned char byte;
    int fd = open(path, O_RDWR);

    CHECK(fd >= 0);
    OK(fcntl(fd, F_SETLK, &lock));
    CHECK(is_locked(path));
    OK(softfault_object_from_fd(rt, fd, NULL, &object));
    CHECK(is_locked(path));
    OK(softfault_object_open(other, path, &options, &again));
    CHECK(is_locked(path));

    /* One object; each handle has its own rights. */
    byte = 251;
    OK(softfault_object_write_at(again, 3, &byte, 1, NULL));
    byte = 0;
    OK(softfault_object_read_at(object, 3, &byte, 1, NULL));
    CHECK_IS(byte, 251);
    FAILS(softfault_object_write_at(object, 3, &byte, 1, NULL), EACCES, DENIED, "not made writable");
    FAILS(softfault_object_open(rt, path, &direct, &object), EBUSY, CONFLICT, "another direct");
    CHECK(is_locked(path));

    /* Given to the file, and not flushed. */
    OK(softfault_object_write_back(object, 0, PAGE));
    OK(pread(fd, &byte, 1, 3) == 1 && byte == 251 ? 0 : 1);

    /* Others append and cut. */
    OK(ftruncate(fd, 6 * PAGE));
    OK(softfault_object_follow_len(object, &len));
    CHECK_IS(len, 6 * PAGE);
    OK(ftruncate(fd, PAGE));
    OK(softfault_object_follow_len(again, NULL));
    OK(softfault_object_len(object, &len));
    CHECK_IS(len, PAGE);
    OK(ftruncate(fd, 4 * EXTENT));
    FAILS(softfault_object_follow_len(again, &len), EINVAL, ARGUMENT, "longer than the maximal length");
    OK(softfault_object_free(object));
    OK(softfault_object_free(again));
    CHECK(is_locked(path));
    options.flags |= SOFTFAULT_OBJECT_GROWABLE;
    OK(softfault_object_from_fd(rt, fd, &options, &object));
    OK(softfault_object_set_len(object, 64 * EXTENT));
    OK(softfault_object_free(object));
    OK(softfault_object_anonymous(rt, PAGE, NULL, &object));
    FAILS(softfault_object_follow_len(object, &len), EACCES, DENIED, "only a file");
    OK(softfault_object_free(object));
    OK(close(fd));
    CHECK(!is_locked(path));

    FAILS(softfault_object_open(rt, "/", NULL, &object), ENODEV, FILE_TYPE, "a directory");
    FAILS(softfault_object_open(rt, "/dev/zero", NULL, &object), ENODEV, FILE_TYPE, "a character device");
    FAILS(softfault_object_open(rt, "/proc/self/status", NULL, &object), ENODEV, FILE_TYPE, "procfs");

    OK(getrlimit(RLIMIT_NOFILE, &limit));
    low = limit;
    low.rlim_cur = 3;
    OK(setrlimit(RLIMIT_NOFILE, &low));
    FAILS(softfault_object_open(rt, path, NULL, &object), EMFILE, LIMIT, "RLIMIT_NOFILE");
    OK(setrlimit(RLIMIT_NOFILE, &limit));
    OK(softfault_runtime_free(rt));
    OK(softfault_runtime_free(other));
}

void test_cache(void)
{
    softfault_runtime *rt = new_runtime(2048);
    softfault_object_options options = {.size = sizeof options};
    softfault_object *object, *plain;
    struct memory_store store;
    uint64_t n, kept;
    bool cached;
    unsigned char byte;

    memory_store_init(&store, 4 * EXTENT);
    options.cache_limit_bytes = 4 * EXTENT;
    options.flags = SOFTFAULT_OBJECT_HUGE_PAGES;
    options.readahead_pages = SOFTFAULT_OFF;
    OK(softfault_object_from_store(rt, store.len, &memory_operations, &store, &options, &object));
    OK(softfault_object_is_cached(object, 0, &cached));
    CHECK(!cached);
    FAILS(softfault_object_is_cached(object, 0, NULL), EINVAL, ARGUMENT, "cached is NULL");
    OK(softfault_object_populate(object, 0, EXTENT));
    OK(softfault_object_is_cached(object, EXTENT - 1, &cached));
    CHECK(cached);
    OK(softfault_object_cached_pages(object, &n));
    CHECK(n >= 512);
    FAILS(softfault_object_cached_pages(object, NULL), EINVAL, ARGUMENT, "pages is NULL");
    FAILS(softfault_object_populate(object, UINT64_MAX, 1), EINVAL, ARGUMENT, "larger than 64 bits");
    OK(softfault_object_collapse(object, 0, EXTENT, &n));
    CHECK(n <= 1); /* the kernel may have no huge page */
    OK(softfault_object_collapse(object, 0, EXTENT, NULL));
    FAILS(softfault_object_collapse(object, 1, UINT64_MAX, NULL), EINVAL, ARGUMENT, "larger than 64 bits");

    OK(softfault_object_evict(object, 0, EXTENT, &n));
    OK(softfault_object_cached_pages(object, &kept));
    CHECK_IS(kept, 0);
    CHECK(n >= 512);
    OK(softfault_object_evict(object, 0, EXTENT, NULL));
    FAILS(softfault_object_evict(object, 2, UINT64_MAX, NULL), EINVAL, ARGUMENT, "larger than 64 bits");

    OK(softfault_object_advise(object, 0, 4 * PAGE, SOFTFAULT_ADVICE_POPULATE_READ));
    OK(softfault_object_cached_pages(object, &n));
    CHECK(n >= 4);
    OK(softfault_object_advise(object, 0, 4 * PAGE, SOFTFAULT_ADVICE_PAGEOUT));
    OK(softfault_object_is_cached(object, 0, &cached));
    CHECK(!cached);
    OK(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_NORMAL));
    OK(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_RANDOM));
    OK(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_SEQUENTIAL));
    OK(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_WILLNEED));
    OK(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_DONTNEED));
    OK(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_COLD));
    FAILS(softfault_object_advise(object, 0, PAGE, SOFTFAULT_ADVICE_POPULATE_WRITE), EACCES, DENIED, "writable");
    FAILS(softfault_object_advise(object, 0, PAGE, 99), EINVAL, ARGUMENT, "advice is 99");

    /* The store changes behind our back. */
    OK(softfault_object_read_at(object, 0, &byte, 1, NULL));
    CHECK_IS(byte, pattern(0));
    store.bytes[0] = 200;
    OK(softfault_object_invalidate(object, 0, PAGE, &n, &kept));
    CHECK_IS(kept, 0);
    CHECK(n >= 1);
    OK(softfault_object_read_at(object, 0, &byte, 1, NULL));
    CHECK_IS(byte, 200);
    OK(softfault_object_invalidate(object, 0, PAGE, NULL, NULL));
    FAILS(softfault_object_invalidate(object, 2, UINT64_MAX, NULL, NULL), EINVAL, ARGUMENT, "larger than 64 bits");

    /* A page that the store cannot give is poisoned; it heals. */
    store.read_fails = -EIO;
    FAILS(softfault_object_read_at(object, 3 * EXTENT, &byte, 1, NULL), EIO, FAULT, "Object::read_at: reading byte 0x600000");
    CHECK_IS(softfault_last_fault_reason() & SOFTFAULT_VM_FAULT_SIGBUS, SOFTFAULT_VM_FAULT_SIGBUS);
    store.read_fails = -EBADMSG;
    FAILS(softfault_object_populate(object, 3 * EXTENT + PAGE, PAGE), EHWPOISON, FAULT, "0x601000");
    CHECK_IS(softfault_last_fault_reason() & SOFTFAULT_VM_FAULT_HWPOISON, SOFTFAULT_VM_FAULT_HWPOISON);
    store.read_fails = -ENOMEM;
    FAILS(softfault_object_populate(object, 3 * EXTENT + 2 * PAGE, PAGE), ENOMEM, FAULT, "0x602000");
    store.read_fails = 0;
    OK(softfault_object_heal(object, 3 * EXTENT, EXTENT, &n));
    CHECK(n >= 1);
    OK(softfault_object_heal(object, 3 * EXTENT, EXTENT, NULL));
    FAILS(softfault_object_heal(object, 2, UINT64_MAX, NULL), EINVAL, ARGUMENT, "larger than 64 bits");
    OK(softfault_object_read_at(object, 3 * EXTENT, &byte, 1, NULL));
    CHECK_IS(byte, pattern(3 * EXTENT));

    OK(softfault_object_set_cache_limit(object, 64 * PAGE));
    OK(softfault_object_anonymous(rt, PAGE, NULL, &plain));
    FAILS(softfault_object_set_cache_limit(plain, 64 * PAGE), EACCES, DENIED, "without a limit of its own");
    OK(softfault_object_free(plain));
    FAILS(softfault_object_punch_hole(object, 0, PAGE), EACCES, DENIED, "writable");
    CHECK_IS(store.drops, 0);
    OK(softfault_object_free(object));
    CHECK_IS(store.drops, 1);
    free(store.bytes);
    OK(softfault_runtime_free(rt));
}

void test_sync(void)
{
    softfault_runtime_options ro = {.size = sizeof ro, .cache_limit_bytes = 1024 * PAGE};
    softfault_runtime *rt;
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    softfault_object *object;
    softfault_held *held, *again;
    softfault_range range, ranges[4];
    struct memory_store store;
    unsigned char byte = 77;
    size_t n;

    /* Nothing is written back but by us. */
    ro.writeback_interval_ns = ro.writeback_expire_ns = 3600ull * 1000 * 1000 * 1000;
    OK(softfault_runtime_new(&ro, &rt));
    memory_store_init(&store, 64 * PAGE);
    OK(softfault_object_from_store(rt, store.len, &memory_operations, &store, &options, &object));
    OK(softfault_object_write_at(object, 5 * PAGE, &byte, 1, NULL));
    OK(softfault_object_sync(object, 5 * PAGE, PAGE));
    CHECK_IS(store.bytes[5 * PAGE], 77);
    CHECK(store.flushes > 0);
    FAILS(softfault_object_write_back(object, 2, UINT64_MAX), EINVAL, ARGUMENT, "larger than 64 bits");
    FAILS(softfault_object_sync(object, 2, UINT64_MAX), EINVAL, ARGUMENT, "larger than 64 bits");
    OK(softfault_object_barrier(object));

    /* Held pages stay. */
    OK(softfault_object_hold_dirty(object, 0, PAGE, &held));
    OK(softfault_held_range(held, &range));
    CHECK(range.start == 0 && range.end == PAGE);
    FAILS(softfault_held_range(held, NULL), EINVAL, ARGUMENT, "range is NULL");
    FAILS(softfault_object_hold_dirty(object, 0, PAGE, &again), EBUSY, HELD, "held dirty");
    FAILS(softfault_object_hold_dirty(object, 0, PAGE, NULL), EINVAL, ARGUMENT, "out is NULL");
    OK(softfault_object_write_at(object, 0, &byte, 1, NULL));
    FAILS(softfault_object_sync_all(object), EBUSY, HELD, "0x0..0x1000");
    OK(softfault_object_barrier(object));
    CHECK_IS(store.bytes[0], pattern(0));
    OK(softfault_held_free(held));
    FAILS(softfault_held_range(held, &range), EBADF, HANDLE, "freed");
    OK(softfault_object_sync_all(object));
    CHECK_IS(store.bytes[0], 77);

    /* A store that takes nothing, or forgets. */
    OK(softfault_object_write_at(object, 8 * PAGE, &byte, 1, NULL));
    store.write_fails = -EIO;
    FAILS(softfault_object_sync_all(object), EIO, WRITEBACK, "0x8000..0x9000");
    store.write_fails = 0;
    store.flush_fails = -ENOSPC;
    FAILS(softfault_object_sync_all(object), ENOSPC, FLUSH, "flushing the store of");
    store.flush_fails = 0;
    OK(softfault_object_sync_all(object));
    CHECK_IS(softfault_object_lost(object, NULL, 0, &n), 0);
    CHECK_IS(n, 0);

    /* Written, gone from the cache, and then the flush fails: lost. */
    OK(softfault_object_write_at(object, 9 * PAGE, &byte, 1, NULL));
    OK(softfault_object_advise(object, 9 * PAGE, PAGE, SOFTFAULT_ADVICE_PAGEOUT));
    store.flush_fails = -EIO;
    CHECK(softfault_object_sync_all(object) < 0);
    store.flush_fails = 0;
    FAILS(softfault_object_sync_all(object), EIO, LOST, "write them again");
    CHECK_IS(softfault_last_lost_ranges(ranges, 4), 1);
    CHECK(ranges[0].start == 9 * PAGE && ranges[0].end == 10 * PAGE);
    CHECK_IS(softfault_last_lost_ranges(NULL, 0), 1);
    OK(softfault_object_lost(object, ranges, 4, &n));
    CHECK_IS(n, 1);
    CHECK(ranges[0].start == 9 * PAGE && ranges[0].end == 10 * PAGE);
    FAILS(softfault_object_lost(object, NULL, 4, &n), EINVAL, ARGUMENT, "ranges is NULL");
    FAILS(softfault_object_forget_lost(object, 2, UINT64_MAX), EINVAL, ARGUMENT, "larger than 64 bits");
    OK(softfault_object_forget_lost(object, 9 * PAGE, PAGE));
    OK(softfault_object_sync_all(object));
    CHECK_IS(softfault_last_lost_ranges(NULL, 0), 0); /* the last failure was another one */

    OK(softfault_object_punch_hole(object, 0, 2 * PAGE));
    CHECK(store.punches > 0);
    OK(softfault_object_read_at(object, 0, &byte, 1, NULL));
    CHECK_IS(byte, 0);
    FAILS(softfault_object_punch_hole(object, 2, UINT64_MAX), EINVAL, ARGUMENT, "larger than 64 bits");
    OK(softfault_object_set_len(object, 32 * PAGE));
    CHECK(store.set_lens > 0);

    OK(softfault_object_free(object));
    CHECK_IS(store.drops, 1);
    FAILS(softfault_object_sync_all(object), EBADF, HANDLE, "freed");
    FAILS(softfault_object_barrier(object), EBADF, HANDLE, "freed");
    free(store.bytes);
    OK(softfault_runtime_free(rt));
}
