/*
 * A fault callback of one's own: memory whose pages are computed when they are first touched.
 *
 * The object is a table of primes: bit b of byte i says whether 8 * i + b is prime. No page exists before a load asks for
 * it; fault() then sieves the 32,768 numbers of that page, in the faulting thread, inside a signal handler: no allocation,
 * no lock, nothing outside signal-safety(7). Four threads on one page compute it once.
 */
#include <pthread.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096
#define PAGES 256
#define PER_PAGE (8ull * PAGE)
#define THREADS 4

static void must(int result, const char *what)
{
    if (result != 0) {
        char words[256];
        softfault_last_error(words, sizeof words);
        fprintf(stderr, "%s: %s\n", what, words);
        exit(1);
    }
}

static unsigned computed, gone;

static void cross_out(unsigned char *page, uint64_t bit)
{
    page[bit / 8] &= (unsigned char)~(1u << (bit % 8));
}

/* Marks the primes among the numbers of one page, by crossing out the multiples of every smaller number. */
static void sieve(void *ctx, void *bytes, size_t len)
{
    unsigned char *page = bytes;
    uint64_t first = *(const uint64_t *)ctx * PER_PAGE, end = first + 8 * len;
    __atomic_fetch_add(&computed, 1, __ATOMIC_RELAXED);
    memset(page, 0xff, len);
    for (uint64_t n = first; n < 2; n++)
        cross_out(page, n - first);
    for (uint64_t d = 2; d * d < end; d += d == 2 ? 1 : 2) {
        uint64_t from = (first + d - 1) / d * d;
        for (uint64_t n = from > d * d ? from : d * d; n < end; n += d)
            cross_out(page, n - first);
    }
}

static uint32_t fault(void *ctx, softfault_vm_fault *vmf)
{
    uint64_t pgoff = softfault_vm_fault_pgoff(vmf);
    (void)ctx;
    return softfault_filemap_fill_with(vmf, sieve, &pgoff);
}

/* Neighbours that are computed already are mapped with the touched page. */
static uint32_t map_pages(void *ctx, softfault_vm_fault *vmf, uint64_t start, uint64_t end)
{
    (void)ctx;
    return softfault_filemap_map_pages(vmf, start, end);
}

static void drop(void *ctx)
{
    (void)ctx;
    gone = 1;
}

static void *count(void *table)
{
    const unsigned char *bytes = table;
    uintptr_t nr = 0;
    for (size_t i = 0; i < (size_t)PAGES * PAGE; i++)
        for (unsigned b = bytes[i]; b != 0; b &= b - 1)
            nr++;
    return (void *)nr;
}

int main(void)
{
    const softfault_vm_operations operations = {
        .size = sizeof operations,
        .fault = fault,
        .map_pages = map_pages,
        .drop = drop,
    };
    softfault_runtime *rt;
    softfault_object *object;
    softfault_arena *arena;
    void *table;
    pthread_t threads[THREADS];
    size_t len = (size_t)PAGES * PAGE, nr = 8 * len, wrong = 0, must_be = 0;

    must(softfault_runtime_new(NULL, &rt), "runtime");
    must(softfault_object_from_vm_operations(rt, len, &operations, NULL, NULL, &object), "object");
    must(softfault_arena_new(rt, len, NULL, &arena), "arena");
    must(softfault_arena_base(arena, &table), "arena");
    must(softfault_arena_map(arena, 0, object, 0, len, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED), "map");

    /* One look at the far end computes one page. */
    printf("is %zu prime? %d\n", nr - 1, ((unsigned char *)table)[len - 1] >> 7);
    printf("pages computed so far: %u\n", computed);

    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, count, table) != 0)
            return 1;
    uintptr_t found[THREADS];
    for (int i = 0; i < THREADS; i++) {
        void *counted;
        pthread_join(threads[i], &counted);
        found[i] = (uintptr_t)counted;
    }

    /* Compare with an ordinary sieve. */
    unsigned char *composite = calloc(nr, 1);
    if (composite == NULL)
        return 1;
    composite[0] = composite[1] = 1;
    for (size_t d = 2; d * d < nr; d++)
        if (!composite[d])
            for (size_t n = d * d; n < nr; n += d)
                composite[n] = 1;
    for (size_t n = 0; n < nr; n++) {
        int prime = (((unsigned char *)table)[n / 8] >> (n % 8)) & 1;
        must_be += !composite[n];
        wrong += prime == composite[n];
    }
    free(composite);
    for (int i = 0; i < THREADS; i++)
        wrong += found[i] != must_be;
    printf("primes below %zu: %zu\n", nr, must_be);
    must(softfault_arena_free(arena), "arena");
    must(softfault_object_free(object), "object");
    must(softfault_runtime_free(rt), "runtime");
    if (wrong != 0 || computed != PAGES || !gone) {
        printf("%zu wrong, %u pages computed (must be %d), context given back: %u\n", wrong, computed, PAGES, gone);
        return 1;
    }
    printf("every bit is right; %u pages were computed for %d pages and %d readers\n", computed, PAGES, THREADS);
    return 0;
}
