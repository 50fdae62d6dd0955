// As exit.c, by std::exit: what lives on the stack is not destroyed. A static object stores while it is.
#include <softfault.hpp>

#include <cstdlib>
#include <cstring>

static const std::size_t LEN = 64 * 4096;

struct stores_at_its_end {
    unsigned char *at = nullptr;
    ~stores_at_its_end() {
        if (at != nullptr)
            std::memset(at + LEN / 2, 'x', LEN / 2);
    }
};

int main(int, char **argv) {
    softfault::runtime rt(softfault::runtime_options()
                              .writeback(std::chrono::hours(1), std::chrono::hours(1))
                              .exit_wait(std::chrono::seconds(30)));
    softfault::object file = rt.open(argv[1], softfault::object_options().writable());
    softfault::arena arena = rt.arena(LEN);
    arena.map(0, file, 0, LEN, softfault::prot::read_write);
    static stores_at_its_end last; // made after the runtime, so destroyed before it is written back
    last.at = arena.at<unsigned char>(0);
    std::memset(last.at, 'x', LEN / 2);
    std::exit(0);
}
