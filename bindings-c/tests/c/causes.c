/* Causes: what a store said reaches the call, with the object's label and both offsets. */
#include "env.h"

#include <errno.h>

static const int errnos[] = {EIO, ENOSPC, EDQUOT, ECONNRESET, ESTALE, ETIMEDOUT, EROFS};

static void last(uint32_t cause, int store_errno, uint64_t object_offset, uint64_t arena_offset)
{
    softfault_fault fault;
    char label[64];
    OK(softfault_last_fault(&fault));
    CHECK_IS(fault.cause, cause);
    CHECK_IS(fault.store_errno, store_errno);
    CHECK_IS(fault.object_offset, object_offset);
    CHECK_IS(fault.arena_offset, arena_offset);
    CHECK_IS(softfault_last_object(label, sizeof label), strlen("the ill one"));
    CHECK_IS(strcmp(label, "the ill one"), 0);
}

void test_causes(void)
{
    softfault_runtime *rt = new_runtime(1024);
    struct memory_store store;
    softfault_object_options options = {.size = sizeof options, .flags = SOFTFAULT_OBJECT_WRITABLE, .label = "the ill one"};
    softfault_object *object;
    unsigned char *base, byte = 1;
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);
    softfault_fault fault;
    size_t i, nr;

    memory_store_init(&store, 16 * PAGE);
    options.readahead_pages = SOFTFAULT_OFF;
    options.fill_window_pages = 1;
    OK(softfault_object_from_store(rt, store.len, &memory_operations, &store, &options, &object));
    OK(softfault_arena_map(arena, 3 * PAGE, object, 2 * PAGE, 8 * PAGE, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED));
    CHECK_IS(softfault_last_fault(NULL), -EINVAL);
    for (i = 0; i < sizeof errnos / sizeof *errnos; i++) {
        const char *text = strerror(errnos[i]);
        store.read_fails = -errnos[i];
        FAILS(softfault_object_read_at(object, 5 * PAGE + 1, &byte, 1, &nr), errnos[i], FAULT, text);
        last(SOFTFAULT_CAUSE_IO, errnos[i], 5 * PAGE + 1, UINT64_MAX);
        FAILS(softfault_arena_fault_in(arena, 6 * PAGE, PAGE, SOFTFAULT_ACCESS_READ), errnos[i], FAULT, text);
        last(SOFTFAULT_CAUSE_IO, errnos[i], 5 * PAGE, 6 * PAGE);
        FAILS(softfault_arena_read_at(arena, 6 * PAGE + 2, &byte, 1), errnos[i], FAULT, "the ill one");
        last(SOFTFAULT_CAUSE_IO, errnos[i], 5 * PAGE + 2, 6 * PAGE + 2);
        store.read_fails = 0;
        OK(softfault_object_write_at(object, 9 * PAGE, &byte, 1, &nr));
        store.write_fails = -errnos[i];
        FAILS(softfault_object_sync_all(object), errnos[i], WRITEBACK, text);
        last(SOFTFAULT_CAUSE_IO, errnos[i], 9 * PAGE, UINT64_MAX);
        store.write_fails = 0;
        store.flush_fails = -errnos[i];
        FAILS(softfault_object_sync_all(object), errnos[i], FLUSH, text);
        last(SOFTFAULT_CAUSE_IO, errnos[i], UINT64_MAX, UINT64_MAX);
        store.flush_fails = 0;
        OK(softfault_object_sync_all(object));
    }
    store.read_fails = -ENODATA;
    FAILS(softfault_object_read_at(object, PAGE, &byte, 1, &nr), EIO, FAULT, "ends before");
    last(SOFTFAULT_CAUSE_SHORT, 0, PAGE, UINT64_MAX);
    store.read_fails = -EBADMSG;
    FAILS(softfault_object_read_at(object, PAGE, &byte, 1, &nr), EHWPOISON, FAULT, "its check");
    last(SOFTFAULT_CAUSE_CORRUPT, 0, PAGE, UINT64_MAX);
    store.read_fails = 0;
    FAILS(softfault_arena_fault_in(arena, 6 * PAGE, PAGE, SOFTFAULT_ACCESS_WRITE), EFAULT, FAULT, "does not permit");
    last(SOFTFAULT_CAUSE_NOT_PERMITTED, 0, 5 * PAGE, 6 * PAGE);
    FAILS(softfault_arena_fault_in(arena, 1, PAGE, SOFTFAULT_ACCESS_READ), EINVAL, ARGUMENT, "range.start");
    CHECK_IS(softfault_last_fault(&fault), -ENOENT);
    CHECK_IS(softfault_last_object(NULL, 0), 0);

    softfault_failure failures[3];
    size_t all;
    OK(softfault_runtime_recent_failures(rt, failures, 3, &all));
    CHECK(all > 3);
    CHECK(failures[1].number > failures[0].number && failures[2].number > failures[1].number);
    CHECK_IS(failures[2].op, SOFTFAULT_FAILED_READ);
    CHECK_IS(failures[2].cause, SOFTFAULT_CAUSE_CORRUPT);
    CHECK_IS(failures[2].object_offset, PAGE);
    CHECK_IS(strcmp(failures[2].object, "the ill one"), 0);
    FAILS(softfault_runtime_recent_failures(rt, NULL, 3, &all), EINVAL, ARGUMENT, "failures is NULL");
    OK(softfault_runtime_recent_failures(rt, NULL, 0, NULL));

    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
    CHECK_IS(store.drops, 1);
    free(store.bytes);
}
