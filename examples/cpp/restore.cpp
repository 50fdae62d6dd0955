// A memory is captured while a thread goes on storing to it, and is memory again, twice: filled as it is touched, private to each
// session; what the first touched before it was ready is read for the second before anybody touches it.
#include <softfault.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <thread>

#include <unistd.h>

static const std::size_t PAGE = 4096, SIZE = 4 << 20, PAGES = SIZE / PAGE;

static void require(bool is_right, const char *what) {
    if (!is_right)
        throw std::runtime_error(what);
}

// A folder that goes with what is in it.
class temporary_folder {
public:
    temporary_folder() : path_("/tmp/softfault-cpp-XXXXXX") {
        if (mkdtemp(&path_[0]) == nullptr)
            throw std::system_error(errno, std::generic_category(), path_);
    }
    ~temporary_folder() {
        for (const char *name : {"heap.sfi", "packed.sfi", "heap.sws"})
            unlink((path_ + "/" + name).c_str());
        rmdir(path_.c_str());
    }
    temporary_folder(const temporary_folder &) = delete;
    temporary_folder &operator=(const temporary_folder &) = delete;
    std::string file(const char *name) const { return path_ + "/" + name; }

private:
    std::string path_;
};

// Page 0 is what the thread stores to; each other page has its number in every word.
static void capture(softfault::runtime &rt, const std::string &path) {
    softfault::object memory = rt.anonymous(SIZE);
    softfault::arena arena = rt.arena(SIZE, softfault::arena_options().capturable());
    arena.map(0, memory, 0, SIZE, softfault::prot::read_write);
    std::uint64_t *words = arena.at<std::uint64_t>(0);
    for (std::size_t i = PAGE / 8; i < SIZE / 8; i++)
        words[i] = i / (PAGE / 8);
    std::atomic<bool> stop(false);
    std::thread counts([&] {
        for (std::uint64_t n = 1; !stop; n++)
            reinterpret_cast<volatile std::uint64_t *>(words)[0] = n;
    });
    try {
        softfault::capture begun = rt.begin_capture(path, arena);
        begun.key("application", "restore.cpp");
        begun.commit();
    } catch (...) {
        stop = true;
        counts.join();
        throw;
    }
    stop = true;
    counts.join();
}

static bool is_whole(const std::uint64_t *words) {
    for (std::size_t i = PAGE / 8; i < SIZE / 8; i++)
        if (words[i] != i / (PAGE / 8))
            return false;
    return true;
}

static void restore(softfault::runtime &rt, const temporary_folder &folder) {
    softfault::image image = rt.open_image(folder.file("heap.sfi"));
    require(image.size() == SIZE && image.key("application") == "restore.cpp", "the image says what it is of");
    image.verify();
    softfault::restore recorded(image);
    recorded.record(std::chrono::milliseconds(10)).overlay("mailbox", 0, std::string(PAGE, 'm'));
    softfault::session one = recorded.build();
    std::uint64_t *words = static_cast<std::uint64_t *>(one.data(0));
    require(one.progress().cached < PAGES, "nothing is read before it is touched, but for the overlay's sake");
    require(words[5 * PAGE / 8] == 5, "a page has its number");
    softfault::working_set touched = one.mark();
    require(touched.pages() == 1, "one page was touched before the session was ready");
    touched.save(folder.file("heap.sws"));
    require(reinterpret_cast<const char *>(words)[7] == 'm', "the overlay is there");
    require(is_whole(words), "the first session has every byte");
    std::memset(words, 0xff, SIZE);

    softfault::working_set set(folder.file("heap.sws"));
    softfault::session two = softfault::restore(image).replay(set).build();
    while (!two.progress().replay_ended)
        std::this_thread::yield();
    require(two.progress().replayed >= 1, "it is read before anybody touches it");
    const std::uint64_t *others = static_cast<const std::uint64_t *>(two.data(0));
    require(is_whole(others), "the second session has every byte, and none of the first one's");

    image.convert(folder.file("packed.sfi"), softfault::codec::lz4);
    require(image.diff(softfault::image(folder.file("packed.sfi"))).empty(), "packed it is the same memory");
    try {
        softfault::image none(folder.file("none.sfi"));
        require(false, "there is no such image");
    } catch (const softfault::error &e) {
        require(e.kind() == SOFTFAULT_ERROR_IMAGE && e.error_number() == ENOENT, "it says that there is none");
        require(e.image().cause == SOFTFAULT_IMAGE_CAUSE_IO, "and why");
    }
    std::cout << "both sessions are what was captured\n";
}

int main() {
    try {
        temporary_folder folder;
        softfault::runtime rt;
        if (rt.delivery() != softfault::delivery::in_thread) {
            // Only in-thread delivery can hold stores: without it the image is written by hand.
            softfault::image_writer writer(folder.file("heap.sfi"), SIZE);
            writer.region(softfault::region{"heap", 0x300000000000, 0, SIZE, 3});
            writer.key("application", "restore.cpp");
            std::uint64_t page[PAGE / 8];
            for (std::size_t n = 0; n < PAGES; n++) {
                for (std::uint64_t &word : page)
                    word = n;
                writer.write(n * PAGE, page, PAGE);
            }
            writer.finish();
        } else {
            capture(rt, folder.file("heap.sfi"));
        }
        restore(rt, folder);
    } catch (const std::exception &e) {
        std::cerr << e.what() << "\n";
        return 1;
    }
    return 0;
}
