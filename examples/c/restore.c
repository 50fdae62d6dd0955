/*
 * A memory as an image, and the image as memory again: filled page by page as it is touched, each page verified before anybody
 * sees it, and private to the session.
 *
 * Usage: restore [MIB]. Makes an image of so many MiB (default 16) in the temporary folder (TMPDIR), which goes with the
 * program, restores it twice, compares every byte, and records what a third session touches first.
 */
#include <inttypes.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096

/* Ends the program with the library's words, and with what is wrong with an image. */
static void must(int result, const char *what)
{
    char words[512], file[512];
    softfault_image_failure failure;
    if (result == 0)
        return;
    softfault_last_error(words, sizeof words);
    fprintf(stderr, "%s: %s\n", what, words);
    if (softfault_last_image_failure(&failure) == 0 && failure.file_offset != UINT64_MAX) {
        softfault_last_object(file, sizeof file);
        fprintf(stderr, "%s: look at byte %" PRIu64 "\n", file, failure.file_offset);
    }
    exit(1);
}

static unsigned char byte_at(size_t i)
{
    /* Every fourth page is zero: such pages take no room in the image. */
    return i / PAGE % 4 == 3 ? 0 : (unsigned char)(i * 7 + i / PAGE);
}

static void write_image(const char *path, size_t len)
{
    softfault_image_writer_options options = {.size = sizeof options, .codec = SOFTFAULT_CODEC_LZ4};
    softfault_region heap = {.name = "heap", .address = 0x10000000000, .len_bytes = len, .prot = SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE};
    softfault_image_writer *writer;
    unsigned char page[PAGE];

    must(softfault_image_writer_new(path, len, &options, &writer), "a new image");
    must(softfault_image_writer_region(writer, &heap), "its region");
    must(softfault_image_writer_key(writer, "application", "restore.c", 9), "a key");
    for (size_t at = 0; at < len; at += PAGE) {
        for (size_t i = 0; i < PAGE; i++)
            page[i] = byte_at(at + i);
        must(softfault_image_writer_write(writer, at, page, PAGE), "a page");
    }
    must(softfault_image_writer_finish(writer, NULL), "the image");
    must(softfault_image_writer_free(writer), "the writer");
}

static softfault_session *restore(softfault_image *image, uint64_t record_window_ns, unsigned char **heap)
{
    softfault_restore_options options = {.size = sizeof options, .record_window_ns = record_window_ns};
    softfault_session *session;
    void *base;
    size_t index;
    must(softfault_restore(image, &options, &session), "a session");
    must(softfault_session_find(session, "heap", &index), "heap");
    must(softfault_session_region(session, index, &base, NULL), "heap");
    *heap = base;
    return session;
}

static uint64_t cached(softfault_session *session)
{
    softfault_progress progress = {.size = sizeof progress};
    must(softfault_session_progress(session, &progress), "progress");
    return progress.cached;
}

static void check(const unsigned char *heap, size_t len, const char *whose)
{
    for (size_t i = 0; i < len; i++) {
        if (heap[i] != byte_at(i)) {
            fprintf(stderr, "%s: byte %zu is %d, and not %d\n", whose, i, heap[i], byte_at(i));
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    size_t len = (size_t)(argc > 1 ? atoi(argv[1]) : 16) << 20;
    const char *folder = getenv("TMPDIR");
    char dir[4096], path[4200];
    softfault_runtime *rt;
    softfault_image *image;
    softfault_session *one, *two, *recorded;
    softfault_working_set *set;
    softfault_working_set_properties touched = {.size = sizeof touched};
    unsigned char *heap, *other;

    if (len == 0) {
        fprintf(stderr, "usage: restore [MIB]\n");
        return 1;
    }
    snprintf(dir, sizeof dir, "%s/softfault-restore-XXXXXX", folder != NULL ? folder : "/tmp");
    if (mkdtemp(dir) == NULL) {
        perror(dir);
        return 1;
    }
    snprintf(path, sizeof path, "%s/heap.sfi", dir);
    write_image(path, len);

    must(softfault_runtime_new(NULL, &rt), "a runtime");
    must(softfault_image_open(rt, path, NULL, &image), path);
    /* What is open is read by its descriptor. */
    unlink(path);
    rmdir(dir);

    one = restore(image, 0, &heap);
    printf("restored %zu MiB: %" PRIu64 " pages are in memory\n", len >> 20, cached(one));
    if (heap[5] != byte_at(5))
        return 1;
    printf("touched a byte:   %" PRIu64 " are\n", cached(one));
    check(heap, len, "the first session");
    printf("touched them all: %" PRIu64 " are\n", cached(one));

    /* What one session stores is its own; the pages that nobody stored to are in memory once. */
    two = restore(image, 0, &other);
    memset(heap, 0xff, 10 * PAGE);
    check(other, len, "the second session");
    printf("a second session: %" PRIu64 " are\n", cached(two));

    recorded = restore(image, 10000000, &heap);
    for (size_t i = 0; i < 3; i++)
        if (heap[i * PAGE] != byte_at(i * PAGE))
            return 1;
    must(softfault_session_mark(recorded, &set), "the recording");
    must(softfault_working_set_info(set, &touched), "the working set");
    printf("a third touched:  %" PRIu64 " pages before it was ready\n", touched.nr_pages);
    if (touched.nr_pages != 3)
        return 1;

    must(softfault_working_set_free(set), "the working set");
    must(softfault_session_free(recorded), "the third session");
    must(softfault_session_free(two), "the second session");
    must(softfault_session_free(one), "the first session");
    must(softfault_image_free(image), "the image");
    must(softfault_runtime_free(rt), "the runtime");
    printf("every byte was as expected\n");
    return 0;
}
