// The first steps: an array in a file, four times as large as the cache it is mapped through, written and summed by plain
// stores and loads, and checked by reading the file.
#include <softfault.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include <unistd.h>

static const std::size_t MIB = 1 << 20;
static const std::size_t SIZE = 32 * MIB, CACHE = 8 * MIB;

// A file of zeros that goes with its object.
class temporary_file {
public:
    explicit temporary_file(std::size_t size) : path_("/tmp/softfault-cpp-XXXXXX") {
        int fd = mkstemp(&path_[0]);
        if (fd < 0 || ftruncate(fd, static_cast<off_t>(size)) != 0)
            throw std::system_error(errno, std::generic_category(), path_);
        close(fd);
    }
    ~temporary_file() { unlink(path_.c_str()); }
    temporary_file(const temporary_file &) = delete;
    temporary_file &operator=(const temporary_file &) = delete;
    const std::string &path() const { return path_; }

private:
    std::string path_;
};

static int run() {
    temporary_file file(SIZE);
    const std::size_t nr = SIZE / sizeof(std::uint64_t);

    softfault::runtime rt(softfault::runtime_options().cache_limit(CACHE));
    std::cout << rt.delivery_report(); // what can be had here, what was chosen, and why

    softfault::object object = rt.open(file.path(), softfault::object_options().writable());
    softfault::arena arena = rt.arena(SIZE);
    arena.map(0, object, 0, SIZE, softfault::prot::read_write);

    // Plain memory from here on; each first touch is a fault, resolved in this thread.
    std::uint64_t *words = arena.at<std::uint64_t>(0);
    std::iota(words, words + nr, std::uint64_t(1));
    const std::uint64_t sum = std::accumulate(words, words + nr, std::uint64_t(0));

    const std::uint64_t cached = rt.stat("nr_cached_pages");
    std::cout << SIZE / MIB << " MiB through a cache of " << CACHE / MIB << " MiB: " << rt.stat("pgfault") << " faults, "
              << cached << " pages cached\n";
    object.sync_all(); // durable from here on, or an exception that says what is not

    std::ifstream in(file.path(), std::ios::binary);
    std::vector<std::uint64_t> block(8192);
    std::uint64_t in_file = 0;
    while (in.read(reinterpret_cast<char *>(block.data()), static_cast<std::streamsize>(block.size() * 8)))
        in_file = std::accumulate(block.begin(), block.end(), in_file);

    const std::uint64_t want = std::uint64_t(nr) * (nr + 1) / 2;
    if (sum != want || in_file != want || cached > CACHE / 4096) {
        std::cout << "sums " << sum << " and " << in_file << ", not " << want << "\n";
        return 1;
    }
    std::cout << "both sums are right\n";
    return 0;
}

int main() {
    try {
        return run();
    } catch (const std::exception &e) {
        std::cerr << e.what() << "\n";
        return 1;
    }
}
