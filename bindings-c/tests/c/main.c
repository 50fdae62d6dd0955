/* Runs the topics. Usage: program DELIVERY FOLDER [TOPIC..] */
#include "env.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

struct env env;

void test_library(void);
void test_handles(void);
void test_options(void);
void test_runtime(void);
void test_object(void);
void test_files(void);
void test_cache(void);
void test_sync(void);
void test_arena(void);
void test_pin(void);
void test_vm_operations(void);
void test_store(void);
void test_minor(void);
void test_causes(void);
void test_stats(void);
void test_image(void);
void test_image_errors(void);
void test_restore(void);
void test_restore_errors(void);
void test_working_set(void);
void test_capture(void);
void test_image_ops(void);
void test_catalog(void);
void test_interpose(void);
void test_fork(void);

static const struct {
    const char *name;
    void (*run)(void);
} topics[] = {
    {"library", test_library}, /* first: no call has failed yet */
    {"handles", test_handles},
    {"options", test_options},
    {"runtime", test_runtime},
    {"object", test_object},
    {"files", test_files},
    {"cache", test_cache},
    {"sync", test_sync},
    {"arena", test_arena},
    {"pin", test_pin},
    {"vm_operations", test_vm_operations},
    {"store", test_store},
    {"minor", test_minor},
    {"causes", test_causes},
    {"stats", test_stats},
    {"image", test_image},
    {"image_errors", test_image_errors},
    {"restore", test_restore},
    {"restore_errors", test_restore_errors},
    {"working_set", test_working_set},
    {"capture", test_capture},
    {"image_ops", test_image_ops},
    {"catalog", test_catalog},
    {"interpose", test_interpose},
    {"fork", test_fork},
};

unsigned char pattern(uint64_t i)
{
    return (unsigned char)(i * 31 + (i >> 12) * 7 + 1);
}

void fill_pattern(void *dst, uint64_t pos, size_t len)
{
    unsigned char *p = dst;
    for (size_t i = 0; i < len; i++)
        p[i] = pattern(pos + i);
}

bool is_pattern(const void *src, uint64_t pos, size_t len)
{
    const unsigned char *p = src;
    for (size_t i = 0; i < len; i++)
        if (p[i] != pattern(pos + i))
            return false;
    return true;
}

const char *make_file(const char *name, uint64_t len)
{
    static char path[512];
    unsigned char page[4096];
    snprintf(path, sizeof path, "%s/%s", env.dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    for (uint64_t at = 0; at < len; at += sizeof page) {
        size_t n = len - at < sizeof page ? (size_t)(len - at) : sizeof page;
        fill_pattern(page, at, n);
        CHECK_IS(fwrite(page, 1, n, f), n);
    }
    OK(fclose(f));
    return path;
}

static sigjmp_buf back;
static volatile sig_atomic_t probing;

static void on_signal(int signo)
{
    if (probing)
        siglongjmp(back, signo);
    signal(signo, SIG_DFL);
}

void catch_signals(void)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal;
    OK(sigaction(SIGBUS, &sa, NULL));
    OK(sigaction(SIGSEGV, &sa, NULL));
}

int load_signal(const volatile unsigned char *p)
{
    int signo = sigsetjmp(back, 1);
    if (signo == 0) {
        probing = 1;
        (void)*p;
    }
    probing = 0;
    return signo;
}

int store_signal(volatile unsigned char *p, unsigned char value)
{
    int signo = sigsetjmp(back, 1);
    if (signo == 0) {
        probing = 1;
        *p = value;
    }
    probing = 0;
    return signo;
}

softfault_runtime *new_runtime(uint64_t pages)
{
    softfault_runtime_options options = {.size = sizeof options, .cache_limit_bytes = pages * PAGE};
    softfault_runtime *rt;
    OK(softfault_runtime_new(&options, &rt));
    return rt;
}

softfault_arena *new_arena(softfault_runtime *rt, size_t len, uint32_t flags, unsigned char **base)
{
    softfault_arena_options options = {.size = sizeof options, .flags = flags, .delivery = env.delivery};
    softfault_arena *arena;
    void *p;
    OK(softfault_arena_new(rt, len, &options, &arena));
    OK(softfault_arena_base(arena, &p));
    *base = p;
    return arena;
}

uint64_t counter(softfault_runtime *rt, const char *name)
{
    softfault_stats *stats;
    uint64_t value;
    OK(softfault_stats_read(rt, &stats));
    OK(softfault_stats_get(stats, name, &value));
    OK(softfault_stats_free(stats));
    return value;
}

static int memory_read(void *ctx, uint64_t pos, void *dst, size_t len, softfault_page *page)
{
    struct memory_store *s = ctx;
    (void)page;
    __atomic_fetch_add(&s->reads, 1, __ATOMIC_RELAXED);
    if (s->read_fails)
        return s->read_fails;
    if (pos + len > s->len)
        return -ENODATA;
    memcpy(dst, s->bytes + pos, len);
    return 0;
}

static int memory_write(void *ctx, uint64_t pos, const void *src, size_t len, const softfault_pages *pages)
{
    struct memory_store *s = ctx;
    (void)pages;
    __atomic_fetch_add(&s->writes, 1, __ATOMIC_RELAXED);
    if (s->write_fails)
        return s->write_fails;
    memcpy(s->bytes + pos, src, len);
    return 0;
}

static int memory_flush(void *ctx)
{
    struct memory_store *s = ctx;
    __atomic_fetch_add(&s->flushes, 1, __ATOMIC_RELAXED);
    return s->flush_fails;
}

static int memory_punch(void *ctx, uint64_t pos, uint64_t len)
{
    struct memory_store *s = ctx;
    s->punches++;
    memset(s->bytes + pos, 0, (size_t)len);
    return 0;
}

static int memory_set_len(void *ctx, uint64_t len)
{
    struct memory_store *s = ctx;
    s->set_lens++;
    (void)len;
    return 0;
}

static int memory_dsync(void *ctx, uint64_t pos, uint64_t len)
{
    struct memory_store *s = ctx;
    (void)pos;
    (void)len;
    s->dsyncs++;
    return 0;
}

static void memory_drop(void *ctx)
{
    struct memory_store *s = ctx;
    s->drops++;
}

const softfault_store_operations memory_operations = {
    .size = sizeof memory_operations,
    .read = memory_read,
    .write = memory_write,
    .flush = memory_flush,
    .punch = memory_punch,
    .set_len = memory_set_len,
    .dsync = memory_dsync,
    .drop = memory_drop,
};

void memory_store_init(struct memory_store *s, uint64_t len)
{
    memset(s, 0, sizeof *s);
    s->len = len;
    s->bytes = malloc((size_t)len);
    CHECK(s->bytes != NULL);
    fill_pattern(s->bytes, 0, (size_t)len);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s auto|inthread|segv|monitor FOLDER [TOPIC..]\n", argv[0]);
        return 2;
    }
    env.dir = argv[2];
    env.delivery = strcmp(argv[1], "segv") == 0       ? SOFTFAULT_DELIVERY_SEGV
                   : strcmp(argv[1], "monitor") == 0  ? SOFTFAULT_DELIVERY_MONITOR
                   : strcmp(argv[1], "inthread") == 0 ? SOFTFAULT_DELIVERY_IN_THREAD
                                                      : SOFTFAULT_DELIVERY_AUTO;
    catch_signals();
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++) {
        bool asked = argc == 3;
        for (int a = 3; a < argc; a++)
            asked = asked || strcmp(argv[a], topics[i].name) == 0;
        if (!asked)
            continue;
        printf("%s\n", topics[i].name);
        fflush(stdout);
        topics[i].run();
    }
    printf("every check passed\n");
    return 0;
}
