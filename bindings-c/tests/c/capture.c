/* Captures: arenas as an image, while a thread goes on storing to them. */
#include "image.h"

#include <pthread.h>
#include <unistd.h>

#define PAIRS 64

static unsigned char *shared;
static volatile int stop;

/* Counts, in two pages each time: the first of a pair is never behind the second. */
static void *count(void *unused)
{
    (void)unused;
    for (uint64_t n = 1; !stop; n++)
        for (size_t i = 0; i < PAIRS && !stop; i++) {
            __atomic_store_n((uint64_t *)(shared + 2 * i * PAGE), n, __ATOMIC_SEQ_CST);
            __atomic_store_n((uint64_t *)(shared + (2 * i + 1) * PAGE), n, __ATOMIC_SEQ_CST);
        }
    return NULL;
}

struct cut {
    int calls, says;
    uint64_t counter;
};

static int at_cut(void *ctx)
{
    struct cut *cut = ctx;
    cut->calls++;
    cut->counter = __atomic_load_n((uint64_t *)shared, __ATOMIC_SEQ_CST);
    return cut->says;
}

static void check_captured(softfault_runtime *rt, struct path path, uint64_t counter)
{
    softfault_image *image = open_image(rt, path);
    softfault_session *session = restore(image, (softfault_restore_options){0});
    unsigned char value[8];
    size_t full;
    void *base;
    OK(softfault_session_region(session, 0, &base, NULL));
    const unsigned char *p = base;
    uint64_t first, second;
    memcpy(&first, p, 8);
    CHECK_IS(first, counter);
    for (size_t i = 0; i < PAIRS; i++) {
        memcpy(&first, p + 2 * i * PAGE, 8);
        memcpy(&second, p + (2 * i + 1) * PAGE, 8);
        CHECK(first == second || first == second + 1);
    }
    CHECK(memcmp(p + 2 * PAIRS * PAGE, "\0\0\0\0", 4) == 0); /* excluded */
    CHECK(is_pattern(p + 3 * PAIRS * PAGE, 0, PAGE));
    OK(softfault_image_key(image, "counter", value, sizeof value, &full));
    CHECK(full == 8 && memcmp(value, &counter, 8) == 0);
    OK(softfault_session_free(session));
    OK(softfault_image_free(image));
}

void test_capture(void)
{
    softfault_runtime *rt = new_runtime(4096);
    softfault_arena_options how = {.size = sizeof how, .flags = SOFTFAULT_ARENA_CAPTURABLE, .delivery = env.delivery};
    softfault_capture_options options = {.size = sizeof options, .codec = SOFTFAULT_CODEC_LZ4};
    softfault_capture_state progress = {.size = sizeof progress};
    struct cut cut = {0}, refuses = {.says = 7};
    struct path path = in_folder("captured.sfi");
    softfault_object *memory;
    softfault_arena *arena = NULL, *plain;
    softfault_capture *capture = NULL;
    softfault_digest digest;
    unsigned char *base;
    pthread_t thread;
    void *p;

    plain = new_arena(rt, EXTENT, 0, &base);
    FAILS(softfault_capture_begin(rt, path.text, &plain, 1, NULL, NULL, NULL, &capture), EACCES, DENIED, "capturable");
    OK(softfault_arena_free(plain));
    if (softfault_arena_new(rt, EXTENT, &how, &arena) != 0) {
        /* Only in-thread delivery can hold stores, which a library without userfaultfd does not have. */
        char why[512];
        CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_DELIVERY);
        softfault_last_error(why, sizeof why);
        CHECK((env.delivery != SOFTFAULT_DELIVERY_IN_THREAD && env.delivery != SOFTFAULT_DELIVERY_AUTO) ||
              strstr(why, "InThread is not available") != NULL);
        printf("  no captures here: %s\n", why);
        FAILS(softfault_capture_begin(rt, path.text, NULL, 1, NULL, NULL, NULL, &capture), EINVAL, ARGUMENT, "arenas");
        OK(softfault_runtime_free(rt));
        return;
    }
    OK(softfault_object_anonymous(rt, EXTENT, NULL, &memory));
    OK(softfault_arena_map(arena, 0, memory, 0, EXTENT, SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE, SOFTFAULT_MAP_SHARED));
    OK(softfault_arena_base(arena, &p));
    shared = p;
    memcpy(shared + 2 * PAIRS * PAGE, "secret", 6);
    fill_pattern(shared + 3 * PAIRS * PAGE, 0, PAGE);
    OK(pthread_create(&thread, NULL, count, NULL));

    FAILS(softfault_capture_begin(rt, path.text, &arena, 1, NULL, at_cut, &refuses, &capture), EIO, CAPTURE,
          "at_cut returned 7");
    CHECK(refuses.calls == 1 && access(path.text, F_OK) != 0);
    options.flags = 8;
    FAILS(softfault_capture_begin(rt, path.text, &arena, 1, &options, NULL, NULL, &capture), EINVAL, ARGUMENT, "0x8");
    options.flags = 0;

    softfault_excluded secret = {.arena = arena, .offset = 2 * PAIRS * PAGE + 1, .len_bytes = 5};
    options.excluded = &secret;
    options.nr_excluded = 1;
    OK(softfault_capture_begin(rt, path.text, &arena, 1, &options, at_cut, &cut, &capture));
    CHECK(cut.calls >= 1 && access(path.text, F_OK) != 0);
    OK(softfault_capture_key(capture, "counter", &cut.counter, sizeof cut.counter));
    OK(softfault_capture_progress(capture, &progress));
    CHECK(progress.nr_pages == EXTENT / PAGE && progress.done_pages <= progress.nr_pages);
    OK(softfault_capture_commit(capture, &digest));
    FAILS(softfault_capture_commit(capture, NULL), EINVAL, ARGUMENT, "committed");
    FAILS(softfault_capture_key(capture, "k", "v", 1), EINVAL, ARGUMENT, "committed");
    FAILS(softfault_capture_progress(capture, &progress), EINVAL, ARGUMENT, "committed");
    OK(softfault_capture_free(capture));

    /* One that is not committed leaves nothing. */
    struct path given_up = in_folder("cancelled.sfi");
    OK(softfault_capture_begin(rt, given_up.text, &arena, 1, NULL, NULL, NULL, &capture));
    OK(softfault_capture_free(capture));
    CHECK(access(given_up.text, F_OK) != 0);

    stop = 1;
    OK(pthread_join(thread, NULL));
    check_captured(rt, path, cut.counter);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(memory));
    OK(softfault_runtime_free(rt));
}
