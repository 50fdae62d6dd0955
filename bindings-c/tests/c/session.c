/* Sessions: images that are memory again; and working sets. */
#include "image.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

softfault_session *restore(softfault_image *image, softfault_restore_options options)
{
    softfault_arena_options arena = {.size = sizeof arena, .delivery = env.delivery};
    softfault_session *session;
    options.size = sizeof options;
    options.arena = &arena;
    OK(softfault_restore(image, &options, &session));
    return session;
}

unsigned char *region_of(softfault_session *session, const char *name)
{
    size_t index;
    void *base;
    OK(softfault_session_find(session, name, &index));
    OK(softfault_session_region(session, index, &base, NULL));
    return base;
}

/* What lies in a trusted file as it is, is mapped from there. */
static void restore_directly(softfault_runtime *rt)
{
    softfault_image_options trusted = {.size = sizeof trusted, .integrity = SOFTFAULT_INTEGRITY_TRUSTED};
    softfault_restore_options options = {.size = sizeof options, .flags = SOFTFAULT_RESTORE_DIRECT};
    const char *path = make_file("direct.raw", 4 * EXTENT);
    softfault_progress progress = {.size = sizeof progress};
    softfault_session *session = NULL;
    softfault_image *image;
    void *base;
    OK(softfault_image_open(rt, path, NULL, &image));
    FAILS(softfault_restore(image, &options, &session), EACCES, DENIED, "direct");
    OK(softfault_image_free(image));
    OK(softfault_image_open(rt, path, &trusted, &image));
    session = restore(image, options);
    OK(softfault_session_region(session, 0, &base, NULL));
    CHECK(is_pattern(base, 0, 4 * EXTENT));
    OK(softfault_session_progress(session, &progress));
    softfault_arena *arena;
    uint32_t mode;
    OK(softfault_session_arena(session, 0, &arena, NULL));
    OK(softfault_arena_delivery(arena, &mode));
    CHECK(mode == SOFTFAULT_DELIVERY_IN_THREAD ? progress.direct_extents > 0 : progress.direct_extents == 0);
    OK(softfault_arena_free(arena));
    OK(softfault_session_free(session));
    OK(softfault_image_free(image));
}

void test_restore(void)
{
    softfault_runtime *rt = new_runtime(4096);
    struct path path = make_image("restored.sfi", SOFTFAULT_CODEC_LZ4);
    softfault_image *image = open_image(rt, path), *again;
    softfault_restore_options defaults = {0};
    softfault_session *one = restore(image, defaults), *two = restore(image, defaults);
    softfault_progress progress = {.size = sizeof progress};
    softfault_completion done = {.size = sizeof done};
    softfault_object *object;
    softfault_arena *arena;
    unsigned char *low = region_of(one, "low"), *heap = region_of(one, "heap"), *other = region_of(two, "heap");
    unsigned char page[4096];
    size_t len, offset;
    void *base;

    /* Lazily: nothing was read but what was touched. */
    OK(softfault_session_progress(one, &progress));
    CHECK(progress.pages == IMAGE_PAGES && progress.cached == 0 && progress.replay_ended == 1);
    CHECK(is_image(heap + 8 * PAGE, (512 + 8) * PAGE, PAGE));
    OK(softfault_session_progress(one, &progress));
    CHECK(progress.cached > 0 && progress.cached < IMAGE_PAGES / 2);

    /* Every byte, in both; what one stores the other does not see. */
    CHECK(is_image(low, 0, 512 * PAGE) && is_image(heap, 512 * PAGE, 512 * PAGE));
    heap[5] ^= 0xff;
    CHECK(is_image(other, 512 * PAGE, 512 * PAGE));
    CHECK(heap[5] == (pattern(512 * PAGE + 5) ^ 0xff));

    OK(softfault_session_region(one, 0, &base, &len));
    CHECK(base == low && len == 512 * PAGE);
    FAILS(softfault_session_region(one, 2, NULL, NULL), ENOENT, NO_ENTRY, "no region 2");
    FAILS(softfault_session_find(one, "stack", &len), ENOENT, NO_ENTRY, "no region \"stack\"");
    OK(softfault_session_arena(one, 1, &arena, &offset));
    OK(softfault_arena_read_at(arena, offset + PAGE, page, PAGE));
    CHECK(is_image(page, 513 * PAGE, PAGE));
    OK(softfault_arena_base(arena, &base));
    CHECK((unsigned char *)base + offset == heap);
    uint32_t mode;
    OK(softfault_arena_delivery(arena, &mode));
    CHECK(env.delivery == SOFTFAULT_DELIVERY_AUTO || mode == env.delivery);

    OK(softfault_session_image(one, &again));
    OK(softfault_image_object(again, &object));
    OK(softfault_object_read_at(object, 3 * PAGE, page, PAGE, NULL));
    CHECK(is_image(page, 3 * PAGE, PAGE));
    CHECK(softfault_object_write_at(object, 0, page, PAGE, NULL) < 0);

    OK(softfault_session_complete(two, &done));
    CHECK_IS(done.resident_bytes, IMAGE_PAGES * PAGE);
    OK(softfault_session_complete(two, NULL));

    restore_directly(rt);

    /* The image is what a handle or a session keeps. */
    OK(softfault_object_free(object));
    OK(softfault_image_free(again));
    OK(softfault_image_free(image));
    OK(softfault_runtime_free(rt));
    OK(softfault_session_free(two));
    CHECK(is_image(low, 0, 512 * PAGE));
    OK(softfault_session_free(one));
    CHECK(heap[5] == (pattern(512 * PAGE + 5) ^ 0xff)); /* its arena has a handle */
    OK(softfault_arena_free(arena));
}

void test_restore_errors(void)
{
    softfault_runtime *rt = new_runtime(256);
    struct path path = make_image("refused.sfi", SOFTFAULT_CODEC_RAW);
    softfault_image *image = open_image(rt, path), *file = open_image_file(path);
    softfault_restore_options options = {.size = sizeof options};
    softfault_arena_options arena = {.size = sizeof arena, .address = (void *)(uintptr_t)0x20000000000};
    softfault_image_failure failure;
    softfault_session *session = NULL;
    softfault_object *object;
    unsigned char page[4096];
    softfault_range range;
    char text[512];
    size_t full;

    FAILS(softfault_restore(file, NULL, &session), EINVAL, ARGUMENT, "without a runtime");
    FAILS(softfault_image_object(file, &object), EINVAL, ARGUMENT, "without a runtime");
    options.arena = &arena;
    FAILS(softfault_restore(image, &options, &session), EINVAL, ARGUMENT, "has an address");
    options = (softfault_restore_options){.size = sizeof options, .flags = 8};
    FAILS(softfault_restore(image, &options, &session), EINVAL, ARGUMENT, "0x8 is unknown");
    options = (softfault_restore_options){.size = sizeof options, .nr_overlays = 1};
    FAILS(softfault_restore(image, &options, &session), EINVAL, ARGUMENT, "overlays is NULL");
    CHECK(session == NULL);

    /* Overlays are whole pages of a region that may be written. */
    memset(page, 0xab, sizeof page);
    softfault_overlay overlay = {.name = "entropy", .offset = 520 * PAGE, .bytes = page, .len_bytes = 5};
    options.overlays = &overlay;
    FAILS(softfault_restore(image, &options, &session), EINVAL, ARGUMENT, "Restore");
    overlay.len_bytes = PAGE;
    OK(softfault_restore(image, &options, &session));
    CHECK(memcmp(region_of(session, "heap") + 8 * PAGE, page, PAGE) == 0);
    OK(softfault_session_overlay(session, 0, text, sizeof text, &full, &range));
    CHECK(strcmp(text, "entropy") == 0 && range.start == 520 * PAGE && range.end == 521 * PAGE);
    FAILS(softfault_session_overlay(session, 1, NULL, 0, NULL, NULL), ENOENT, NO_ENTRY, "no overlay 1");
    /* The limit cannot hold it. */
    FAILS(softfault_session_complete(session, NULL), ENOMEM, LIMIT, "cache's limit");
    OK(softfault_session_free(session));
    overlay.offset = 8 * PAGE;
    FAILS(softfault_restore(image, &options, &session), EACCES, DENIED, "may be written");

    /* An original address that is taken. */
    void *taken = mmap((void *)(uintptr_t)0x300040000000, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(taken == (void *)(uintptr_t)0x300040000000);
    options = (softfault_restore_options){.size = sizeof options, .flags = SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES};
    FAILS(softfault_restore(image, &options, &session), EEXIST, OCCUPIED, "0x300040000000");
    OK(munmap(taken, PAGE));
    OK(softfault_restore(image, &options, &session));
    CHECK(region_of(session, "heap") == taken && is_image(taken, 512 * PAGE, 512 * PAGE));
    OK(softfault_session_free(session));

    /* What fails its digest is SIGBUS for who touches it, and told. */
    FAILS(softfault_image_read_failure(image, NULL, NULL, 0, NULL), ENOENT, NO_ENTRY, "no read has failed");
    FAILS(softfault_image_read_failure(file, NULL, NULL, 0, NULL), EINVAL, ARGUMENT, "without a runtime");
    /* Of another codec, or it would be the same image, which is open already. */
    softfault_image *hurt = open_image(rt, make_image("hurt.sfi", SOFTFAULT_CODEC_LZ4));
    struct stat st;
    int fd = open(in_folder("hurt.sfi").text, O_RDWR);
    OK(fstat(fd, &st));
    for (off_t at = st.st_size / 4; at < st.st_size / 2; at += 512)
        CHECK_IS(pwrite(fd, "damaged", 7, at), 7);
    OK(close(fd));
    session = restore(hurt, (softfault_restore_options){0});
    int signo = 0;
    for (size_t i = 0; i < 512 && signo == 0; i++)
        signo = load_signal(region_of(session, "low") + i * PAGE);
    CHECK_IS(signo, SIGBUS);
    OK(softfault_image_read_failure(hurt, &failure, text, sizeof text, &full));
    CHECK_IS(failure.cause, SOFTFAULT_IMAGE_CAUSE_DIGEST);
    CHECK(strstr(text, "hurt.sfi") != NULL && full > 0);
    OK(softfault_session_free(session));
    OK(softfault_image_free(hurt));
    OK(softfault_image_free(file));
    OK(softfault_image_free(image));
    OK(softfault_runtime_free(rt));
}

static void touch(softfault_session *session, size_t first, size_t nr)
{
    const volatile unsigned char *heap = region_of(session, "heap");
    for (size_t i = first; i < first + nr; i++)
        (void)heap[i * PAGE];
}

static softfault_working_set *record(softfault_image *image, size_t first, size_t nr)
{
    softfault_session *session = restore(image, (softfault_restore_options){.record_window_ns = 1000000});
    softfault_working_set *set;
    touch(session, first, nr);
    OK(softfault_session_mark(session, &set));
    CHECK(set != NULL);
    touch(session, first + nr, nr); /* after the mark: not in it */
    OK(softfault_session_free(session));
    return set;
}

static uint64_t pages_of(softfault_working_set *set)
{
    softfault_working_set_properties info = {.size = sizeof info};
    OK(softfault_working_set_info(set, &info));
    CHECK(info.image_pages == IMAGE_PAGES && info.resolution_pages == 1);
    return info.nr_pages;
}

void test_working_set(void)
{
    softfault_runtime *rt = new_runtime(4096);
    softfault_image *image = open_image(rt, make_image("recorded.sfi", SOFTFAULT_CODEC_RAW));
    softfault_image *twin = open_image(rt, make_image("twin.sfi", SOFTFAULT_CODEC_LZ4));
    softfault_working_set *set = record(image, 16, 4), *later = record(image, 18, 4), *merged, *found, *carried, *none;
    softfault_working_set *both[2] = {set, later};
    softfault_range ranges[4];
    uint64_t start, end, nr_pages, in_both, foretold, touched, stayed, moved, lost;
    uint64_t total = 0;
    size_t full;
    char text[128];

    CHECK_IS(pages_of(set), 4);
    for (size_t i = 0; softfault_working_set_window(set, i, &start, &end, &nr_pages) == 0; i++) {
        CHECK(end > start && nr_pages > 0);
        OK(softfault_working_set_ranges(set, i, ranges, 4, &full));
        for (size_t r = 0; r < full; r++) {
            CHECK(ranges[r].start >= (512 + 16) * PAGE && ranges[r].end <= (512 + 20) * PAGE);
            total += (ranges[r].end - ranges[r].start) / PAGE;
        }
    }
    CHECK_IS(total, 4);
    FAILS(softfault_working_set_ranges(set, 4096, NULL, 0, NULL), ENOENT, NO_ENTRY, "no window 4096");

    OK(softfault_working_set_merge(both, 2, 2, &merged));
    CHECK_IS(pages_of(merged), 2);
    FAILS(softfault_working_set_merge(both, 2, 3, &merged), EINVAL, ARGUMENT, "least");
    OK(softfault_working_set_compare(set, later, &in_both, &foretold, &touched));
    CHECK(in_both == 2 && foretold == 2 && touched == 2);
    OK(softfault_working_set_suspicion(set, image, NULL, text, sizeof text, &full));
    CHECK(full == 0);

    /* Beside the image, and in a file of one's own. */
    OK(softfault_working_set_find(image, &none));
    CHECK(none == NULL);
    OK(softfault_working_set_save_beside(set, image));
    OK(softfault_working_set_find(image, &found));
    CHECK(found != NULL && pages_of(found) == 4);
    OK(softfault_working_set_free(found));
    OK(softfault_working_set_save(set, in_folder("own.sws").text));
    OK(softfault_working_set_open(in_folder("own.sws").text, &found));
    CHECK_IS(pages_of(found), 4);
    CHECK(softfault_working_set_open(in_folder("none.sws").text, &none) == -ENOENT);

    /* The twin has the same contents. */
    OK(softfault_working_set_carry(set, image, twin, &carried, &stayed, &moved, &lost));
    CHECK(stayed > 0 && moved == 0 && lost == 0);

    /* Replayed: the pages are there though nobody has touched any. */
    softfault_session *session = restore(twin, (softfault_restore_options){.replay = carried});
    softfault_progress progress = {.size = sizeof progress};
    do {
        OK(softfault_session_progress(session, &progress));
        usleep(1000);
    } while (!progress.replay_ended);
    CHECK(progress.replayed >= 4 && progress.cached >= 4);
    OK(softfault_session_mark(session, &none));
    CHECK(none == NULL);
    OK(softfault_session_free(session));

    /* A set of other contents. */
    softfault_image_writer *w;
    OK(softfault_image_writer_new(in_folder("other.sfi").text, IMAGE_PAGES * PAGE, NULL, &w));
    softfault_region whole = {.len_bytes = IMAGE_PAGES * PAGE, .address = 1 << 30, .prot = 3};
    OK(softfault_image_writer_region(w, &whole));
    OK(softfault_image_writer_finish(w, NULL));
    OK(softfault_image_writer_free(w));
    softfault_image *other = open_image(rt, in_folder("other.sfi"));
    softfault_restore_options options = {.size = sizeof options, .replay = set};
    softfault_image_failure failure;
    FAILS(softfault_restore(other, &options, &session), EINVAL, IMAGE, "differ");
    OK(softfault_last_image_failure(&failure));
    CHECK_IS(failure.cause, SOFTFAULT_IMAGE_CAUSE_MIXED);
    FAILS(softfault_working_set_save_beside(set, other), EINVAL, IMAGE, "differ");

    OK(softfault_working_set_free(carried));
    OK(softfault_working_set_free(found));
    OK(softfault_working_set_free(merged));
    OK(softfault_working_set_free(later));
    OK(softfault_working_set_free(set));
    FAILS(softfault_working_set_free(set), EBADF, HANDLE, "softfault_working_set");
    OK(softfault_image_free(other));
    OK(softfault_image_free(twin));
    OK(softfault_image_free(image));
    OK(softfault_runtime_free(rt));
}
