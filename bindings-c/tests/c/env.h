/* What the topics share: the delivery under test, files of known content, loads and stores whose signal is a value. */
#ifndef ENV_H
#define ENV_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "check.h"

struct env {
    const char *dir;   /* a folder for files */
    uint32_t delivery; /* SOFTFAULT_DELIVERY_* that arenas ask for */
};

extern struct env env;

/* Byte number i of a file, or of a store. */
unsigned char pattern(uint64_t i);
/* Makes a file of len pattern bytes; the path is good until the next call. */
const char *make_file(const char *name, uint64_t len);
/* Fills or compares memory. */
void fill_pattern(void *dst, uint64_t pos, size_t len);
bool is_pattern(const void *src, uint64_t pos, size_t len);

/* The signal that a load or a store raises; 0: none. */
int load_signal(const volatile unsigned char *p);
int store_signal(volatile unsigned char *p, unsigned char value);
/* Installed before the first runtime: catches what is not about an arena, or is the program's affair. */
void catch_signals(void);

/* A runtime with a cache of so many pages; an arena with the delivery under test, its first address. */
softfault_runtime *new_runtime(uint64_t pages);
softfault_arena *new_arena(softfault_runtime *rt, size_t len, uint32_t flags, unsigned char **base);

/* A counter. */
uint64_t counter(softfault_runtime *rt, const char *name);

/* A store in memory. */
struct memory_store {
    unsigned char *bytes;
    uint64_t len;
    int read_fails, write_fails, flush_fails; /* a negative errno, or 0 */
    int reads, writes, flushes, punches, set_lens, dsyncs, drops;
};

extern const softfault_store_operations memory_operations;
void memory_store_init(struct memory_store *s, uint64_t len);

#endif
