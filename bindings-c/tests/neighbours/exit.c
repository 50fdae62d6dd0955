/*
 * A program that stores to a mapped file and ends without a sync. Usage: exit FILE HOW
 *
 * HOW: return (from main), exit (from a thread), late (from a handler of atexit), off (nothing is to be written), _exit
 * (written before, by a call).
 */
#include <pthread.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEN ((size_t)64 * 4096)

static unsigned char *base;

static void fail(const char *what)
{
    char words[256];
    softfault_last_error(words, sizeof words);
    fprintf(stderr, "failed: %s: %s\n", what, words);
    _exit(1);
}

static void *leave(void *nothing)
{
    (void)nothing;
    exit(0);
}

/* Runs before what was registered earlier, the library's handler among it. */
static void late(void)
{
    memset(base, 'x', LEN);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage");
    softfault_runtime *rt;
    softfault_object *file;
    softfault_arena *arena;
    void *at;
    softfault_runtime_options options = {.size = sizeof options, .writeback_interval_ns = 3600000000000u,
                                         .writeback_expire_ns = 3600000000000u};
    softfault_object_options writable = {.size = sizeof writable, .flags = SOFTFAULT_OBJECT_WRITABLE};
    if (strcmp(argv[2], "off") == 0)
        options.exit_wait_ms = SOFTFAULT_OFF;
    if (softfault_runtime_new(&options, &rt) != 0 || softfault_object_open(rt, argv[1], &writable, &file) != 0 ||
        softfault_arena_new(rt, LEN, NULL, &arena) != 0 || softfault_arena_base(arena, &at) != 0 ||
        softfault_arena_map(arena, 0, file, 0, LEN, SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE, SOFTFAULT_MAP_SHARED) != 0)
        fail("a mapped file");
    base = at;
    if (strcmp(argv[2], "late") == 0) {
        if (atexit(late) != 0)
            fail("atexit");
        return 0;
    }
    memset(base, 'x', LEN);
    if (strcmp(argv[2], "exit") == 0) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, leave, NULL) != 0)
            fail("a thread");
        pause();
    }
    if (strcmp(argv[2], "_exit") == 0) {
        bool done = false;
        if (softfault_runtime_write_back(rt, 60000000000u, &done) != 0 || !done)
            fail("write_back");
        _exit(0);
    }
    return 0;
}
