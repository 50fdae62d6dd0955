/* mmap, munmap, mprotect, msync, madvise and mremap over the public API alone, beside the kernel's own: the same calls on two
 * files of the same content, and after each call every byte, every signal and the files are compared. */
#include "env.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NR ((size_t)256) /* pages of the window in which everything happens */
#define FILE_MAX ((uint64_t)96 * 4096)

/* ---- what an interposer needs: one object an inode, and which page is what ---- */

struct inode {
    dev_t dev;
    ino_t ino;
    softfault_object *object;
};

struct page {
    softfault_object *object; /* NULL: nothing is mapped */
    uint64_t pos;
    int prot, flags;
};

static struct {
    softfault_runtime *rt;
    softfault_arena *arena;
    unsigned char *base;
    struct inode inodes[4];
    struct page pages[NR];
} my;

static int fail(int errno_negative)
{
    errno = -errno_negative;
    return -1;
}

static void *map_failed(int e)
{
    errno = e;
    return MAP_FAILED;
}

static softfault_object *object_of(int fd)
{
    softfault_object_options options = {
        .size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE, .max_len_bytes = FILE_MAX};
    struct stat st;
    size_t i;
    if (fstat(fd, &st) != 0)
        return NULL;
    for (i = 0; i < 4 && my.inodes[i].object != NULL; i++) {
        if (my.inodes[i].dev == st.st_dev && my.inodes[i].ino == st.st_ino)
            return my.inodes[i].object;
    }
    if (i == 4 || softfault_object_from_fd(my.rt, fd, &options, &my.inodes[i].object) != 0)
        return NULL;
    my.inodes[i].dev = st.st_dev;
    my.inodes[i].ino = st.st_ino;
    return my.inodes[i].object;
}

static uint32_t prot_of(int prot)
{
    return (prot & PROT_WRITE) ? SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE
           : (prot & PROT_READ) ? SOFTFAULT_PROT_READ
                                : SOFTFAULT_PROT_NONE;
}

static size_t pages_of(size_t len)
{
    return (len + PAGE - 1) / PAGE;
}

/* The first of nr free pages; NR: there are none. */
static size_t find_free(size_t nr)
{
    size_t run = 0;
    for (size_t i = 0; i < NR; i++) {
        run = my.pages[i].object == NULL ? run + 1 : 0;
        if (run == nr)
            return i + 1 - nr;
    }
    return NR;
}

static void *place(size_t at, size_t nr, struct page p)
{
    uint32_t sharing = (p.flags & MAP_SHARED) ? SOFTFAULT_MAP_SHARED : SOFTFAULT_MAP_PRIVATE;
    int r = softfault_arena_replace(my.arena, at * PAGE, p.object, p.pos, nr * PAGE, prot_of(p.prot), sharing);
    if (r != 0)
        return map_failed(-r);
    for (size_t i = 0; i < nr; i++, p.pos += PAGE)
        my.pages[at + i] = p;
    return my.base + at * PAGE;
}

static void *my_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t pos)
{
    struct page p = {.pos = (uint64_t)pos, .prot = prot, .flags = flags};
    size_t nr = pages_of(len), at;
    if (len == 0 || pos % (off_t)PAGE != 0)
        return map_failed(EINVAL);
    at = (flags & MAP_FIXED) ? (size_t)((unsigned char *)addr - my.base) / PAGE : find_free(nr);
    if (at + nr > NR)
        return map_failed(ENOMEM);
    p.object = object_of(fd);
    return p.object == NULL ? map_failed(EBADF) : place(at, nr, p);
}

static int my_munmap(void *addr, size_t len)
{
    size_t at = (size_t)((unsigned char *)addr - my.base) / PAGE, nr = pages_of(len);
    int r = softfault_arena_unmap(my.arena, at * PAGE, nr * PAGE);
    if (r != 0)
        return fail(r);
    memset(&my.pages[at], 0, nr * sizeof my.pages[0]);
    return 0;
}

static int my_mprotect(void *addr, size_t len, int prot)
{
    size_t at = (size_t)((unsigned char *)addr - my.base) / PAGE, nr = pages_of(len);
    int r = softfault_arena_protect(my.arena, at * PAGE, nr * PAGE, prot_of(prot));
    if (r != 0)
        return fail(r == -ENXIO ? -ENOMEM : r);
    for (size_t i = at; i < at + nr; i++)
        my.pages[i].prot = prot;
    return 0;
}

static int my_msync(void *addr, size_t len, int flags)
{
    size_t at = (size_t)((unsigned char *)addr - my.base) / PAGE, nr = pages_of(len);
    for (size_t i = at; i < at + nr; i++) {
        const struct page *p = &my.pages[i];
        int r = 0;
        if (p->object == NULL)
            return fail(-ENOMEM);
        if ((p->flags & MAP_SHARED) && (flags & MS_SYNC))
            r = softfault_object_sync(p->object, p->pos, PAGE);
        else if (p->flags & MAP_SHARED)
            r = softfault_object_write_back(p->object, p->pos, PAGE);
        if (r != 0)
            return fail(r);
    }
    return 0;
}

static int my_madvise(void *addr, size_t len, int advice)
{
    size_t at = (size_t)((unsigned char *)addr - my.base) / PAGE, nr = pages_of(len);
    /* The numbers are Linux's. */
    int r = softfault_arena_advise(my.arena, at * PAGE, nr * PAGE, (uint32_t)advice);
    return r == 0 ? 0 : fail(r == -ENXIO ? -ENOMEM : r);
}

static void *my_mremap(void *addr, size_t len, size_t new_len, int flags)
{
    size_t at = (size_t)((unsigned char *)addr - my.base) / PAGE, nr = pages_of(len), new_nr = pages_of(new_len), to;
    struct page p = my.pages[at];
    if (new_nr <= nr)
        return new_nr < nr && my_munmap(my.base + (at + new_nr) * PAGE, (nr - new_nr) * PAGE) != 0 ? MAP_FAILED : addr;
    for (to = at + nr; to < at + new_nr && to < NR && my.pages[to].object == NULL; to++)
        ;
    if (to == at + new_nr) {
        p.pos += nr * PAGE;
        return place(at + nr, new_nr - nr, p) == MAP_FAILED ? MAP_FAILED : addr;
    }
    if (!(flags & MREMAP_MAYMOVE))
        return map_failed(ENOMEM);
    to = find_free(new_nr);
    if (to == NR)
        return map_failed(ENOMEM);
    if (place(to, new_nr, p) == MAP_FAILED)
        return MAP_FAILED;
    /* A private mapping's own pages cannot be moved between mappings; their bytes are, where they are not the object's. */
    for (size_t i = 0; i < nr && (p.flags & MAP_PRIVATE); i++) {
        unsigned char own[4096] = {0}, objects[4096] = {0};
        if (softfault_arena_read_at(my.arena, (at + i) * PAGE, own, PAGE) != 0 ||
            softfault_arena_read_at(my.arena, (to + i) * PAGE, objects, PAGE) != 0)
            continue; /* past the end, or not to be read */
        if (memcmp(own, objects, PAGE) != 0)
            OK(softfault_arena_write_at(my.arena, (to + i) * PAGE, own, PAGE));
    }
    return my_munmap(addr, len) != 0 ? MAP_FAILED : my.base + to * PAGE;
}

/* ---- both sides ---- */

static unsigned char *real; /* the kernel's window */
static int fds[2][2];       /* two files, ours and the kernel's */
static uint64_t lens[2];

static void *at_mine(size_t page) { return my.base + page * PAGE; }
static void *at_real(size_t page) { return real + page * PAGE; }

static void both_mmap(size_t at, size_t nr, int prot, int flags, int file, size_t pos)
{
    void *a = my_mmap(at < NR ? at_mine(at) : NULL, nr * PAGE, prot, flags | (at < NR ? MAP_FIXED : 0), fds[file][0],
                      (off_t)(pos * PAGE));
    if (a == MAP_FAILED) {
        CHECK_IS(errno, ENOMEM);
        return;
    }
    at = (size_t)((unsigned char *)a - my.base) / PAGE;
    CHECK(mmap(at_real(at), nr * PAGE, prot, flags | MAP_FIXED, fds[file][1], (off_t)(pos * PAGE)) == at_real(at));
}

static void both_munmap(size_t at, size_t nr)
{
    OK(my_munmap(at_mine(at), nr * PAGE));
    /* The window stays reserved. */
    CHECK(mmap(at_real(at), nr * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) !=
          MAP_FAILED);
}

/* Every page of a range is mapped. */
static bool is_mapped(size_t at, size_t nr)
{
    for (size_t i = at; i < at + nr; i++) {
        if (my.pages[i].object == NULL)
            return false;
    }
    return true;
}

static void both_mprotect(size_t at, size_t nr, int prot)
{
    if (!is_mapped(at, nr)) {
        CHECK_IS(my_mprotect(at_mine(at), nr * PAGE, prot), -1);
        CHECK_IS(errno, ENOMEM);
        return;
    }
    OK(my_mprotect(at_mine(at), nr * PAGE, prot));
    OK(mprotect(at_real(at), nr * PAGE, prot));
}

static void both_madvise(size_t at, size_t nr, int advice)
{
    if (!is_mapped(at, nr))
        return;
    OK(my_madvise(at_mine(at), nr * PAGE, advice));
    OK(madvise(at_real(at), nr * PAGE, advice));
}

static void both_msync(size_t at, size_t nr, int flags)
{
    if (!is_mapped(at, nr))
        return;
    OK(my_msync(at_mine(at), nr * PAGE, flags));
    OK(msync(at_real(at), nr * PAGE, flags));
}

/* One mapping, from its first page on, to another length. */
static void both_mremap(size_t at, size_t nr, size_t new_nr)
{
    void *a = my_mremap(at_mine(at), nr * PAGE, new_nr * PAGE, MREMAP_MAYMOVE), *b;
    size_t to;
    if (a == MAP_FAILED) {
        CHECK_IS(errno, ENOMEM);
        return;
    }
    to = (size_t)((unsigned char *)a - my.base) / PAGE;
    if (to == at && new_nr > nr) {
        struct page p = my.pages[at];
        int fd = p.object == object_of(fds[0][0]) ? fds[0][1] : fds[1][1];
        b = mmap(at_real(at + nr), (new_nr - nr) * PAGE, p.prot, p.flags | MAP_FIXED, fd, (off_t)(p.pos + nr * PAGE));
        CHECK(b != MAP_FAILED);
        return;
    }
    b = to == at ? at_real(at) : mremap(at_real(at), nr * PAGE, new_nr * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at_real(to));
    CHECK(b == at_real(to));
    if (to != at)
        CHECK(mmap(at_real(at), nr * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    else if (new_nr < nr)
        CHECK(mmap(at_real(at + new_nr), (nr - new_nr) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
              MAP_FAILED);
}

static void both_store(size_t at, unsigned char value)
{
    const struct page *p = &my.pages[at];
    int file = p->object == object_of(fds[0][0]) ? 0 : 1;
    size_t offset = value * (size_t)13 % PAGE;
    if (p->object != NULL && (p->prot & PROT_WRITE) && p->pos + offset >= lens[file])
        return; /* behind the end, in the last page: the kernel's own affair */
    CHECK_IS(store_signal((unsigned char *)at_mine(at) + offset, value),
             store_signal((unsigned char *)at_real(at) + offset, value));
}

static void compare_windows(int step)
{
    for (size_t i = 0; i < NR; i++) {
        int a = load_signal(at_mine(i)), b = load_signal(at_real(i));
        if (a != b || (a == 0 && memcmp(at_mine(i), at_real(i), PAGE) != 0)) {
            fprintf(stderr, "step %d: page %zu: signals %d and %d, prot %d, flags %d, pos %llu\n", step, i, a, b,
                    my.pages[i].prot, my.pages[i].flags, (unsigned long long)my.pages[i].pos);
            CHECK(!"the kernel's window has other bytes");
        }
    }
}

static void compare_files(void)
{
    static unsigned char a[FILE_MAX], b[FILE_MAX];
    for (int file = 0; file < 2; file++) {
        ssize_t n;
        OK(softfault_object_sync_all(object_of(fds[file][0])));
        n = pread(fds[file][0], a, sizeof a, 0);
        CHECK_IS(n, lens[file]);
        CHECK_IS(pread(fds[file][1], b, sizeof b, 0), n);
        CHECK(memcmp(a, b, (size_t)n) == 0);
    }
}

/* The file grows, by whomever: whoever stands between has the object follow it. */
static void both_grow(int file, uint64_t len)
{
    for (int side = 0; side < 2; side++)
        OK(ftruncate(fds[file][side], (off_t)len));
    OK(softfault_object_follow_len(object_of(fds[file][0]), NULL));
    lens[file] = len;
}

static void by_hand(void)
{
    const int rw = PROT_READ | PROT_WRITE;
    /* Shared and private of one file, and what is stored through either. */
    both_mmap(0, 40, rw, MAP_SHARED, 0, 0);
    both_mmap(60, 40, rw, MAP_PRIVATE, 0, 0);
    compare_windows(1);
    both_store(3, 77), both_store(64, 78), both_store(65, 79);
    both_store(4, 80); /* its private page is a copy by now */
    compare_windows(2);
    /* Partly unmapped, and mapped over in the middle of both, across a gap. */
    both_munmap(10, 5);
    both_mmap(8, 60, rw, MAP_SHARED, 1, 2);
    compare_windows(3);
    both_store(30, 81);
    both_msync(8, 60, MS_ASYNC), both_msync(0, 8, MS_SYNC);
    compare_files();
    /* Protection, taken and given back: private copies stay. */
    both_mprotect(60, 40, PROT_NONE), compare_windows(4);
    both_mprotect(62, 20, PROT_READ), both_store(63, 1), compare_windows(5);
    both_mprotect(60, 40, rw), both_store(63, 82), compare_windows(6);
    both_mprotect(90, 40, PROT_READ); /* a gap */
    /* Copies that are not needed. */
    both_madvise(60, 40, MADV_DONTNEED), compare_windows(7);
    /* Longer, in place and elsewhere, and shorter. */
    both_mmap(200, 8, rw, MAP_PRIVATE, 1, 0), both_store(201, 83);
    both_mremap(200, 8, 12), compare_windows(8);
    both_mmap(212, 1, PROT_READ, MAP_SHARED, 0, 0);
    both_mremap(200, 12, 16), compare_windows(9);
    both_mremap(60, 30, 20), compare_windows(10);
    /* Past the end, and then inside. */
    both_mmap(220, 30, rw, MAP_SHARED, 0, 40), compare_windows(11);
    both_grow(0, 60 * PAGE + 10), compare_windows(12);
    both_store(230, 84), compare_windows(13);
    compare_files();
}

static unsigned below(unsigned *x, unsigned n)
{
    *x ^= *x << 13, *x ^= *x >> 17, *x ^= *x << 5;
    return *x % n;
}

static void at_random(unsigned seed, int steps)
{
    static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE};
    unsigned x = seed;
    for (int i = 0; i < steps; i++) {
        unsigned what = below(&x, 16);
        size_t at = below(&x, 200), nr = 1 + below(&x, 40), pos = below(&x, 50);
        int prot = prots[below(&x, 4)], flags = below(&x, 2) ? MAP_SHARED : MAP_PRIVATE, file = (int)below(&x, 2);
        switch (what) {
        case 0: both_munmap(at, nr); break;
        case 1: case 2: both_mmap(at, nr, prot, flags, file, pos); break;
        case 3: both_mmap(NR, nr, prot, flags, file, pos); break;
        case 4: both_mprotect(at, nr, prot); break;
        case 5: both_msync(at, nr, flags == MAP_SHARED ? MS_SYNC : MS_ASYNC); break;
        case 6: both_madvise(at, nr, MADV_DONTNEED); break;
        case 7: both_madvise(at, nr, MADV_WILLNEED); break;
        case 8:
            /* Whatever the program holds, the cache may lose it. */
            (void)softfault_object_evict(object_of(fds[file][0]), 0, FILE_MAX, NULL);
            break;
        default:
            for (int k = 0; k < 8; k++)
                both_store(below(&x, NR), (unsigned char)below(&x, 256));
        }
        if (i % 8 == 0)
            compare_windows(1000 + i);
    }
    compare_windows(9999);
    compare_files();
}

void test_interpose(void)
{
    my.rt = new_runtime(4096);
    my.arena = new_arena(my.rt, NR * PAGE, 0, &my.base);
    real = mmap(NULL, NR * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(real != MAP_FAILED);
    for (int file = 0; file < 2; file++) {
        lens[file] = (40 + 12 * (uint64_t)file) * PAGE + 100;
        for (int side = 0; side < 2; side++) {
            const char *path = make_file("interpose", lens[file]);
            fds[file][side] = open(path, O_RDWR);
            CHECK(fds[file][side] >= 0);
            OK(unlink(path));
        }
    }
    by_hand();
    for (unsigned seed = 1; seed <= 2; seed++)
        at_random(seed * 2654435761u, 100);
    OK(softfault_arena_free(my.arena));
    for (size_t i = 0; i < 4; i++)
        CHECK(my.inodes[i].object == NULL || softfault_object_free(my.inodes[i].object) == 0);
    for (int file = 0; file < 2; file++)
        OK(close(fds[file][0]) | close(fds[file][1]));
    OK(munmap(real, NR * PAGE));
    OK(softfault_runtime_free(my.rt));
    memset(&my, 0, sizeof my);
}
