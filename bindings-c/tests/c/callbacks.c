/* The program's own functions: vtables, stores, delegates. */
#include "env.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

static const uint32_t R = SOFTFAULT_PROT_READ;
static const uint32_t RW = SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE;
#define SHARED SOFTFAULT_MAP_SHARED

/* ---- vtables ---------------------------------------------------------------------------------------------------- */

enum answer { COMPUTE, DEFAULT_FAULT, SHMEM_FAULT, TWICE, IGNORE, REFUSE, NONSENSE, NOTHING, LOCKED_ONLY, BAD_FILL, KEEP };

struct table {
    enum answer answer;
    int faults, around, huge, mkwrites, opens, closes, drops, asked;
    uint64_t pgoff, address;
    uint32_t flags;
    bool shared_write, refuse_write;
    softfault_vm_fault *kept;
};

static void compute(void *ctx, void *page, size_t len)
{
    uint64_t pgoff = *(uint64_t *)ctx;
    fill_pattern(page, pgoff * PAGE, len);
}

static uint32_t table_fault(void *ctx, softfault_vm_fault *vmf)
{
    struct table *t = ctx;
    uint64_t pgoff = softfault_vm_fault_pgoff(vmf);
    uint32_t got, again;
    __atomic_fetch_add(&t->faults, 1, __ATOMIC_RELAXED);
    t->pgoff = pgoff;
    t->address = softfault_vm_fault_address(vmf);
    t->flags = softfault_vm_fault_flags(vmf);
    t->shared_write = softfault_vm_fault_is_shared_write(vmf);
    switch (t->answer) {
    case COMPUTE:
        return softfault_filemap_fill_with(vmf, compute, &pgoff);
    case DEFAULT_FAULT:
        return softfault_filemap_fault(vmf);
    case SHMEM_FAULT:
        return softfault_shmem_fault(vmf);
    case TWICE: /* the second answer is the first */
        got = softfault_filemap_fill_with(vmf, compute, &pgoff);
        again = softfault_filemap_fill_with(vmf, compute, &pgoff);
        return got == again ? again : SOFTFAULT_VM_FAULT_SIGBUS;
    case IGNORE: /* a page was found, and is refused all the same */
        softfault_filemap_fill_with(vmf, compute, &pgoff);
        return SOFTFAULT_VM_FAULT_SIGBUS;
    case REFUSE:
        return SOFTFAULT_VM_FAULT_HWPOISON;
    case NONSENSE:
        return 0xffffffff;
    case NOTHING:
        return 0;
    case LOCKED_ONLY:
        return SOFTFAULT_VM_FAULT_LOCKED;
    case BAD_FILL: /* what belongs to other callbacks, and no function */
        if (softfault_filemap_map_pages(vmf, 0, 512) != 0)
            return 0;
        if (softfault_shmem_huge_fault(vmf) != SOFTFAULT_VM_FAULT_FALLBACK)
            return 0;
        return softfault_filemap_fill_with(vmf, NULL, NULL);
    case KEEP:
        t->kept = vmf;
        return softfault_filemap_fill_with(vmf, compute, &pgoff);
    }
    return SOFTFAULT_VM_FAULT_SIGBUS;
}

static uint32_t table_map_pages(void *ctx, softfault_vm_fault *vmf, uint64_t start, uint64_t end)
{
    struct table *t = ctx;
    uint64_t pgoff = 0;
    __atomic_fetch_add(&t->around, 1, __ATOMIC_RELAXED);
    if (softfault_filemap_fill_with(vmf, compute, &pgoff) != SOFTFAULT_VM_FAULT_SIGBUS)
        return SOFTFAULT_VM_FAULT_SIGBUS; /* is for fault alone */
    (void)start;
    (void)end;
    return softfault_filemap_map_pages(vmf, 0, UINT64_MAX); /* too much: cut to what may be */
}

static uint32_t table_huge_fault(void *ctx, softfault_vm_fault *vmf)
{
    struct table *t = ctx;
    __atomic_fetch_add(&t->huge, 1, __ATOMIC_RELAXED);
    return softfault_shmem_huge_fault(vmf);
}

static uint32_t table_page_mkwrite(void *ctx, softfault_vm_fault *vmf)
{
    struct table *t = ctx;
    t->mkwrites++;
    return t->refuse_write && softfault_vm_fault_pgoff(vmf) == 5 ? SOFTFAULT_VM_FAULT_SIGBUS : 0;
}

static bool table_lookup(void *ctx, uint64_t pgoff, bool cached)
{
    struct table *t = ctx;
    (void)pgoff;
    t->asked++;
    return cached;
}

static void table_open(void *ctx)
{
    ((struct table *)ctx)->opens++;
}

static void table_close(void *ctx)
{
    ((struct table *)ctx)->closes++;
}

static void table_drop(void *ctx)
{
    ((struct table *)ctx)->drops++;
}

static softfault_vm_operations table_operations(void)
{
    softfault_vm_operations ops = {.size = sizeof ops};
    ops.fault = table_fault;
    ops.map_pages = table_map_pages;
    ops.huge_fault = table_huge_fault;
    ops.get_folio_noalloc = table_lookup;
    ops.open = table_open;
    ops.close = table_close;
    ops.drop = table_drop;
    return ops;
}

/* A program that calls from outside a callback, or with nothing. */
static void no_fault_at_all(softfault_vm_fault *vmf)
{
    CHECK_IS(softfault_vm_fault_pgoff(vmf), 0);
    CHECK_IS(softfault_vm_fault_address(vmf), 0);
    CHECK_IS(softfault_vm_fault_flags(vmf), 0);
    CHECK(!softfault_vm_fault_is_shared_write(vmf));
    CHECK_IS(softfault_filemap_fill_with(vmf, compute, NULL), SOFTFAULT_VM_FAULT_SIGBUS);
    CHECK_IS(softfault_filemap_fault(vmf), SOFTFAULT_VM_FAULT_SIGBUS);
    CHECK_IS(softfault_shmem_fault(vmf), SOFTFAULT_VM_FAULT_SIGBUS);
    CHECK_IS(softfault_filemap_map_pages(vmf, 0, 1), 0);
    CHECK_IS(softfault_shmem_huge_fault(vmf), SOFTFAULT_VM_FAULT_FALLBACK);
}

static void *touch_all(void *base)
{
    const volatile unsigned char *p = base;
    for (size_t i = 0; i < 512; i++)
        if (p[i * PAGE] != pattern(i * PAGE))
            return base;
    return NULL;
}

static void writing(softfault_runtime *rt)
{
    struct table t = {.answer = COMPUTE, .refuse_write = true};
    softfault_vm_operations ops = table_operations();
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);

    ops.page_mkwrite = table_page_mkwrite;
    OK(softfault_object_from_vm_operations(rt, 16 * PAGE, &ops, &t, &options, &object));
    int mapped = softfault_arena_map(arena, 0, object, 0, 16 * PAGE, RW, SHARED);
    if (env.delivery == SOFTFAULT_DELIVERY_MONITOR) {
        CHECK(mapped < 0); /* first stores cannot fault there */
    } else {
        OK(mapped);
        CHECK_IS(base[2 * PAGE], pattern(2 * PAGE));
        base[2 * PAGE] = 9;
        CHECK(t.mkwrites > 0);
        CHECK_IS(base[2 * PAGE], 9);
        int mkwrites = t.mkwrites;
        base[2 * PAGE] = 10;
        CHECK_IS(t.mkwrites, mkwrites);
        base[7 * PAGE] = 1; /* the first touch is a store */
        CHECK(t.shared_write);
        CHECK((t.flags & SOFTFAULT_FAULT_FLAG_WRITE) != 0);
        if (env.delivery != SOFTFAULT_DELIVERY_SEGV)
            CHECK_IS(store_signal(base + 5 * PAGE, 1), SIGBUS);
    }
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
}

void test_vm_operations(void)
{
    softfault_runtime *rt = new_runtime(4096);
    struct table t = {.answer = COMPUTE};
    static uint64_t not_one[64];
    softfault_vm_operations ops = table_operations(), none = {.size = sizeof none};
    softfault_object_options options = {.size = sizeof options, .flags = 0x8000};
    softfault_object *object = NULL, *plain;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, 4 * EXTENT, 0, &base);
    uint32_t mode;
    size_t nr;
    pthread_t threads[4];
    void *bad;

    OK(softfault_arena_delivery(arena, &mode));
    no_fault_at_all(NULL);
    no_fault_at_all((softfault_vm_fault *)(void *)((char *)not_one + 1));
    no_fault_at_all((softfault_vm_fault *)(void *)not_one);

    /* ctx passes over in any case, but where there are no operations. */
    FAILS(softfault_object_from_vm_operations(rt, PAGE, NULL, &t, NULL, &object), EINVAL, ARGUMENT, "operations is NULL");
    ops.size = 8;
    FAILS(softfault_object_from_vm_operations(rt, PAGE, &ops, &t, NULL, &object), EINVAL, ARGUMENT, "size is 8");
    CHECK_IS(t.drops, 0);
    ops.size = sizeof ops;
    FAILS(softfault_object_from_vm_operations(rt, PAGE, &ops, &t, &options, &object), EINVAL, ARGUMENT, "unknown");
    FAILS(softfault_object_from_vm_operations(rt, PAGE, &ops, &t, NULL, NULL), EINVAL, ARGUMENT, "out is NULL");
    FAILS(softfault_object_from_vm_operations(NULL, PAGE, &ops, &t, NULL, &object), EINVAL, HANDLE, "NULL");
    options.flags = SOFTFAULT_OBJECT_EXCLUSIVE;
    FAILS(softfault_object_from_vm_operations(rt, PAGE, &ops, &t, &options, &object), EINVAL, ARGUMENT, "exclusive");
    CHECK_IS(t.drops, 4);
    CHECK(object == NULL);
    t.drops = 0;

    OK(softfault_object_from_vm_operations(rt, 2 * EXTENT, &ops, &t, NULL, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 2 * EXTENT, R, SHARED));
    CHECK(t.opens > 0);

    errno = 54321;
    CHECK_IS(base[3 * PAGE + 5], pattern(3 * PAGE + 5));
    CHECK_IS(errno, 54321);
    CHECK(t.faults > 0);
    CHECK_IS(t.pgoff, 3);
    if (mode != SOFTFAULT_DELIVERY_MONITOR)
        CHECK(t.address == (uintptr_t)(base + 3 * PAGE + 5));
    CHECK_IS(t.flags & SOFTFAULT_FAULT_FLAG_WRITE, 0);
    CHECK(!t.shared_write);

    /* Several threads race over one extent: every page is right. Complete, it goes to the kernel. */
    for (int i = 0; i < 4; i++)
        OK(pthread_create(&threads[i], NULL, touch_all, base));
    for (int i = 0; i < 4; i++) {
        OK(pthread_join(threads[i], &bad));
        CHECK(bad == NULL);
    }
    CHECK(is_pattern(base, 0, EXTENT));
    if (mode != SOFTFAULT_DELIVERY_SEGV) {
        OK(softfault_arena_zap(arena, 0, EXTENT));
        CHECK(is_pattern(base, 0, EXTENT));
        OK(softfault_arena_native_extents(arena, &nr));
        CHECK_IS(nr, 1);
        CHECK(t.huge > 0);
        CHECK(t.around > 0);
    }

    /* Other answers, each on a page of its own in the second extent. */
    unsigned char *second = base + EXTENT;
    const struct {
        enum answer answer;
        int signo;
    } answers[] = {
        {DEFAULT_FAULT, 0}, {SHMEM_FAULT, 0}, {TWICE, 0},      {IGNORE, SIGBUS},      {REFUSE, SIGBUS},
        {NONSENSE, -1},     {NOTHING, SIGBUS}, {LOCKED_ONLY, SIGBUS}, {BAD_FILL, SIGBUS}, {KEEP, 0},
    };
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        volatile size_t at = i * 16 * PAGE;
        t.answer = answers[i].answer;
        int signo = load_signal(second + at);
        /* What was computed is cached, and maps itself when the monitor's refusal has come to the thread. */
        bool may_be_served = answers[i].answer == IGNORE && mode == SOFTFAULT_DELIVERY_MONITOR;
        if (may_be_served)
            CHECK(signo == 0 || signo == SIGBUS);
        else if (answers[i].signo >= 0)
            CHECK_IS(signo, answers[i].signo);
        else
            CHECK(signo != 0);
        /* And it is well again when the callback is. */
        t.answer = COMPUTE;
        CHECK_IS(load_signal(second + at), 0);
    }
    t.answer = COMPUTE;
    CHECK(t.kept != NULL);
    CHECK_IS(second[2 * 16 * PAGE + 1], pattern(EXTENT + 2 * 16 * PAGE + 1));
    CHECK_IS(second[0], 0); /* the default: zeros */
    no_fault_at_all(t.kept);

    t.answer = REFUSE;
    FAILS(softfault_arena_fault_in(arena, EXTENT + 200 * PAGE, PAGE, 0), EHWPOISON, FAULT, "HWPOISON");
    CHECK_IS(softfault_last_fault_reason() & SOFTFAULT_VM_FAULT_HWPOISON, SOFTFAULT_VM_FAULT_HWPOISON);
    t.answer = COMPUTE;

    OK(softfault_arena_unmap(arena, 0, 2 * EXTENT));
    CHECK(t.closes > 0);
    CHECK_IS(t.drops, 0);
    OK(softfault_object_free(object));
    CHECK_IS(t.drops, 1);

    /* No functions at all: zeros. */
    OK(softfault_object_from_vm_operations(rt, EXTENT, &none, NULL, NULL, &plain));
    OK(softfault_arena_map(arena, 0, plain, 0, EXTENT, R, SHARED));
    CHECK_IS(base[PAGE], 0);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(plain));
    writing(rt);
    OK(softfault_runtime_free(rt));
}

/* ---- stores ----------------------------------------------------------------------------------------------------- */

struct file_store {
    int fd;
    int fills, writes, fds;
    long reader; /* the thread of the last read */
    softfault_page *kept;
    const softfault_pages *kept_pages;
};

static int file_read(void *ctx, uint64_t pos, void *dst, size_t len, softfault_page *page)
{
    struct file_store *s = ctx;
    int fd = -7;
    uint64_t offset = 0;
    (void)dst;
    (void)len;
    s->reader = syscall(SYS_gettid);
    s->fills++;
    if (softfault_page_fd(page, &fd, &offset) != 0 || softfault_page_fd(page, NULL, &offset) != -EINVAL)
        return -EIO;
    if (fd >= 0)
        s->fds++;
    s->kept = page;
    return softfault_page_fill_from(page, s->fd, pos);
}

static int file_write(void *ctx, uint64_t pos, const void *src, size_t len, const softfault_pages *pages)
{
    struct file_store *s = ctx;
    int fd = -7;
    uint64_t offset = 0;
    (void)src;
    (void)len;
    s->writes++;
    if (softfault_pages_fd(pages, &fd, &offset) != 0 || softfault_pages_fd(pages, &fd, NULL) != -EINVAL || fd == -7)
        return -EIO;
    s->kept_pages = pages;
    return softfault_pages_write_to(pages, s->fd, pos);
}

static void by_descriptor(softfault_runtime *rt, uint32_t flags)
{
    struct file_store s = {.fd = open(make_file("store", 64 * PAGE), O_RDWR)};
    softfault_store_operations ops = {.size = sizeof ops, .flags = flags, .read = file_read, .write = file_write};
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    softfault_object *object;
    unsigned char *base, buf[2];
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);
    int fd = -7;
    uint64_t offset;

    CHECK(s.fd >= 0);
    options.readahead_pages = SOFTFAULT_OFF;
    options.fill_window_pages = 4;
    if ((flags & SOFTFAULT_STORE_HANDLER_SAFE) == 0) {
        options.retries = 2;
        options.retry_backoff_ns = 1000;
        options.deadline_ns = 60ull * 1000 * 1000 * 1000;
    }
    OK(softfault_object_from_store(rt, 64 * PAGE, &ops, &s, &options, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 64 * PAGE, RW, SHARED));
    CHECK(is_pattern(base, 0, 64 * PAGE));
    CHECK(s.fills > 0);
    CHECK_IS(s.fds > 0, (flags & SOFTFAULT_STORE_USES_DESCRIPTORS) != 0);
    if (env.delivery != SOFTFAULT_DELIVERY_MONITOR)
        CHECK_IS(s.reader == syscall(SYS_gettid), (flags & SOFTFAULT_STORE_HANDLER_SAFE) != 0);
    base[10 * PAGE] = 123;
    OK(softfault_object_sync_all(object));
    CHECK(s.writes > 0);
    CHECK_IS(pread(s.fd, buf, 1, 10 * PAGE), 1);
    CHECK_IS(buf[0], 123);

    /* Past the end of the file: the store says so. */
    OK(ftruncate(s.fd, 8 * PAGE));
    OK(softfault_object_evict(object, 32 * PAGE, PAGE, NULL));
    OK(softfault_object_invalidate(object, 32 * PAGE, PAGE, NULL, NULL));
    if (env.delivery != SOFTFAULT_DELIVERY_MONITOR)
        CHECK_IS(load_signal(base + 32 * PAGE), SIGBUS);

    /* Kept pointers, and none. */
    CHECK_IS(softfault_page_fill_from(NULL, s.fd, 0), -EINVAL);
    CHECK_IS(softfault_page_fd(NULL, &fd, &offset), -EINVAL);
    CHECK_IS(softfault_pages_write_to(NULL, s.fd, 0), -EINVAL);
    CHECK_IS(softfault_pages_fd(NULL, &fd, &offset), -EINVAL);
    if ((flags & SOFTFAULT_STORE_HANDLER_SAFE) == 0) { /* a filler's stack stays */
        CHECK_IS(softfault_page_fill_from(s.kept, s.fd, 0), -EINVAL);
        CHECK_IS(softfault_page_fd(s.kept, &fd, &offset), -EINVAL);
    }
    CHECK_IS(fd, -7);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(close(s.fd));
}

/* A store of frames: each read is of whole ones. */
struct framed_store {
    uint64_t align, len;
    int reads, torn;
};

static int framed_read(void *ctx, uint64_t pos, void *dst, size_t len, softfault_page *page)
{
    struct framed_store *s = ctx;
    (void)page;
    __atomic_fetch_add(&s->reads, 1, __ATOMIC_RELAXED);
    if (pos % s->align != 0 || (len % s->align != 0 && pos + len != s->len))
        __atomic_fetch_add(&s->torn, 1, __ATOMIC_RELAXED);
    fill_pattern(dst, pos, len);
    return 0;
}

static void by_frames(softfault_runtime *rt, uint32_t flags)
{
    struct framed_store s = {.align = 16 * PAGE, .len = 40 * PAGE + 5};
    softfault_store_operations ops = {.size = sizeof ops, .flags = flags, .read = framed_read, .read_align_bytes = 3 * PAGE};
    softfault_object_options options = {.size = sizeof options, .fill_window_pages = 1, .readahead_pages = SOFTFAULT_OFF};
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);
    uint64_t evicted = 0;

    FAILS(softfault_object_from_store(rt, s.len, &ops, &s, &options, &object), EINVAL, ARGUMENT, "read_align_bytes");
    ops.read_align_bytes = s.align;
    OK(softfault_object_from_store(rt, s.len, &ops, &s, &options, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 41 * PAGE, R, SHARED));
    CHECK(is_pattern(base, 0, s.len));
    CHECK_IS(s.reads, 3);
    OK(softfault_object_evict(object, 17 * PAGE, PAGE, &evicted));
    if (evicted == 1) {
        CHECK_IS(base[17 * PAGE], pattern(17 * PAGE));
        CHECK_IS(s.reads, 4);
        CHECK_IS(counter(rt, "fill_discarded") >= 15, 1);
    }
    CHECK_IS(s.torn, 0);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
}

void test_store(void)
{
    softfault_runtime *rt = new_runtime(1024);
    struct memory_store store;
    softfault_store_operations ops = memory_operations;
    softfault_object_options options = {.size = sizeof options};
    softfault_object *object = NULL;
    unsigned char *base, byte;
    softfault_arena *arena = new_arena(rt, 2 * EXTENT, 0, &base);

    memory_store_init(&store, 64 * PAGE);
    FAILS(softfault_object_from_store(rt, PAGE, NULL, &store, NULL, &object), EINVAL, ARGUMENT, "operations is NULL");
    CHECK_IS(store.drops, 0);
    ops.read = NULL;
    FAILS(softfault_object_from_store(rt, PAGE, &ops, &store, NULL, &object), EINVAL, ARGUMENT, "read is NULL");
    ops = memory_operations;
    ops.flags = 0x100;
    FAILS(softfault_object_from_store(rt, PAGE, &ops, &store, NULL, &object), EINVAL, ARGUMENT, "0x100 is unknown");
    ops.flags = 0;
    ops.reserved = 1;
    FAILS(softfault_object_from_store(rt, PAGE, &ops, &store, NULL, &object), EINVAL, ARGUMENT, "reserved");
    ops.reserved = 0;
    options.flags = SOFTFAULT_OBJECT_DSYNC;
    FAILS(softfault_object_from_store(rt, PAGE, &ops, &store, &options, &object), EINVAL, ARGUMENT, "dsync");
    options.flags = 0;
    options.deadline_ns = 1000000;
    ops.flags = SOFTFAULT_STORE_HANDLER_SAFE;
    FAILS(softfault_object_from_store(rt, PAGE, &ops, &store, &options, &object), EINVAL, ARGUMENT, "deadline");
    FAILS(softfault_object_from_store(rt, PAGE, &ops, &store, NULL, NULL), EINVAL, ARGUMENT, "out is NULL");
    FAILS(softfault_object_from_store(NULL, PAGE, &ops, &store, NULL, &object), EINVAL, HANDLE, "NULL");
    CHECK_IS(store.drops, 7);
    store.drops = 0;
    CHECK(object == NULL);

    by_descriptor(rt, 0);
    by_descriptor(rt, SOFTFAULT_STORE_STABLE | SOFTFAULT_STORE_WRITE_BLOCKS | SOFTFAULT_STORE_NO_REREAD);
    by_descriptor(rt, SOFTFAULT_STORE_USES_DESCRIPTORS);
    by_descriptor(rt, SOFTFAULT_STORE_HANDLER_SAFE);
    by_descriptor(rt, SOFTFAULT_STORE_HANDLER_SAFE | SOFTFAULT_STORE_USES_DESCRIPTORS);
    by_descriptor(rt, SOFTFAULT_STORE_HANDLER_SAFE | SOFTFAULT_STORE_TOUCHES_ARENAS);

    by_frames(rt, 0);
    by_frames(rt, SOFTFAULT_STORE_HANDLER_SAFE);

    /* A page that cannot be had raises SIGBUS; it heals. */
    options.deadline_ns = 0;
    options.readahead_pages = SOFTFAULT_OFF;
    options.fill_window_pages = 1;
    ops.flags = 0;
    OK(softfault_object_from_store(rt, store.len, &ops, &store, &options, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 64 * PAGE, R, SHARED));
    if (env.delivery != SOFTFAULT_DELIVERY_MONITOR) {
        store.read_fails = -EIO;
        CHECK_IS(load_signal(base + PAGE), SIGBUS);
        store.read_fails = 17; /* no errno: an error all the same */
        CHECK_IS(load_signal(base + PAGE), SIGBUS);
        store.read_fails = 0;
    }
    CHECK_IS(base[PAGE], pattern(PAGE));
    OK(softfault_arena_unmap(arena, 0, 64 * PAGE));
    OK(softfault_object_free(object));

    /* Or zeros instead. */
    options.failure_policy = SOFTFAULT_FAILURE_ZERO;
    OK(softfault_object_from_store(rt, store.len, &ops, &store, &options, &object));
    store.read_fails = -EIO;
    OK(softfault_object_read_at(object, PAGE, &byte, 1, NULL));
    CHECK_IS(byte, 0);
    store.read_fails = 0;
    OK(softfault_object_free(object));

    /* Durable before the first store lands. */
    ops.flags = SOFTFAULT_STORE_HANDLER_SAFE;
    options.failure_policy = 0;
    options.flags = SOFTFAULT_OBJECT_DSYNC | SOFTFAULT_OBJECT_WRITABLE | SOFTFAULT_OBJECT_PRIVATE_BY_CACHE;
    OK(softfault_object_from_store(rt, store.len, &ops, &store, &options, &object));
    if (env.delivery != SOFTFAULT_DELIVERY_MONITOR) {
        OK(softfault_arena_map(arena, 0, object, 0, 64 * PAGE, RW, SHARED));
        CHECK_IS(base[0], pattern(0));
        CHECK_IS(store.dsyncs, 0);
        base[0] = 1;
        CHECK(store.dsyncs > 0);
    }
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    CHECK_IS(store.drops, 3);
    free(store.bytes);
    OK(softfault_runtime_free(rt));
}

/* ---- delegates -------------------------------------------------------------------------------------------------- */

struct delegate {
    int told, drops, delays, errors;
    uint64_t last;
    uintptr_t address;
    bool write;
    long thread;
    const softfault_minor_fault *kept;
};

static void flip(void *ctx, void *page, size_t len)
{
    unsigned char *p = page;
    (void)ctx;
    for (size_t i = 0; i < len; i++)
        p[i] = (unsigned char)~p[i];
}

static uint32_t minor_fault(void *ctx, const softfault_minor_fault *fault)
{
    struct delegate *d = ctx;
    unsigned char byte = 0;
    uint64_t pgoff = softfault_minor_fault_pgoff(fault);
    d->told++;
    d->last = pgoff;
    d->address = softfault_minor_fault_address(fault);
    d->write = softfault_minor_fault_is_write(fault);
    d->thread = syscall(SYS_gettid);
    d->kept = fault;
    if (softfault_minor_fault_read(fault, 1, &byte, 1) != 0 || byte != pattern(pgoff * PAGE + 1))
        d->errors++;
    if (softfault_minor_fault_read(fault, 4096, &byte, 1) != -EINVAL)
        d->errors++;
    if (softfault_minor_fault_read(fault, 0, &byte, SIZE_MAX) != -EINVAL)
        d->errors++;
    if (softfault_minor_fault_read(fault, 0, NULL, 1) != -EINVAL)
        d->errors++;
    if (softfault_minor_fault_rewrite(fault, NULL, NULL) != -EINVAL)
        d->errors++;
    if (pgoff == 7)
        return SOFTFAULT_MINOR_REFUSE;
    if (pgoff == 8 && d->delays++ == 0)
        return SOFTFAULT_MINOR_DELAY;
    if (pgoff == 9)
        return 4711; /* no verdict: refused */
    return softfault_minor_fault_rewrite(fault, flip, NULL) == 0 ? SOFTFAULT_MINOR_CONTINUE : SOFTFAULT_MINOR_REFUSE;
}

static void minor_drop(void *ctx)
{
    ((struct delegate *)ctx)->drops++;
}

static void delegated(softfault_runtime *rt, uint32_t minor_flags, uint32_t arena_flags)
{
    struct delegate d = {0};
    softfault_minor_operations ops = {.size = sizeof ops, .flags = minor_flags};
    softfault_object *object;
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE};
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, arena_flags, &base);

    OK(softfault_object_open(rt, make_file("minor", 32 * PAGE), &options, &object));
    OK(softfault_object_populate(object, 0, 32 * PAGE));
    FAILS(softfault_arena_delegate_minor(arena, 0, PAGE, NULL, &d), EINVAL, ARGUMENT, "operations is NULL");
    FAILS(softfault_arena_delegate_minor(arena, 0, PAGE, &ops, &d), EINVAL, ARGUMENT, "minor_fault is NULL");
    ops.minor_fault = minor_fault;
    ops.drop = minor_drop;
    FAILS(softfault_arena_delegate_minor(NULL, 0, PAGE, &ops, &d), EINVAL, HANDLE, "NULL");
    CHECK_IS(d.drops, 1);
    ops.flags = 2;
    FAILS(softfault_arena_delegate_minor(arena, 0, PAGE, &ops, &d), EINVAL, ARGUMENT, "0x2 is unknown");
    ops.flags = minor_flags;
    ops.reserved = 1;
    FAILS(softfault_arena_delegate_minor(arena, 0, PAGE, &ops, &d), EINVAL, ARGUMENT, "reserved");
    ops.reserved = 0;
    int got = softfault_arena_delegate_minor(arena, 0, PAGE, &ops, &d);
    CHECK_IS(d.drops, 4);
    if (got == -EACCES) { /* a library without userfaultfd */
        printf("  no delegates in this library\n");
        OK(softfault_arena_free(arena));
        OK(softfault_object_free(object));
        return;
    }
    CHECK_IS(got, -ENXIO);
    FAILS(softfault_arena_delegate_minor(arena, 1, PAGE, &ops, &d), EINVAL, ARGUMENT, "range.start");
    d.drops = 0;

    OK(softfault_arena_map(arena, 0, object, 0, 32 * PAGE, RW, SHARED));
    OK(softfault_arena_delegate_minor(arena, 0, 16 * PAGE, &ops, &d));
    CHECK_IS(base[PAGE], (unsigned char)~pattern(PAGE));
    CHECK(d.told >= 1);
    CHECK_IS(d.errors, 0);
    if (env.delivery != SOFTFAULT_DELIVERY_SEGV && env.delivery != SOFTFAULT_DELIVERY_AUTO) {
        CHECK_IS(d.told, 1);
        CHECK_IS(d.last, 1);
        CHECK(d.address == (uintptr_t)(base + PAGE));
        CHECK(!d.write);
    }
    if (env.delivery != SOFTFAULT_DELIVERY_MONITOR)
        CHECK_IS(d.thread == syscall(SYS_gettid), minor_flags != 0);
    int told = d.told;
    CHECK_IS(base[PAGE + 1], (unsigned char)~pattern(PAGE + 1));
    CHECK_IS(d.told, told);
    if (env.delivery != SOFTFAULT_DELIVERY_MONITOR) {
        CHECK_IS(load_signal(base + 7 * PAGE), SIGBUS);
        CHECK_IS(load_signal(base + 9 * PAGE), SIGBUS);
    }
    CHECK_IS(base[8 * PAGE], (unsigned char)~pattern(8 * PAGE));
    CHECK(d.delays >= 2);
    base[3 * PAGE] = 1;
    CHECK_IS(d.errors, 0);
    CHECK_IS(base[20 * PAGE], pattern(20 * PAGE)); /* not in the range */
    CHECK_IS(d.drops, 0);

    CHECK_IS(softfault_minor_fault_pgoff(NULL), 0);
    CHECK_IS(softfault_minor_fault_address(NULL), 0);
    CHECK(!softfault_minor_fault_is_write(NULL));
    CHECK_IS(softfault_minor_fault_rewrite(NULL, flip, NULL), -EINVAL);
    CHECK_IS(softfault_minor_fault_read(NULL, 0, &d, 1), -EINVAL);
    if (minor_flags == 0)
        CHECK_IS(softfault_minor_fault_rewrite(d.kept, flip, NULL), -EINVAL);
    OK(softfault_arena_unmap(arena, 0, 32 * PAGE));
    CHECK_IS(d.drops, 1);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
}

void test_minor(void)
{
    softfault_runtime *rt = new_runtime(1024);
    delegated(rt, 0, 0);
    delegated(rt, SOFTFAULT_MINOR_HANDLER_SAFE, 0);
    delegated(rt, SOFTFAULT_MINOR_HANDLER_SAFE, SOFTFAULT_ARENA_LOOKUP_FIRST | SOFTFAULT_ARENA_NO_FAULT_AROUND);
    delegated(rt, 0, SOFTFAULT_ARENA_NO_NATIVE_EXTENTS);

    /* A vtable of the program's is asked about lookups. */
    struct table t = {.answer = SHMEM_FAULT};
    struct delegate d = {0};
    softfault_vm_operations ops = table_operations();
    softfault_minor_operations minor = {.size = sizeof minor, .minor_fault = minor_fault};
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, SOFTFAULT_ARENA_LOOKUP_FIRST, &base);
    OK(softfault_object_from_vm_operations(rt, 4 * PAGE, &ops, &t, NULL, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 4 * PAGE, R, SHARED));
    if (softfault_arena_delegate_minor(arena, 0, 4 * PAGE, &minor, &d) == 0) {
        (void)load_signal(base);
        CHECK(t.asked > 0);
    }
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
}
