/* Versions, words, handles, option structures. */
#include "env.h"

#include <pthread.h>

void test_library(void)
{
    char words[64];
    size_t full;
    softfault_runtime *rt = NULL;

    CHECK_IS(softfault_abi_version(), SOFTFAULT_ABI_VERSION);
    CHECK(strchr(softfault_version(), '.') != NULL);

    /* No call has failed. */
    words[0] = 'x';
    CHECK_IS(softfault_last_error(words, sizeof words), 0);
    CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_NONE);
    CHECK_IS(softfault_last_fault_reason(), 0);
    CHECK_IS(softfault_last_lost_ranges(NULL, 0), 0);
    CHECK_IS(words[0], 'x');

    FAILS(softfault_runtime_new(NULL, NULL), EINVAL, ARGUMENT, "out is NULL");
    full = softfault_last_error(NULL, 0);
    CHECK_IS(full, strlen("out is NULL"));
    CHECK_IS(softfault_last_error(words, 4), full);
    CHECK(strcmp(words, "out") == 0);
    CHECK_IS(softfault_last_error(words, 0), full);
    CHECK(strcmp(words, "out") == 0);

    /* A call that succeeds leaves the words. */
    OK(softfault_runtime_new(NULL, &rt));
    CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_ARGUMENT);
    OK(softfault_runtime_free(rt));

    OK(softfault_fault_reason_text(SOFTFAULT_VM_FAULT_MAJOR | SOFTFAULT_VM_FAULT_RETRY, words, sizeof words, &full));
    CHECK(strcmp(words, "MAJOR|RETRY") == 0);
    CHECK_IS(full, 11);
    OK(softfault_fault_reason_text(0x1, words, 2, NULL));
    CHECK(strcmp(words, "O") == 0);
    FAILS(softfault_fault_reason_text(1, NULL, 5, NULL), EINVAL, ARGUMENT, "buffer is NULL");
    FAILS(softfault_fault_reason_text(1, words, SIZE_MAX, NULL), EINVAL, ARGUMENT, "leaves the address space");
}

/* Whatever is given for a handle is refused. */
static void refuses(softfault_runtime *not_one, int code, const char *why)
{
    softfault_object *out = NULL;
    uint32_t mode;
    FAILS(softfault_runtime_set_cache_limit(not_one, 1 << 20), code, HANDLE, why);
    FAILS(softfault_runtime_delivery(not_one, &mode), code, HANDLE, why);
    FAILS(softfault_object_anonymous(not_one, 4096, NULL, &out), code, HANDLE, why);
    FAILS(softfault_runtime_free(not_one), code, HANDLE, why);
    CHECK(out == NULL);
}

static softfault_runtime *shared;

/* Calls on a handle that is freed meanwhile: they work, or are refused; nothing else. */
static void *call_until_freed(void *unused)
{
    for (;;) {
        softfault_stats *stats;
        int got = softfault_stats_read(shared, &stats);
        if (got == -EBADF)
            return unused;
        if (got != 0 || softfault_stats_free(stats) != 0)
            return (void *)&shared;
    }
}

static void race(void)
{
    pthread_t threads[4];
    void *bad;
    shared = new_runtime(256);
    for (int i = 0; i < 4; i++)
        OK(pthread_create(&threads[i], NULL, call_until_freed, NULL));
    for (int i = 0; i < 1000; i++) {
        softfault_stats *stats;
        OK(softfault_stats_read(shared, &stats));
        OK(softfault_stats_free(stats));
    }
    OK(softfault_runtime_free(shared));
    for (int i = 0; i < 4; i++) {
        OK(pthread_join(threads[i], &bad));
        CHECK(bad == NULL);
    }
}

void test_handles(void)
{
    softfault_runtime *rt = new_runtime(256), *other = new_runtime(256), *again;
    softfault_object *object;
    char local[64];

    OK(softfault_object_anonymous(rt, PAGE, NULL, &object));
    refuses(NULL, EINVAL, "NULL");
    refuses((softfault_runtime *)local, EBADF, "no such handle");
    refuses((softfault_runtime *)(local + 1), EBADF, "no such handle");
    refuses((softfault_runtime *)object, EBADF, "another type");
    refuses((softfault_runtime *)(uintptr_t)UINTPTR_MAX, EBADF, "no such handle");
    refuses((softfault_runtime *)((uintptr_t)rt ^ 0x100000), EBADF, "no such handle");
    refuses((softfault_runtime *)((uintptr_t)rt ^ 0x1), EBADF, "no such handle");
    FAILS(softfault_object_free((softfault_object *)rt), EBADF, HANDLE, "softfault_object");
    FAILS(softfault_arena_free((softfault_arena *)object), EBADF, HANDLE, "softfault_arena");
    FAILS(softfault_pin_free((softfault_pin *)object), EBADF, HANDLE, "softfault_pin");
    FAILS(softfault_held_free((softfault_held *)object), EBADF, HANDLE, "softfault_held");
    FAILS(softfault_stats_free((softfault_stats *)object), EBADF, HANDLE, "softfault_stats");
    FAILS(softfault_arena_free(NULL), EINVAL, HANDLE, "NULL");
    FAILS(softfault_pin_free(NULL), EINVAL, HANDLE, "NULL");
    FAILS(softfault_held_free(NULL), EINVAL, HANDLE, "NULL");
    FAILS(softfault_object_free(NULL), EINVAL, HANDLE, "NULL");

    OK(softfault_runtime_free(other));
    refuses(other, EBADF, "freed");
    again = new_runtime(256);
    refuses(other, EBADF, "freed"); /* its place in the table has another name now */
    CHECK(again != other);
    OK(softfault_runtime_free(again));

    /* Thousands of handles: the table grows. */
    softfault_stats **many = malloc(5000 * sizeof *many);
    CHECK(many != NULL);
    for (int i = 0; i < 5000; i++)
        OK(softfault_stats_read(rt, &many[i]));
    for (int i = 0; i < 5000; i++)
        OK(softfault_stats_free(many[i]));
    for (int i = 0; i < 5000; i++)
        CHECK_IS(softfault_stats_free(many[i]), -EBADF);
    free(many);
    race();

    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
}

void test_options(void)
{
    struct {
        softfault_runtime_options options;
        uint64_t later[4];
    } longer;
    softfault_runtime_options options;
    softfault_runtime *rt;
    softfault_object *object;
    softfault_arena *arena;
    char unaligned[sizeof options + 1];

    memset(&longer, 0, sizeof longer);
    longer.options.size = sizeof longer;
    OK(softfault_runtime_new(&longer.options, &rt));
    OK(softfault_runtime_free(rt));
    longer.later[3] = 1;
    FAILS(softfault_runtime_new(&longer.options, &rt), E2BIG, ARGUMENT, "an option that this version does not have");

    memset(&options, 0, sizeof options);
    FAILS(softfault_runtime_new(&options, &rt), EINVAL, ARGUMENT, "size is 0");
    options.size = sizeof options - 16;
    FAILS(softfault_runtime_new(&options, &rt), EINVAL, ARGUMENT, "size is 72");
    options.size = sizeof options;
    options.reserved = 1;
    FAILS(softfault_runtime_new(&options, &rt), EINVAL, ARGUMENT, "reserved");
    options.reserved = 0;
    options.flags = 0x80;
    FAILS(softfault_runtime_new(&options, &rt), EINVAL, ARGUMENT, "0x80 is unknown");
    options.flags = 0;
    options.swap_bytes = 1 << 20;
    FAILS(softfault_runtime_new(&options, &rt), EINVAL, ARGUMENT, "swap_path");
    options.swap_path = "/does/not/exist/swap";
    FAILS(softfault_runtime_new(&options, &rt), ENOENT, IO, "swap");
    options.swap_path = NULL;
    options.swap_bytes = 0;
    options.zswap_bytes = 1 << 20;
    FAILS(softfault_runtime_new(&options, &rt), EINVAL, ARGUMENT, "zswap");

    /* Every option at once; a structure need not be aligned. */
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.cache_limit_bytes = 1 << 20;
    options.swap_path = env.dir;
    options.swap_bytes = 4 << 20;
    options.zswap_bytes = 1 << 20;
    options.fillers = 2;
    options.exit_wait_ms = SOFTFAULT_OFF;
    options.fill_window_pages = 8;
    options.readahead_pages = SOFTFAULT_OFF;
    options.dirty_background_percent = SOFTFAULT_OFF;
    options.dirty_percent = 50;
    options.writeback_interval_ns = 100000000;
    options.writeback_expire_ns = 1000000000;
    memcpy(unaligned + 1, &options, sizeof options);
    OK(softfault_runtime_new((const softfault_runtime_options *)(const void *)(unaligned + 1), &rt));
    CHECK_IS(counter(rt, "nr_cache_limit_pages"), 256);
    CHECK_IS(counter(rt, "nr_swap_slots"), (4 << 20) / PAGE);

    softfault_object_options o = {.size = sizeof o, .flags = 0x80000000u};
    FAILS(softfault_object_anonymous(rt, PAGE, &o, &object), EINVAL, ARGUMENT, "0x80000000 is unknown");
    o.flags = SOFTFAULT_OBJECT_DIRECT;
    FAILS(softfault_object_anonymous(rt, PAGE, &o, &object), EINVAL, ARGUMENT, "for files");
    o.flags = 0;
    o.failure_policy = 9;
    FAILS(softfault_object_anonymous(rt, PAGE, &o, &object), EINVAL, ARGUMENT, "failure_policy is 9");
    o.failure_policy = SOFTFAULT_FAILURE_ABORT;
    o.reserved = 7;
    FAILS(softfault_object_anonymous(rt, PAGE, &o, &object), EINVAL, ARGUMENT, "reserved");
    o.size = 3;
    FAILS(softfault_object_anonymous(rt, PAGE, &o, &object), EINVAL, ARGUMENT, "size is 3");

    softfault_arena_options a = {.size = sizeof a, .flags = 0x20};
    FAILS(softfault_arena_new(rt, PAGE, &a, &arena), EINVAL, ARGUMENT, "0x20 is unknown");
    a.flags = 0;
    a.delivery = 4;
    FAILS(softfault_arena_new(rt, PAGE, &a, &arena), EINVAL, ARGUMENT, "delivery is 4");
    a.size = 8;
    FAILS(softfault_arena_new(rt, PAGE, &a, &arena), EINVAL, ARGUMENT, "size is 8");
    a.size = sizeof a;
    a.delivery = SOFTFAULT_DELIVERY_SEGV;
    a.granule_bytes = 4096;
    OK(softfault_arena_new(rt, PAGE, &a, &arena));
    OK(softfault_arena_free(arena));
    OK(softfault_runtime_free(rt));
}
