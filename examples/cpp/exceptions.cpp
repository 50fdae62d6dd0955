// Exceptions and faults in the same frames: code that has just faulted throws, from several frames down; destructors that
// run while the exception passes fault, too; and softfault's own errors are exceptions with an errno, words and a reason.
//
// A fault is over when the load that made it is, so there is no frame of a signal handler to unwind through.
#include <softfault.hpp>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static const std::size_t PAGE = 4096, PAGES = 2048, THREADS = 4;
static int failures;

static void expect(bool right, const std::string &what) {
    if (!right) {
        ++failures;
        std::cout << "wrong: " << what << "\n";
    }
}

// Page n holds its number; every 16th one is damaged.
static bool is_damaged(std::uint64_t n) { return n % 16 == 5; }

static int read_page(void *, std::uint64_t pos, void *to, std::size_t len, softfault_page *) {
    for (std::size_t at = 0; at < len; at += PAGE) {
        const std::uint64_t n = (pos + at) / PAGE, word = is_damaged(n) ? ~n : n;
        char *page = static_cast<char *>(to) + at;
        std::memset(page, 0, PAGE);
        std::memcpy(page, &word, sizeof word);
    }
    return 0;
}

struct damaged : std::runtime_error {
    explicit damaged(std::uint64_t n) : std::runtime_error("page " + std::to_string(n)), page(n) {}
    std::uint64_t page;
};

// Touches a page for the first time in its destructor: a fault, while an exception passes.
class touches_at_end {
public:
    touches_at_end(const volatile std::uint64_t *word, std::uint64_t &sum) : word_(word), sum_(sum) {}
    touches_at_end(const touches_at_end &) = delete;
    touches_at_end &operator=(const touches_at_end &) = delete;
    ~touches_at_end() { sum_ += *word_; }

private:
    const volatile std::uint64_t *word_;
    std::uint64_t &sum_;
};

static const volatile std::uint64_t *page_at(const char *base, std::uint64_t n) {
    return reinterpret_cast<const volatile std::uint64_t *>(base + n * PAGE);
}

__attribute__((noinline)) static void deeper(const char *base, std::uint64_t n, int frames, std::uint64_t &at_end) {
    // The neighbour in the upper half, which nobody else touches.
    touches_at_end end(page_at(base, PAGES / 2 + n), at_end);
    if (frames > 0)
        return deeper(base, n, frames - 1, at_end);
    if (*page_at(base, n) != n) // the fault, in the frame that throws
        throw damaged(n);
}

static void worker(const char *base, std::uint64_t first, std::atomic<std::uint64_t> &caught, std::atomic<bool> &right) {
    for (std::uint64_t n = first; n < PAGES / 2; n += THREADS) {
        std::uint64_t at_end = 0;
        bool threw = false;
        try {
            deeper(base, n, 3, at_end);
        } catch (const damaged &e) {
            threw = true;
            ++caught;
            if (e.page != n)
                right = false;
        }
        const std::uint64_t twin = PAGES / 2 + n;
        if (threw != is_damaged(n) || at_end != 4 * (is_damaged(twin) ? ~twin : twin))
            right = false;
    }
}

static void own_exceptions(softfault::runtime &rt) {
    softfault_store_operations operations = {};
    operations.size = sizeof operations;
    operations.read = read_page;
    // A page a fault: each touch is one of its own.
    softfault::object object = rt.from_store(PAGES * PAGE, operations, nullptr,
                                             softfault::object_options().fill_window(1).readahead(0));
    softfault::arena arena = rt.arena(PAGES * PAGE, softfault::arena_options().fault_around(false));
    arena.map(0, object, 0, PAGES * PAGE, softfault::prot::read);

    std::atomic<std::uint64_t> caught(0);
    std::atomic<bool> right(true);
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < THREADS; ++i)
        threads.emplace_back([&, i] { worker(arena.at<char>(0), i, caught, right); });
    for (std::thread &thread : threads)
        thread.join();

    std::uint64_t want = 0;
    for (std::uint64_t n = 0; n < PAGES / 2; ++n)
        want += is_damaged(n);
    expect(right && caught == want, "exceptions by threads that faulted");
    std::cout << caught << " exceptions thrown by frames that had faulted, " << rt.stat("pgfault") << " faults\n";
}

static int fails(void *, std::uint64_t, void *, std::size_t, softfault_page *) { return -EIO; }

static void softfault_errors(softfault::runtime &rt) {
    try {
        rt.open("/no/such/file");
        expect(false, "a file that is not there was opened");
    } catch (const softfault::error &e) {
        expect(e.error_number() == ENOENT && std::strlen(e.what()) > 0, e.what());
        std::cout << "caught: " << e.what() << "\n";
    }

    softfault_store_operations operations = {};
    operations.size = sizeof operations;
    operations.read = fails;
    softfault::object object = rt.from_store(16 * PAGE, operations, nullptr);
    softfault::arena arena = rt.arena(16 * PAGE);
    arena.map(0, object, 0, 16 * PAGE, softfault::prot::read);
    try {
        char byte;
        arena.read_at(3 * PAGE, &byte, 1); // a load would be a SIGBUS
        expect(false, "a page that its store did not give was read");
    } catch (const std::system_error &e) { // for code that knows nothing of softfault
        expect(e.code() == std::errc::io_error, e.what());
        const softfault::error *error = dynamic_cast<const softfault::error *>(&e);
        expect(error && error->kind() == SOFTFAULT_ERROR_FAULT && error->fault_reason() & SOFTFAULT_VM_FAULT_SIGBUS,
               "the reason");
        std::cout << "caught: " << e.what() << "\n";
    }

    softfault::arena empty = std::move(arena);
    try {
        arena.size(); // moved from
        expect(false, "an empty handle had a size");
    } catch (const softfault::error &e) {
        expect(e.error_number() == EINVAL && e.kind() == SOFTFAULT_ERROR_HANDLE, e.what());
    }
}

int main() {
    try {
        softfault::runtime rt(softfault::runtime_options().cache_limit(4 << 20));
        own_exceptions(rt);
        softfault_errors(rt);
    } catch (const std::exception &e) {
        std::cerr << e.what() << "\n";
        return 1;
    }
    if (failures == 0)
        std::cout << "every exception was caught where it belongs\n";
    return failures != 0;
}
