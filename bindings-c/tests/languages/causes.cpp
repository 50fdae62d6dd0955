// What a store said is in the exceptions, and of a touch that became a signal among the failures.
#include "ill_store.h"

#include <softfault.hpp>

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

static const std::size_t PAGE = 4096;
static int checks;

#define CHECK(right) check_at(right, #right, __LINE__)
static void check_at(bool right, const char *what, int line) {
    ++checks;
    if (!right) {
        std::fprintf(stderr, "causes.cpp:%d: %s\n", line, what);
        std::exit(1);
    }
}

static void fails(const std::function<void()> &call, const ill_row &row, std::uint32_t kind, std::uint64_t object_offset,
                  std::uint64_t arena_offset) {
    try {
        call();
    } catch (const softfault::error &thrown) {
        const softfault::error e = thrown; // copies know it, too
        CHECK(e.error_number() == row.error && e.kind() == kind);
        CHECK(e.fault().cause == row.cause && e.fault().store_errno == row.store_errno);
        CHECK(e.fault().object_offset == object_offset && e.fault().arena_offset == arena_offset);
        CHECK(std::strcmp(e.object_label(), "the ill one") == 0);
        CHECK(std::strstr(e.what(), "the ill one") != nullptr);
        CHECK(row.store_errno == 0 || std::strstr(e.what(), std::strerror(row.store_errno)) != nullptr);
        return;
    }
    CHECK(!"it was to throw");
}

static sigjmp_buf back;
static volatile std::sig_atomic_t probing;

static void on_signal(int signo) {
    if (probing)
        siglongjmp(back, signo);
    std::signal(signo, SIG_DFL);
}

// The signal of a load; 0: none.
static int load_signal(const volatile unsigned char *byte) {
    const int signo = sigsetjmp(back, 1);
    if (signo == 0) {
        probing = 1;
        (void)*byte;
    }
    probing = 0;
    return signo;
}

int main() {
    struct sigaction action = {};
    action.sa_handler = on_signal;
    CHECK(sigaction(SIGBUS, &action, nullptr) == 0);
    softfault::runtime rt(softfault::runtime_options().cache_limit(4 << 20));
    softfault::object object =
        rt.from_store(16 * PAGE, *ill_operations(), nullptr,
                      softfault::object_options().writable().label("the ill one").fill_window(1).readahead(0));
    softfault::arena arena = rt.arena(16 * PAGE);
    // Page 5 of the object is page 6 of the arena.
    arena.map(3 * PAGE, object, 2 * PAGE, 8 * PAGE, softfault::prot::read);
    const std::uint64_t none = UINT64_MAX;
    for (std::size_t i = 0; ill_row_at(i, 0); ++i) {
        const ill_row &row = *ill_row_at(i, 0);
        char byte = 1;
        ill_answers(row.answer, 0, 0);
        fails([&] { object.read_at(5 * PAGE + 1, &byte, 1); }, row, SOFTFAULT_ERROR_FAULT, 5 * PAGE + 1, none);
        fails([&] { arena.read_at(6 * PAGE + 2, &byte, 1); }, row, SOFTFAULT_ERROR_FAULT, 5 * PAGE + 2, 6 * PAGE + 2);
        fails([&] { arena.fault_in(6 * PAGE, PAGE); }, row, SOFTFAULT_ERROR_FAULT, 5 * PAGE, 6 * PAGE);

        CHECK(load_signal(arena.at<unsigned char>(6 * PAGE + 9)) == SIGBUS);
        bool noted = false;
        for (int tries = 0; tries < 1000 && !noted; ++tries) {
            for (const softfault_failure &f : rt.recent_failures())
                noted = noted || (f.op == SOFTFAULT_FAILED_TOUCH && f.cause == row.cause &&
                                  f.store_errno == row.store_errno && f.object_offset == 5 * PAGE &&
                                  f.address / PAGE == reinterpret_cast<std::uintptr_t>(arena.at<char>(0)) / PAGE + 6 &&
                                  std::strcmp(f.object, "the ill one") == 0);
            if (!noted)
                std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        CHECK(noted);

        ill_answers(0, 0, 0);
        CHECK(object.write_at(9 * PAGE, &byte, 1) == 1);
        ill_answers(0, row.answer, 0);
        fails([&] { object.sync_all(); }, row, SOFTFAULT_ERROR_WRITEBACK, 9 * PAGE, none);
        ill_answers(0, 0, row.answer);
        fails([&] { object.sync_all(); }, *ill_row_at(i, 1), SOFTFAULT_ERROR_FLUSH, none, none);
        ill_answers(0, 0, 0);
        object.sync_all();
    }
    try {
        rt.open("/no/such/file");
        CHECK(!"it was to throw");
    } catch (const softfault::error &e) {
        CHECK(e.fault().cause == SOFTFAULT_CAUSE_NONE && e.fault().object_offset == none);
        CHECK(*e.object_label() == '\0');
    }
    std::printf("%d checks: every cause arrived\n", checks);
    return 0;
}
