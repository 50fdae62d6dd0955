/*
 * The first steps: a file, mapped into an arena, read by plain loads whose page faults this process resolves itself.
 *
 * Usage: quickstart [FILE]. Without FILE it makes one of 16 MiB in the temporary folder (TMPDIR), which goes with the process,
 * however that ends. Compares every byte with what read(2) gives.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Ends the program with the library's words. */
static void must(int result, const char *what)
{
    if (result != 0) {
        char words[256];
        softfault_last_error(words, sizeof words);
        fprintf(stderr, "%s: %s\n", what, words);
        exit(1);
    }
}

static uint64_t counter(softfault_runtime *rt, const char *name)
{
    softfault_stats *stats;
    uint64_t value;
    must(softfault_stats_read(rt, &stats), "stats");
    must(softfault_stats_get(stats, name, &value), name);
    must(softfault_stats_free(stats), "stats");
    return value;
}

/* Makes a file without a name. */
static int make_file(void)
{
    static unsigned char block[1 << 20];
    const char *folder = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/softfault-quickstart-XXXXXX", folder != NULL ? folder : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    unlink(path);
    for (int i = 0; i < 16; i++) {
        for (size_t j = 0; j < sizeof block; j++)
            block[j] = (unsigned char)(j * 7 + j / 4096 + (size_t)i);
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block) {
            perror(path);
            exit(1);
        }
    }
    return fd;
}

int main(int argc, char **argv)
{
    softfault_runtime *rt;
    softfault_object *file;
    softfault_arena *arena;
    void *base;
    uint64_t len, at, differ = 0;
    char report[1024];

    if (softfault_abi_version() < SOFTFAULT_ABI_VERSION) {
        fprintf(stderr, "the library (ABI %u) is older than this program\n", softfault_abi_version());
        return 1;
    }
    int fd = argc > 1 ? open(argv[1], O_RDONLY) : make_file();
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }

    must(softfault_runtime_new(NULL, &rt), "runtime");
    must(softfault_runtime_delivery_report(rt, report, sizeof report, NULL), "delivery");
    fputs(report, stdout); /* what can be had here, what was chosen, and why */

    must(softfault_object_from_fd(rt, fd, NULL, &file), "file");
    must(softfault_object_len(file, &len), "length");
    must(softfault_arena_new(rt, len > 0 ? (size_t)len : 1, NULL, &arena), "arena");
    must(softfault_arena_base(arena, &base), "arena");
    if (len > 0)
        must(softfault_arena_map(arena, 0, file, 0, (size_t)len, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED), "map");

    /* The mapping and the arena keep what they need. */
    must(softfault_object_free(file), "object");

    for (at = 0; at < len;) {
        static unsigned char want[65536];
        ssize_t n = pread(fd, want, sizeof want, (off_t)at);
        if (n <= 0) {
            perror("pread");
            return 1;
        }
        if (memcmp((unsigned char *)base + at, want, (size_t)n) != 0) /* each first touch is a fault */
            differ++;
        at += (uint64_t)n;
    }
    close(fd);
    printf("%" PRIu64 " bytes, %" PRIu64 " faults, %" PRIu64 " of them major\n", len, counter(rt, "pgfault"),
           counter(rt, "pgmajfault"));
    must(softfault_arena_free(arena), "arena");
    must(softfault_runtime_free(rt), "runtime");
    if (differ != 0) {
        printf("%" PRIu64 " blocks differ\n", differ);
        return 1;
    }
    printf("every byte was as expected\n");
    return 0;
}
