/*
 * An array larger than the cache it is mapped through: reversed in place by plain loads and stores, and written back.
 *
 * Usage: out_of_core [MEGABYTES [CACHE_MEGABYTES]], by default 64 through 8. The result is checked by read(2).
 */
#include <fcntl.h>
#include <inttypes.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void must(int result, const char *what)
{
    if (result != 0) {
        char words[256];
        softfault_last_error(words, sizeof words);
        fprintf(stderr, "%s: %s\n", what, words);
        exit(1);
    }
}

static uint64_t value(uint64_t i)
{
    return i * 0x9e3779b97f4a7c15u + 1;
}

int main(int argc, char **argv)
{
    uint64_t megabytes = argc > 1 ? strtoull(argv[1], NULL, 10) : 64;
    uint64_t cache = argc > 2 ? strtoull(argv[2], NULL, 10) : 8;
    uint64_t len = megabytes << 20, nr = len / sizeof(uint64_t), wrong = 0, cached, evicted;
    softfault_runtime_options options = {.size = sizeof options, .cache_limit_bytes = cache << 20};
    softfault_object_options writable = {.size = sizeof writable, .flags = SOFTFAULT_OBJECT_WRITABLE};
    char path[] = "/tmp/softfault-out-of-core-XXXXXX";
    static uint64_t block[8192];
    softfault_runtime *rt;
    softfault_object *file;
    softfault_arena *arena;
    softfault_stats *stats;
    void *base;

    int fd = mkstemp(path);
    if (fd < 0 || megabytes == 0) {
        perror(path);
        return 1;
    }
    unlink(path); /* it goes with the process, however that ends */
    for (uint64_t i = 0; i < nr; i += 8192) {
        for (uint64_t j = 0; j < 8192; j++)
            block[j] = value(i + j);
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block) {
            perror(path);
            return 1;
        }
    }

    must(softfault_runtime_new(&options, &rt), "runtime");
    must(softfault_object_from_fd(rt, fd, &writable, &file), "file");
    must(softfault_arena_new(rt, (size_t)len, NULL, &arena), "arena");
    must(softfault_arena_base(arena, &base), "arena");
    must(softfault_arena_map(arena, 0, file, 0, (size_t)len, SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE,
                             SOFTFAULT_MAP_SHARED),
         "map");

    uint64_t *array = base;
    for (uint64_t i = 0; i < nr / 2; i++) {
        uint64_t low = array[i];
        array[i] = array[nr - 1 - i];
        array[nr - 1 - i] = low;
    }

    must(softfault_stats_read(rt, &stats), "stats");
    must(softfault_stats_get(stats, "nr_cached_pages", &cached), "nr_cached_pages");
    must(softfault_stats_get(stats, "pgmajfault", &evicted), "pgmajfault");
    must(softfault_stats_free(stats), "stats");
    printf("%" PRIu64 " MiB through a cache of %" PRIu64 " MiB: %" PRIu64 " pages cached, %" PRIu64 " major faults\n",
           megabytes, cache, cached, evicted);

    must(softfault_object_sync_all(file), "sync"); /* durable from here on, or an error that says which bytes are not */
    must(softfault_arena_free(arena), "arena");
    must(softfault_object_free(file), "object");
    must(softfault_runtime_free(rt), "runtime");

    for (uint64_t i = 0; i < nr; i += 8192) {
        if (pread(fd, block, sizeof block, (off_t)(i * sizeof(uint64_t))) != (ssize_t)sizeof block) {
            perror(path);
            return 1;
        }
        for (uint64_t j = 0; j < 8192; j++)
            wrong += block[j] != value(nr - 1 - (i + j));
    }
    close(fd);
    if (wrong != 0 || cached > (cache << 20) / 4096) {
        printf("%" PRIu64 " words are wrong, %" PRIu64 " pages were cached\n", wrong, cached);
        return 1;
    }
    printf("every word is in its place\n");
    return 0;
}
