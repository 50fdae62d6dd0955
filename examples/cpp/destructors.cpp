// Handles may go in any order: arenas keep what is mapped in them, objects and arenas keep their runtime, pins keep arenas.
// What ends last ends everything, and the signal handlers that were there before are back.
#include <softfault.hpp>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

static const std::size_t PAGE = 4096, SIZE = 64 * PAGE;
static int failures;

static void expect(bool right, const char *what) {
    if (!right) {
        ++failures;
        std::cout << "wrong: " << what << "\n";
    }
}

static int read_page(void *, std::uint64_t, void *to, std::size_t len, softfault_page *) {
    std::memset(to, 7, len);
    return 0;
}

static void gone(void *ctx) { *static_cast<bool *>(ctx) = true; }

static bool handler_of(int signal, void (**handler)(int, siginfo_t *, void *)) {
    struct sigaction action;
    if (sigaction(signal, nullptr, &action) != 0)
        return false;
    *handler = action.sa_sigaction;
    return true;
}

static std::size_t sum(const unsigned char *bytes, std::size_t len) {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < len; ++i)
        sum += bytes[i];
    return sum;
}

static softfault::object over_store(softfault::runtime &rt, bool *end) {
    softfault_store_operations operations = {};
    operations.size = sizeof operations;
    operations.read = read_page;
    operations.drop = gone;
    return rt.from_store(SIZE, operations, end);
}

// The runtime first, then the object, then the arena; the pin is last.
static void upside_down() {
    bool end = false;
    std::unique_ptr<softfault::runtime> rt(new softfault::runtime);
    std::unique_ptr<softfault::object> object(new softfault::object(over_store(*rt, &end)));
    std::unique_ptr<softfault::arena> arena(new softfault::arena(rt->arena(SIZE)));
    arena->map(0, *object, 0, SIZE, softfault::prot::read);
    const unsigned char *bytes = arena->at<unsigned char>(0);

    rt.reset();
    object.reset();
    expect(!end, "the object ended with its handle, though it is mapped");
    expect(sum(bytes, SIZE / 2) == 7 * SIZE / 2, "an arena faults without its runtime's handle");

    softfault::pin pin = arena->pin(SIZE / 2, SIZE / 2);
    arena.reset();
    expect(!end, "the object ended, though a page is pinned");
    expect(pin.size() == SIZE / 2 && sum(static_cast<unsigned char *>(pin.data()), pin.size()) == 7 * SIZE / 2,
           "a pin is good without its arena's handle");
    pin.free();
    expect(end, "the object did not end with the last that kept it");
}

// Moved handles are freed once, by who has them.
static void moves() {
    bool ends[3] = {};
    {
        softfault::runtime rt;
        std::vector<softfault::object> objects;
        for (bool &end : ends)
            objects.push_back(over_store(rt, &end));
        softfault::object last = std::move(objects.back());
        expect(!objects.back(), "a handle that was moved from is empty");
        objects.clear();
        expect(ends[0] && ends[1] && !ends[2], "the vector's objects ended, the one moved out did not");

        last = softfault::object(); // assignment frees what was there
        expect(ends[2], "assignment freed the former handle");

        // What was released is the caller's.
        softfault_arena *raw = rt.arena(SIZE).release();
        expect(softfault_arena_free(raw) == 0, "a released handle is still valid");
    }
}

// As locals are destroyed: the last one first. An exception on the way changes nothing.
static void unwinding() {
    bool end = false;
    try {
        softfault::runtime rt;
        softfault::object object = over_store(rt, &end);
        softfault::arena arena = rt.arena(SIZE);
        arena.map(0, object, 0, SIZE, softfault::prot::read);
        if (sum(arena.at<unsigned char>(0), SIZE) == 7 * SIZE)
            throw std::string("on the way");
    } catch (const std::string &) {
        expect(end, "unwinding freed everything");
        return;
    }
    expect(false, "the sum was wrong");
}

// A file mapped whole: the arena outlives the object's handle, and the other way round.
static void map_file(const char *path) {
    softfault::runtime rt;
    softfault::mapped_file file = rt.map_file(path);
    const std::size_t size = static_cast<std::size_t>(file.object.size());
    std::vector<unsigned char> bytes(size);
    expect(size > 0 && file.object.read_at(0, bytes.data(), size) == size, "the file was read");
    file.object.free();
    expect(std::memcmp(file.arena.data(), bytes.data(), size) == 0, "the arena has the file's bytes");
    file.arena.free();
    try {
        rt.map_file("/no/such/file");
        expect(false, "a file that is not there was mapped");
    } catch (const softfault::error &e) {
        expect(e.error_number() == ENOENT, e.what());
    }
}

int main(int, char **argv) {
    try {
        void (*before)(int, siginfo_t *, void *), (*during)(int, siginfo_t *, void *), (*after)(int, siginfo_t *, void *);
        bool known = handler_of(SIGBUS, &before);
        {
            softfault::runtime rt;
            known = known && handler_of(SIGBUS, &during);
        }
        upside_down();
        moves();
        unwinding();
        map_file(argv[0]);
        known = known && handler_of(SIGBUS, &after);
        expect(known && before != during && before == after, "the former handler is back");
    } catch (const std::exception &e) {
        std::cerr << e.what() << "\n";
        return 1;
    }
    if (failures == 0)
        std::cout << "everything ended with the last that kept it\n";
    return failures != 0;
}
