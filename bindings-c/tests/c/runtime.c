/* Runtimes, deliveries, signal handlers, statistics, forked children. */
#include "env.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t newcomer_calls;

static void newcomer(int signo)
{
    newcomer_calls++;
    signal(signo, SIG_DFL);
}

/* A language runtime that installs its handlers after ours: reinstalling puts ours in front of it. */
static void reinstall(void)
{
    struct sigaction sa, old_bus, old_segv;
    softfault_runtime *rt = new_runtime(256);
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);
    size_t offenders;
    char text[256];

    OK(softfault_object_anonymous(rt, PAGE, NULL, &object));
    OK(softfault_arena_map(arena, 0, object, 0, PAGE, SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE, SOFTFAULT_MAP_SHARED));
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = newcomer;
    OK(sigaction(SIGBUS, &sa, &old_bus));
    OK(sigaction(SIGSEGV, &sa, &old_segv));
    OK(softfault_runtime_audit_threads(rt, &offenders, text, sizeof text, NULL));
    CHECK(offenders >= 1);
    CHECK(strstr(text, "reinstall") != NULL);
    OK(softfault_reinstall_handlers(rt));
    OK(softfault_runtime_audit_threads(rt, &offenders, text, sizeof text, NULL));
    if (offenders != 0)
        fprintf(stderr, "%s", text);
    CHECK_IS(offenders, 0);
    base[0] = 5;
    CHECK_IS(base[0], 5);
    CHECK_IS(newcomer_calls, 0);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
    /* The newcomer is where it was; take it away again. */
    OK(sigaction(SIGBUS, NULL, &sa));
    CHECK(sa.sa_handler == newcomer);
    catch_signals();
    FAILS(softfault_reinstall_handlers(rt), EBADF, HANDLE, "freed");
}

void test_runtime(void)
{
    softfault_runtime *rt = new_runtime(256);
    uint32_t mode, kernel;
    bool available;
    char text[1024], small[8];
    size_t full, offenders;
    uint64_t measured;

    OK(softfault_runtime_delivery(rt, &mode));
    CHECK(mode == SOFTFAULT_DELIVERY_IN_THREAD || mode == SOFTFAULT_DELIVERY_SEGV);
    FAILS(softfault_runtime_delivery(rt, NULL), EINVAL, ARGUMENT, "mode is NULL");
    OK(softfault_runtime_delivery_finding(rt, mode, &available, text, sizeof text, &full));
    CHECK(available);
    CHECK_IS(strlen(text), full);
    OK(softfault_runtime_delivery_finding(rt, SOFTFAULT_DELIVERY_MONITOR, &available, NULL, 0, NULL));
    int got = softfault_runtime_kernel_access_delivery(rt, &kernel);
    if (available) {
        OK(got);
        CHECK_IS(kernel, SOFTFAULT_DELIVERY_MONITOR);
    } else {
        CHECK_IS(got, -EOPNOTSUPP);
        CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_DELIVERY);
    }
    OK(softfault_runtime_delivery_finding(rt, SOFTFAULT_DELIVERY_AUTO, &available, NULL, 0, NULL));
    CHECK(available);
    FAILS(softfault_runtime_delivery_finding(rt, 77, &available, NULL, 0, NULL), EINVAL, ARGUMENT, "mode is 77");
    FAILS(softfault_runtime_kernel_access_delivery(NULL, &kernel), EINVAL, HANDLE, "NULL");
    OK(softfault_runtime_delivery_report(rt, text, sizeof text, &full));
    CHECK(strstr(text, "delivery:") == text);
    OK(softfault_runtime_delivery_report(rt, small, sizeof small, &full));
    CHECK(strcmp(small, "deliver") == 0);
    CHECK(full > sizeof small);
    FAILS(softfault_runtime_delivery_report(rt, NULL, 1, &full), EINVAL, ARGUMENT, "NULL");

    OK(softfault_runtime_audit_threads(rt, &offenders, NULL, 0, NULL));
    FAILS(softfault_runtime_audit_threads(rt, NULL, NULL, 0, NULL), EINVAL, ARGUMENT, "offenders is NULL");
    OK(softfault_runtime_measure_delivery(rt, SOFTFAULT_DELIVERY_SEGV, &measured));
    CHECK(measured > 0);
    OK(softfault_runtime_measure_delivery(rt, SOFTFAULT_DELIVERY_SEGV, NULL));
    FAILS(softfault_runtime_measure_delivery(rt, 9, NULL), EINVAL, ARGUMENT, "mode is 9");

    CHECK_IS(counter(rt, "nr_cache_limit_pages"), 256);
    OK(softfault_runtime_set_cache_limit(rt, 512 * PAGE));
    CHECK_IS(counter(rt, "nr_cache_limit_pages"), 512);
    size_t warnings;
    OK(softfault_runtime_warnings(rt, &warnings, text, sizeof text, &full));
    CHECK_IS(warnings, 0);
    FAILS(softfault_runtime_warnings(rt, NULL, NULL, 0, NULL), EINVAL, ARGUMENT, "warnings is NULL");
    sigset_t bus, before;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    OK(sigprocmask(SIG_BLOCK, &bus, &before));
    softfault_runtime *blind = new_runtime(256);
    OK(sigprocmask(SIG_SETMASK, &before, NULL));
    OK(softfault_runtime_warnings(blind, &warnings, text, sizeof text, &full));
    CHECK_IS(warnings, 1);
    CHECK(strstr(text, "SIGBUS") != NULL);
    OK(softfault_runtime_free(blind));
    bool done = false;
    OK(softfault_runtime_write_back(rt, 60000000000u, &done));
    CHECK(done);
    OK(softfault_runtime_write_back(rt, 60000000000u, NULL));
    FAILS(softfault_runtime_write_back(NULL, 0, &done), EINVAL, HANDLE, "NULL");
    OK(softfault_runtime_free(rt));

    /* Locked in memory, where that is permitted. */
    softfault_object *object = NULL;
    softfault_runtime_options locked = {.size = sizeof locked, .flags = SOFTFAULT_RUNTIME_LOCK_CACHE | SOFTFAULT_RUNTIME_REPORT_SIGNALS};
    OK(softfault_runtime_new(&locked, &rt));
    softfault_object *huge = NULL;
    if (softfault_object_anonymous(rt, PAGE, NULL, &object) == 0) {
        OK(softfault_object_free(object));
    }
    if (geteuid() != 0) {
        FAILS(softfault_object_anonymous(rt, UINT64_C(1) << 36, NULL, &huge), ENOMEM, LIMIT, "RLIMIT_MEMLOCK");
    }
    OK(softfault_runtime_free(rt));
    reinstall();
}

void test_stats(void)
{
    softfault_runtime *rt = new_runtime(256);
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);
    softfault_stats *stats;
    softfault_stage_latency latency;
    uint64_t value, majors = 0, pgfault = 0;
    char name[64], *json;
    size_t full, i;

    OK(softfault_object_open(rt, make_file("stats", 16 * PAGE), NULL, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 16 * PAGE, SOFTFAULT_PROT_READ, SOFTFAULT_MAP_SHARED));
    CHECK(is_pattern(base, 0, 16 * PAGE));

    FAILS(softfault_stats_read(rt, NULL), EINVAL, ARGUMENT, "out is NULL");
    /* The monitor counts a fault when its thread is on its way already. */
    for (i = 0; i < 10000; i++) {
        OK(softfault_stats_read(rt, &stats));
        OK(softfault_stats_get(stats, "pgmajfault", &value));
        OK(softfault_stats_reason(stats, SOFTFAULT_VM_FAULT_MAJOR, &majors));
        if (value > 0 && majors > 0)
            break;
        OK(softfault_stats_free(stats));
        usleep(1000);
    }
    CHECK(value > 0 && majors > 0);
    FAILS(softfault_stats_get(stats, "no_such", &value), ENOENT, NO_ENTRY, "no_such");
    FAILS(softfault_stats_get(stats, "\xff\xfe", &value), ENOENT, NO_ENTRY, "no statistic");
    OK(softfault_stats_get(stats, "vm_fault_major", &value));
    CHECK(value >= majors);
    FAILS(softfault_stats_get(stats, NULL, &value), EINVAL, ARGUMENT, "name is NULL");
    FAILS(softfault_stats_get(stats, "pgfault", NULL), EINVAL, ARGUMENT, "value is NULL");
    for (i = 0; softfault_stats_counter(stats, i, name, sizeof name, &full, &value) == 0; i++) {
        CHECK_IS(strlen(name), full);
        if (strcmp(name, "pgfault") == 0)
            pgfault = value;
    }
    CHECK(i > 20);
    CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_NO_ENTRY);
    CHECK(pgfault > 0);
    OK(softfault_stats_counter(stats, 0, NULL, 0, NULL, NULL));
    OK(softfault_stats_reason(stats, SOFTFAULT_VM_FAULT_MAJOR, &value));
    CHECK(value > 0);
    FAILS(softfault_stats_reason(stats, 3, &value), ENOENT, NO_ENTRY, "0x3");
    FAILS(softfault_stats_reason(stats, 1, NULL), EINVAL, ARGUMENT, "value is NULL");
    OK(softfault_stats_stage(stats, "total", &latency));
    CHECK(latency.p99_ns >= latency.p50_ns);
    FAILS(softfault_stats_stage(stats, "nowhere", &latency), ENOENT, NO_ENTRY, "nowhere");
    FAILS(softfault_stats_stage(stats, NULL, &latency), EINVAL, ARGUMENT, "NULL");
    OK(softfault_stats_json(stats, NULL, 0, &full));
    json = malloc(full + 1);
    CHECK(json != NULL);
    OK(softfault_stats_json(stats, json, full + 1, NULL));
    CHECK_IS(strlen(json), full);
    CHECK(json[0] == '{' && json[full - 1] == '}');
    free(json);
    OK(softfault_stats_text(stats, NULL, 0, &full));
    CHECK(full > 500);
    OK(softfault_stats_free(stats));
    FAILS(softfault_stats_json(stats, NULL, 0, &full), EBADF, HANDLE, "freed");
    FAILS(softfault_stats_text(stats, NULL, 0, &full), EBADF, HANDLE, "freed");
    FAILS(softfault_stats_counter(stats, 0, NULL, 0, NULL, NULL), EBADF, HANDLE, "freed");
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
}

/* A child that touches nothing of ours goes on; one that calls is refused, and nothing of the parent's changes. */
void test_fork(void)
{
    softfault_runtime *rt = new_runtime(256), *mine;
    softfault_object *object;
    unsigned char *base;
    softfault_arena *arena = new_arena(rt, EXTENT, 0, &base);
    int status;
    pid_t pid;

#if defined(__SANITIZE_ADDRESS__)
    /* A child that allocates waits for ever where a thread of the parent was in the sanitizer's allocator: it has locks that no
     * fork takes. Fillers and flushers are such threads. */
    printf("  skipped: no child may allocate under AddressSanitizer while other threads do\n");
    (void)status, (void)pid, (void)mine, (void)object;
    OK(softfault_arena_free(arena));
    OK(softfault_runtime_free(rt));
    return;
#endif
    OK(softfault_object_anonymous(rt, 4 * PAGE, NULL, &object));
    OK(softfault_arena_map(arena, 0, object, 0, 4 * PAGE, SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE, SOFTFAULT_MAP_SHARED));
    base[0] = 42;
    fflush(stdout);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        unsigned char byte;
        char *heap = malloc(1 << 20);
        if (heap == NULL)
            _exit(2);
        memset(heap, 1, 1 << 20);
        free(heap);
        if (softfault_object_read_at(object, 0, &byte, 1, NULL) != -EACCES)
            _exit(3);
        if (softfault_last_error_kind() != SOFTFAULT_ERROR_DENIED)
            _exit(4);
        if (softfault_arena_unmap(arena, 0, PAGE) != -EACCES)
            _exit(5);
        if (softfault_runtime_new(NULL, &mine) != -EACCES)
            _exit(6);
        if (softfault_arena_free(arena) != 0 || softfault_object_free(object) != 0 || softfault_runtime_free(rt) != 0)
            _exit(7);
        _exit(0);
    }
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    CHECK_IS(WEXITSTATUS(status), 0);
    CHECK_IS(base[0], 42);
    base[PAGE] = 43;
    CHECK_IS(base[PAGE], 43);
    OK(softfault_arena_free(arena));
    OK(softfault_object_free(object));
    OK(softfault_runtime_free(rt));
}
