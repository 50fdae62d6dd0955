/*
 * The C side of the bench `abi`: the same as subject.rs, through softfault.h.
 *
 * fault minor|custom FILE LEN CPU: for each line on standard input, first touches of LEN bytes; answers "done NS", the
 * nanoseconds a page, or "failed WHY".
 */
#define _GNU_SOURCE
#include <sched.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE 4096
/* Where in a page the loads land, as in benches/harness/area.rs. */
#define TOUCH_OFFSET 8

static void must(int result, const char *what)
{
    if (result != 0) {
        char words[256];
        softfault_last_error(words, sizeof words);
        printf("failed %s: %s\n", what, words);
        exit(1);
    }
}

static unsigned char page_byte(uint64_t index)
{
    return (unsigned char)(index % 251 + 1);
}

static void fill(void *ctx, void *page, size_t len)
{
    memset(page, *(const unsigned char *)ctx, len);
}

static uint32_t fault(void *ctx, softfault_vm_fault *vmf)
{
    unsigned char byte = page_byte(softfault_vm_fault_pgoff(vmf));
    (void)ctx;
    return softfault_filemap_fill_with(vmf, fill, &byte);
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void evict(softfault_object *object)
{
    uint64_t pages;
    must(softfault_object_evict(object, 0, UINT64_MAX, &pages), "evict");
    must(softfault_object_cached_pages(object, &pages), "cached_pages");
    if (pages != 0) {
        printf("failed %llu pages stayed in the cache\n", (unsigned long long)pages);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const softfault_vm_operations operations = {.size = sizeof operations, .fault = fault};
    const softfault_arena_options options = {
        .size = sizeof options,
        .flags = SOFTFAULT_ARENA_NO_FAULT_AROUND | SOFTFAULT_ARENA_NO_NATIVE_EXTENTS,
    };
    softfault_runtime *rt;
    softfault_object *object;
    softfault_arena *arena;
    void *base;
    char line[64];
    cpu_set_t cpu;

    if (argc != 5)
        return 2;
    int custom = strcmp(argv[1], "custom") == 0;
    size_t len = strtoull(argv[3], NULL, 10), arena_len;
    uint32_t pages = (uint32_t)(len / PAGE), *order = malloc(pages * sizeof *order);
    uint64_t expected = 0;
    if (order == NULL)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);

    must(softfault_runtime_new(NULL, &rt), "runtime");
    if (custom)
        must(softfault_object_from_vm_operations(rt, len, &operations, NULL, NULL, &object), "object");
    else
        must(softfault_object_open(rt, argv[2], NULL, &object), "object");
    must(softfault_arena_new(rt, len, &options, &arena), "arena");
    must(softfault_arena_map(arena, 0, object, 0, len, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED), "map");
    must(softfault_arena_base(arena, &base), "base");
    must(softfault_arena_len(arena, &arena_len), "len");
    if (!custom)
        must(softfault_arena_fault_in(arena, 0, len, SOFTFAULT_ACCESS_READ), "fault_in");
    for (uint32_t i = 0; i < pages; i++) {
        order[i] = i * 0x9e3779b1u % pages;
        expected += page_byte(order[i]);
    }
    CPU_ZERO(&cpu);
    CPU_SET(strtoul(argv[4], NULL, 10), &cpu);
    if (sched_setaffinity(0, sizeof cpu, &cpu) != 0)
        return 1;

    while (fgets(line, sizeof line, stdin) != NULL) {
        uint64_t sum = 0;
        if (custom)
            evict(object);
        else
            must(softfault_arena_zap(arena, 0, arena_len), "zap");
        double start = now_ns();
        for (uint32_t i = 0; i < pages; i++)
            sum += ((volatile const unsigned char *)base)[(size_t)order[i] * PAGE + TOUCH_OFFSET];
        double ns = (now_ns() - start) / pages;
        if (sum == expected)
            printf("done %.3f\n", ns);
        else
            printf("failed loads summed to %llu, not to %llu\n", (unsigned long long)sum, (unsigned long long)expected);
    }
    must(softfault_arena_free(arena), "arena");
    must(softfault_object_free(object), "object");
    must(softfault_runtime_free(rt), "runtime");
    free(order);
    return 0;
}
