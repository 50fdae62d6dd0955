/*
 * Ends as the argument says: `abort`, by the policy for pages that cannot be had; `throw`, by an exception that leaves a
 * callback; `throw-in-handler`, by one that leaves a callback in a signal handler.
 */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <softfault.h>
#include <stdexcept>
#include <sys/resource.h>

static bool throws;

static int fails(void *, std::uint64_t, void *, std::size_t, softfault_page *)
{
    if (throws)
        throw std::runtime_error("out of a callback");
    return -5;
}

static void must(int result, const char *what)
{
    if (result == 0)
        return;
    char words[256];
    softfault_last_error(words, sizeof words);
    std::fprintf(stderr, "%s: %s\n", what, words);
    std::exit(1);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    throws = std::strncmp(argv[1], "throw", 5) == 0;

    softfault_store_operations ops;
    std::memset(&ops, 0, sizeof ops);
    ops.size = sizeof ops;
    ops.read = fails;
    if (std::strcmp(argv[1], "throw-in-handler") == 0)
        ops.flags = SOFTFAULT_STORE_HANDLER_SAFE;
    softfault_object_options options;
    std::memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.failure_policy = throws ? SOFTFAULT_FAILURE_POISON : SOFTFAULT_FAILURE_ABORT;

    softfault_runtime *rt;
    softfault_object *object;
    softfault_arena *arena;
    void *base;
    must(softfault_runtime_new(nullptr, &rt), "runtime");
    must(softfault_object_from_store(rt, 1 << 20, &ops, nullptr, &options, &object), "object");
    must(softfault_arena_new(rt, 1 << 20, nullptr, &arena), "arena");
    must(softfault_arena_base(arena, &base), "arena");
    must(softfault_arena_map(arena, 0, object, 0, 1 << 20, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED), "map");
    std::printf("read %d\n", static_cast<volatile unsigned char *>(base)[4096]);
    return 0;
}
