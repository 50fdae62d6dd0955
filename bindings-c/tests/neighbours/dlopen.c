/*
 * A plug-in's life: the library is loaded, used, closed while arenas live, and loaded again. Usage: dlopen LIBRARY
 *
 * Handlers of signals and threads of ours outlive dlclose(3): the library must stay where it is.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <softfault.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096
#define PAGES 512
#define LEN ((size_t)PAGES * PAGE)

/* A function by its name, as its declaration has it; C has no cast from dlsym's pointer to one of a function. */
#define FIND(library, name) find(library, #name, &name##_)
#define DECLARE(name) static __typeof__(&name) name##_

__extension__ DECLARE(softfault_runtime_new);
__extension__ DECLARE(softfault_runtime_free);
__extension__ DECLARE(softfault_object_anonymous);
__extension__ DECLARE(softfault_object_write_at);
__extension__ DECLARE(softfault_object_free);
__extension__ DECLARE(softfault_arena_new);
__extension__ DECLARE(softfault_arena_base);
__extension__ DECLARE(softfault_arena_map);
__extension__ DECLARE(softfault_arena_free);

static void fail(const char *what)
{
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

static void find(void *library, const char *name, void *function)
{
    void *found = dlsym(library, name);
    if (found == NULL)
        fail(name);
    memcpy(function, &found, sizeof found);
}

static void *load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail(dlerror());
    FIND(library, softfault_runtime_new);
    FIND(library, softfault_runtime_free);
    FIND(library, softfault_object_anonymous);
    FIND(library, softfault_object_write_at);
    FIND(library, softfault_object_free);
    FIND(library, softfault_arena_new);
    FIND(library, softfault_arena_base);
    FIND(library, softfault_arena_map);
    FIND(library, softfault_arena_free);
    return library;
}

static unsigned char *base;

/* Touches every second page from first on, for the first time. */
static void *touch(void *first)
{
    for (size_t n = *(const size_t *)first; n < PAGES; n += 2)
        if (base[n * PAGE] != (unsigned char)(n * 7))
            fail("a page is not what was written");
    return NULL;
}

static void touch_in_a_thread(size_t first)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, touch, &first) != 0 || pthread_join(thread, NULL) != 0)
        fail("a thread");
}

int main(int argc, char **argv)
{
    if (argc != 2)
        fail("usage");
    for (int round = 0; round < 3; round++) {
        void *library = load(argv[1]);
        void *before = NULL;
        memcpy(&before, &softfault_runtime_new_, sizeof before);
        softfault_runtime *rt;
        softfault_object *memory;
        softfault_arena *arena;
        void *addr;
        if (softfault_runtime_new_(NULL, &rt) != 0 || softfault_object_anonymous_(rt, LEN, NULL, &memory) != 0)
            fail("runtime");
        for (size_t n = 0; n < PAGES; n++) {
            unsigned char byte = (unsigned char)(n * 7);
            if (softfault_object_write_at_(memory, n * PAGE, &byte, 1, NULL) != 0)
                fail("write_at");
        }
        softfault_arena_options options = {.size = sizeof options, .flags = SOFTFAULT_ARENA_NO_FAULT_AROUND |
                                                                            SOFTFAULT_ARENA_NO_NATIVE_EXTENTS};
        if (softfault_arena_new_(rt, LEN, &options, &arena) != 0 || softfault_arena_base_(arena, &addr) != 0 ||
            softfault_arena_map_(arena, 0, memory, 0, LEN, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED) != 0)
            fail("arena");
        base = addr;

        touch_in_a_thread(0);
        if (dlclose(library) != 0)
            fail("dlclose");
        touch_in_a_thread(1); /* its handlers are those of a library that nobody has loaded */

        library = load(argv[1]);
        void *again = NULL;
        memcpy(&again, &softfault_runtime_new_, sizeof again);
        if (again != before)
            fail("the library has moved");
        if (softfault_arena_free_(arena) != 0 || softfault_object_free_(memory) != 0 || softfault_runtime_free_(rt) != 0)
            fail("a handle from before dlclose is not good after it");
        dlclose(library);
    }
    puts("the library stays as long as its handlers");
    return 0;
}
