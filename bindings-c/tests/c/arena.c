/* Arenas: mapping, touching, calls on ranges, pins. */
#include "env.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static const uint32_t RW = SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE;

/* What all calls on ranges refuse. */
static void bad_ranges(softfault_arena *arena, softfault_object *object, size_t len)
{
    FAILS(softfault_arena_unmap(arena, 1, PAGE), EINVAL, ARGUMENT, "range.start is 0x1");
    FAILS(softfault_arena_unmap(arena, 0, 1), EINVAL, ARGUMENT, "multiple of the page size");
    FAILS(softfault_arena_unmap(arena, 0, 0), EINVAL, ARGUMENT, "behind range.start");
    FAILS(softfault_arena_unmap(arena, 0, len + PAGE), EINVAL, ARGUMENT, "outside the arena");
    FAILS(softfault_arena_unmap(arena, SIZE_MAX - 4095, PAGE), EINVAL, ARGUMENT, "larger than 64 bits");
    FAILS(softfault_arena_unmap(NULL, 0, PAGE), EINVAL, HANDLE, "NULL");
    FAILS(softfault_arena_protect(arena, 0, 0, RW), EINVAL, ARGUMENT, "range.end");
    FAILS(softfault_arena_protect(arena, 0, PAGE, SOFTFAULT_PROT_WRITE), EINVAL, ARGUMENT, "prot is 2");
    FAILS(softfault_arena_advise(arena, 0, PAGE, 77), EINVAL, ARGUMENT, "advice is 77");
    FAILS(softfault_arena_advise(arena, 1, PAGE, SOFTFAULT_ADVICE_COLD), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_fault_in(arena, 0, PAGE, 2), EINVAL, ARGUMENT, "access is 2");
    FAILS(softfault_arena_fault_in(arena, 1, PAGE, 0), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_zap(arena, 1, PAGE), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_promote(arena, 1, PAGE, NULL), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_demote(arena, 1, PAGE, NULL), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_map(arena, 1, object, 0, PAGE, RW, SOFTFAULT_MAP_SHARED), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_map(arena, 0, object, 1, PAGE, RW, SOFTFAULT_MAP_SHARED), EINVAL, ARGUMENT, "object_offset");
    FAILS(softfault_arena_map(arena, 0, object, 0, PAGE, 5, SOFTFAULT_MAP_SHARED), EINVAL, ARGUMENT, "prot is 5");
    FAILS(softfault_arena_map(arena, 0, object, 0, PAGE, RW, 3), EINVAL, ARGUMENT, "sharing is 3");
    FAILS(softfault_arena_map(arena, 0, NULL, 0, PAGE, RW, SOFTFAULT_MAP_SHARED), EINVAL, HANDLE, "softfault_object");
    FAILS(softfault_arena_replace(arena, 1, object, 0, PAGE, RW, SOFTFAULT_MAP_SHARED), EINVAL, ARGUMENT, "Arena::replace");
    FAILS(softfault_arena_replace(arena, 0, object, 0, PAGE, 5, SOFTFAULT_MAP_SHARED), EINVAL, ARGUMENT, "prot is 5");
    FAILS(softfault_arena_replace(arena, 0, object, 0, PAGE, RW, 3), EINVAL, ARGUMENT, "sharing is 3");
    FAILS(softfault_arena_replace(arena, 0, NULL, 0, PAGE, RW, SOFTFAULT_MAP_SHARED), EINVAL, HANDLE, "softfault_object");
    FAILS(softfault_arena_map(arena, 0, object, UINT64_MAX & ~4095ull, PAGE, RW, SOFTFAULT_MAP_SHARED), EINVAL, ARGUMENT, "");
}

void test_arena(void)
{
    softfault_runtime *rt = new_runtime(4096);
    softfault_object *file, *object;
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    softfault_arena *arena = NULL, *second;
    softfault_arena_options ao = {.size = sizeof ao, .flags = SOFTFAULT_ARENA_KERNEL_ACCESS};
    unsigned char *base, buf[2 * 4096];
    void *p;
    size_t len, nr;
    uint32_t mode, kernel;
    const char *path;
    int fd;

    FAILS(softfault_arena_new(rt, 0, NULL, &arena), EINVAL, ARGUMENT, "len_bytes");
    FAILS(softfault_arena_new(rt, SIZE_MAX, NULL, &arena), EINVAL, ARGUMENT, "len_bytes");
    FAILS(softfault_arena_new(rt, PAGE, NULL, NULL), EINVAL, ARGUMENT, "out is NULL");
    FAILS(softfault_arena_new(NULL, PAGE, NULL, &arena), EINVAL, HANDLE, "NULL");
    if (softfault_runtime_kernel_access_delivery(rt, &kernel) == 0) {
        OK(softfault_arena_new(rt, PAGE, &ao, &arena));
        OK(softfault_arena_delivery(arena, &mode));
        CHECK_IS(mode, kernel);
        OK(softfault_arena_free(arena));
    } else {
        CHECK_IS(softfault_arena_new(rt, PAGE, &ao, &arena), -EOPNOTSUPP);
    }
    ao.delivery = SOFTFAULT_DELIVERY_SEGV;
    FAILS(softfault_arena_new(rt, PAGE, &ao, &arena), EOPNOTSUPP, DELIVERY, "kernel_access needs Monitor");

    ao = (softfault_arena_options){.size = sizeof ao, .delivery = env.delivery, .address = (void *)4096};
    FAILS(softfault_arena_new(rt, PAGE, &ao, &arena), EINVAL, ARGUMENT, "multiple of 2 MiB");

    arena = new_arena(rt, 8 * EXTENT - 1, 0, &base);
    ao.address = base;
    FAILS(softfault_arena_new(rt, PAGE, &ao, &second), EEXIST, OCCUPIED, "in use");
    OK(softfault_arena_free(arena));
    OK(softfault_arena_new(rt, 8 * EXTENT - 1, &ao, &arena));
    OK(softfault_arena_base(arena, &p));
    CHECK(p == base);
    OK(softfault_arena_len(arena, &len));
    CHECK_IS(len, 8 * EXTENT);
    FAILS(softfault_arena_len(arena, NULL), EINVAL, ARGUMENT, "len_bytes is NULL");
    FAILS(softfault_arena_base(arena, NULL), EINVAL, ARGUMENT, "base is NULL");
    OK(softfault_arena_delivery(arena, &mode));
    CHECK(mode != SOFTFAULT_DELIVERY_AUTO);
    CHECK(env.delivery == SOFTFAULT_DELIVERY_AUTO || mode == env.delivery);
    FAILS(softfault_arena_delivery(arena, NULL), EINVAL, ARGUMENT, "mode is NULL");

    path = make_file("arena", 2 * EXTENT + 100);
    OK(softfault_object_open(rt, path, NULL, &file));
    OK(softfault_object_open(rt, path, &options, &object));
    bad_ranges(arena, object, len);

    OK(softfault_arena_map(arena, 0, file, 0, 2 * EXTENT + 100, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED));
    FAILS(softfault_arena_map(arena, PAGE, file, 0, PAGE, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED), EEXIST, OCCUPIED,
          "0x0..0x401000");
    FAILS(softfault_arena_map(arena, 4 * EXTENT, file, 0, PAGE, RW, SOFTFAULT_MAP_SHARED), EACCES, DENIED, "writable");

    /* Faults leave errno alone. */
    errno = 12345;
    CHECK(is_pattern(base, 0, 2 * EXTENT + 100));
    CHECK_IS(base[2 * EXTENT + 101], 0);
    CHECK_IS(errno, 12345);
    CHECK_IS(load_signal(base + 2 * EXTENT + PAGE), SIGSEGV); /* nothing is mapped there */
    CHECK_IS(store_signal(base, 1), SIGSEGV);

    OK(softfault_arena_read_at(arena, PAGE - 1, buf, PAGE));
    CHECK(is_pattern(buf, PAGE - 1, PAGE));
    FAILS(softfault_arena_read_at(arena, 3 * EXTENT, buf, 1), ENXIO, NOT_MAPPED, "0x600000..0x600001");
    FAILS(softfault_arena_read_at(arena, SIZE_MAX, buf, 2), EINVAL, ARGUMENT, "leaves the arena");
    FAILS(softfault_arena_read_at(arena, 0, NULL, 2), EINVAL, ARGUMENT, "NULL");
    FAILS(softfault_arena_write_at(arena, 0, buf, 2), EACCES, DENIED, "does not permit stores");
    FAILS(softfault_arena_write_at(arena, 0, NULL, 2), EINVAL, ARGUMENT, "NULL");

    /* Private stores stay private. */
    OK(softfault_arena_map(arena, 4 * EXTENT, file, 0, PAGE, RW, SOFTFAULT_MAP_PRIVATE));
    base[4 * EXTENT] = 99;
    CHECK_IS(base[4 * EXTENT], 99);
    CHECK_IS(base[0], pattern(0));
    FAILS(softfault_arena_zap(arena, 4 * EXTENT, PAGE), EACCES, DENIED, "private");
    OK(softfault_arena_write_at(arena, 4 * EXTENT + 1, "x", 1));
    CHECK_IS(base[4 * EXTENT + 1], 'x');

    /* Shared ones reach the file. */
    OK(softfault_arena_map(arena, 5 * EXTENT, object, 0, EXTENT, RW, SOFTFAULT_MAP_SHARED));
    base[5 * EXTENT + 7] = 201;
    OK(softfault_arena_write_at(arena, 5 * EXTENT + 8, "y", 1));
    OK(softfault_object_sync_all(object));
    fd = open(path, O_RDONLY);
    CHECK_IS(pread(fd, buf, 2, 7), 2);
    CHECK(buf[0] == 201 && buf[1] == 'y');
    OK(close(fd));

    OK(softfault_arena_protect(arena, 5 * EXTENT, PAGE, SOFTFAULT_PROT_READ));
    CHECK_IS(store_signal(base + 5 * EXTENT, 1), SIGSEGV);
    CHECK_IS(base[5 * EXTENT + 7], 201);
    OK(softfault_arena_protect(arena, 5 * EXTENT, PAGE, SOFTFAULT_PROT_NONE));
    CHECK_IS(load_signal(base + 5 * EXTENT), SIGSEGV);
    FAILS(softfault_arena_read_at(arena, 5 * EXTENT, buf, 1), EACCES, DENIED, "does not permit loads");
    FAILS(softfault_arena_fault_in(arena, 5 * EXTENT, PAGE, SOFTFAULT_ACCESS_WRITE), EFAULT, FAULT, "0xa00000");
    CHECK_IS(softfault_last_fault_reason(), SOFTFAULT_VM_FAULT_SIGSEGV);
    OK(softfault_arena_protect(arena, 5 * EXTENT, PAGE, RW));
    base[5 * EXTENT] = 1;
    FAILS(softfault_arena_protect(arena, 7 * EXTENT, PAGE, RW), ENXIO, NOT_MAPPED, "");

    OK(softfault_arena_fault_in(arena, 0, EXTENT, SOFTFAULT_ACCESS_READ));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_SEQUENTIAL));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_RANDOM));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_NORMAL));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_WILLNEED));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_COLD));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_DONTNEED));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_PAGEOUT));
    OK(softfault_arena_advise(arena, 0, EXTENT, SOFTFAULT_ADVICE_POPULATE_READ));
    OK(softfault_arena_advise(arena, 5 * EXTENT, PAGE, SOFTFAULT_ADVICE_POPULATE_WRITE));
    FAILS(softfault_arena_advise(arena, 7 * EXTENT, PAGE, SOFTFAULT_ADVICE_COLD), ENXIO, NOT_MAPPED, "");

    OK(softfault_arena_promote(arena, 0, EXTENT, &nr));
    OK(softfault_arena_native_extents(arena, &nr));
    CHECK(mode == SOFTFAULT_DELIVERY_SEGV ? nr == 0 : nr >= 1);
    FAILS(softfault_arena_native_extents(arena, NULL), EINVAL, ARGUMENT, "nr is NULL");
    CHECK(is_pattern(base + PAGE, PAGE, PAGE));
    OK(softfault_arena_demote(arena, 0, 2 * EXTENT, NULL)); /* its neighbour may have gone along */
    OK(softfault_arena_native_extents(arena, &nr));
    CHECK_IS(nr, 0);
    OK(softfault_arena_promote(arena, 0, EXTENT, NULL));
    OK(softfault_arena_demote(arena, 0, EXTENT, &nr));
    OK(softfault_arena_zap(arena, 0, EXTENT));
    CHECK(is_pattern(base + PAGE, PAGE, PAGE));

    OK(softfault_arena_unmap(arena, 0, PAGE));
    CHECK_IS(load_signal(base), SIGSEGV);
    CHECK_IS(base[PAGE], pattern(PAGE));

    /* The mapping keeps the objects, the arena the runtime. */
    OK(softfault_object_free(file));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
    CHECK_IS(base[EXTENT], pattern(EXTENT));
    OK(softfault_arena_base(arena, &p));
    CHECK(p == base);
    OK(softfault_arena_free(arena));
    FAILS(softfault_arena_base(arena, &p), EBADF, HANDLE, "freed");
    FAILS(softfault_arena_unmap(arena, 0, PAGE), EBADF, HANDLE, "freed");
}

void test_pin(void)
{
    softfault_runtime *rt = new_runtime(1024);
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, 2 * EXTENT, 0, &base);
    softfault_pin *pin = NULL;
    void *addr;
    size_t len;
    int fd;

    OK(softfault_object_anonymous(rt, 64 * PAGE, NULL, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 64 * PAGE, RW, SOFTFAULT_MAP_SHARED));
    FAILS(softfault_arena_pin(arena, 0, PAGE, 3, &pin), EINVAL, ARGUMENT, "access is 3");
    FAILS(softfault_arena_pin(arena, 0, PAGE, SOFTFAULT_ACCESS_READ, NULL), EINVAL, ARGUMENT, "out is NULL");
    FAILS(softfault_arena_pin(arena, EXTENT, PAGE, SOFTFAULT_ACCESS_READ, &pin), ENXIO, NOT_MAPPED, "Arena::pin");
    FAILS(softfault_arena_pin(arena, 1, PAGE, SOFTFAULT_ACCESS_READ, &pin), EINVAL, ARGUMENT, "range.start");
    FAILS(softfault_arena_pin((softfault_arena *)object, 0, PAGE, 0, &pin), EBADF, HANDLE, "another type");
    CHECK(pin == NULL);

    OK(softfault_arena_pin(arena, 0, 4 * PAGE, SOFTFAULT_ACCESS_WRITE, &pin));
    OK(softfault_pin_data(pin, &addr, &len));
    CHECK(addr == base);
    CHECK_IS(len, 4 * PAGE);
    OK(softfault_pin_data(pin, NULL, NULL));
    {
        bool locked = false;
        struct rlimit limit;
        OK(softfault_pin_is_locked(pin, &locked));
        CHECK(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
        /* Four pages are below every limit that is one. */
        CHECK(locked || limit.rlim_cur < 4 * PAGE);
        FAILS(softfault_pin_is_locked(pin, NULL), EINVAL, ARGUMENT, "locked is NULL");
        FAILS(softfault_pin_is_locked(NULL, &locked), EINVAL, HANDLE, "NULL");
    }
    /* The kernel may touch it. */
    fd = open(make_file("pin", 4 * PAGE), O_RDONLY);
    CHECK(fd >= 0);
    CHECK_IS(read(fd, addr, 4 * PAGE), 4 * PAGE);
    OK(close(fd));
    CHECK(is_pattern(base, 0, 4 * PAGE));
    FAILS(softfault_arena_unmap(arena, PAGE, PAGE), EBUSY, PINNED, "0x0..0x4000");
    FAILS(softfault_arena_zap(arena, PAGE, PAGE), EBUSY, PINNED, "");
    OK(softfault_pin_free(pin));
    FAILS(softfault_pin_data(pin, &addr, &len), EBADF, HANDLE, "freed");
    OK(softfault_arena_unmap(arena, PAGE, PAGE));

    /* A pin keeps the arena. */
    OK(softfault_arena_pin(arena, 0, PAGE, SOFTFAULT_ACCESS_READ, &pin));
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
    CHECK(is_pattern(base, 0, PAGE));
    OK(softfault_pin_free(pin));
}
