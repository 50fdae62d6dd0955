/*
 * softfault for C++11 and later: handles that free themselves, exceptions, typed options. Header only, over softfault.h,
 * whose comments say what each function does; the names here are those without "softfault_" and the handle's name.
 *
 * Handles move and do not copy; each frees its handle, in whatever order: objects and arenas keep alive what they need.
 * What fails throws softfault::error. Everything may be called by several threads at once, but a handle object itself is
 * moved, assigned and destroyed by one, as any object.
 *
 * Exceptions pass through code that has faulted: a fault is over when the load or store that made it is. They must not
 * leave callbacks (softfault_store_operations and its like), which are C: catch everything there.
 */

#ifndef SOFTFAULT_HPP
#define SOFTFAULT_HPP

#include "softfault.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace softfault {

/* What a call that failed left behind: code() is the errno, what() the words. */
class error : public std::system_error {
public:
    /* From the result of a softfault.h function that failed in this thread. */
    explicit error(int result)
        : std::system_error(std::error_code(-result, std::generic_category())), words_(words()),
          kind_(softfault_last_error_kind()), reason_(softfault_last_fault_reason()), fault_(last_fault()),
          object_label_(last_object()), image_(last_image()), lost_(ranges()) {}

    const char *what() const noexcept override { return words_.what(); }
    /* The errno, positive. */
    int error_number() const noexcept { return code().value(); }
    /* SOFTFAULT_ERROR_*. */
    std::uint32_t kind() const noexcept { return kind_; }
    /* SOFTFAULT_VM_FAULT_* bits, where kind() is SOFTFAULT_ERROR_FAULT. */
    std::uint32_t fault_reason() const noexcept { return reason_; }
    /* Why, and where, a page could not be had or written; elsewhere SOFTFAULT_CAUSE_NONE, and UINT64_MAX twice. */
    const softfault_fault &fault() const noexcept { return fault_; }
    /* The object's label, or the path of its file; empty where fault() says nothing. */
    const char *object_label() const noexcept { return object_label_.what(); }
    /* What is wrong with an image, where kind() is SOFTFAULT_ERROR_IMAGE; object_label() is its file. Elsewhere the cause is 0. */
    const softfault_image_failure &image() const noexcept { return image_; }
    /* What was lost, where kind() is SOFTFAULT_ERROR_LOST. */
    const std::vector<softfault_range> &lost() const noexcept { return *lost_; }

private:
    static std::string words() {
        std::string text(softfault_last_error(nullptr, 0) + 1, '\0');
        softfault_last_error(&text[0], text.size());
        text.pop_back();
        return text;
    }
    static softfault_fault last_fault() noexcept {
        softfault_fault fault = {SOFTFAULT_CAUSE_NONE, 0, UINT64_MAX, UINT64_MAX};
        softfault_last_fault(&fault);
        return fault;
    }
    static softfault_image_failure last_image() noexcept {
        softfault_image_failure failure = softfault_image_failure();
        failure.file_offset = UINT64_MAX;
        softfault_last_image_failure(&failure);
        return failure;
    }
    static std::string last_object() {
        std::string text(softfault_last_object(nullptr, 0) + 1, '\0');
        softfault_last_object(&text[0], text.size());
        text.pop_back();
        return text;
    }
    static std::shared_ptr<const std::vector<softfault_range>> ranges() {
        std::vector<softfault_range> lost(softfault_last_lost_ranges(nullptr, 0));
        softfault_last_lost_ranges(lost.data(), lost.size());
        return std::make_shared<const std::vector<softfault_range>>(std::move(lost));
    }

    /* Both are copied without an allocation, as exceptions should be. */
    std::runtime_error words_;
    std::uint32_t kind_;
    std::uint32_t reason_;
    softfault_fault fault_;
    std::runtime_error object_label_;
    softfault_image_failure image_;
    std::shared_ptr<const std::vector<softfault_range>> lost_;
};

/* Throws for the result of a softfault.h function that failed. */
inline void check(int result) {
    if (result != 0)
        throw error(result);
}

namespace detail {

/* Asks for the length first; what grows in between is asked for again. */
template <typename Write> std::string text(Write write) {
    std::size_t full;
    check(write(nullptr, 0, &full));
    for (;;) {
        std::string text(full + 1, '\0');
        check(write(&text[0], text.size(), &full));
        if (full < text.size()) {
            text.resize(full);
            return text;
        }
    }
}

} // namespace detail

enum class prot : std::uint32_t {
    none = SOFTFAULT_PROT_NONE,
    read = SOFTFAULT_PROT_READ,
    read_write = SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE
};

enum class sharing : std::uint32_t { shared = SOFTFAULT_MAP_SHARED, private_copy = SOFTFAULT_MAP_PRIVATE };

enum class access : std::uint32_t { read = SOFTFAULT_ACCESS_READ, write = SOFTFAULT_ACCESS_WRITE };

enum class delivery : std::uint32_t {
    automatic = SOFTFAULT_DELIVERY_AUTO,
    in_thread = SOFTFAULT_DELIVERY_IN_THREAD,
    segv = SOFTFAULT_DELIVERY_SEGV,
    monitor = SOFTFAULT_DELIVERY_MONITOR
};

enum class failure_policy : std::uint32_t {
    poison = SOFTFAULT_FAILURE_POISON,
    zero = SOFTFAULT_FAILURE_ZERO,
    abort = SOFTFAULT_FAILURE_ABORT
};

enum class advice : std::uint32_t {
    normal = SOFTFAULT_ADVICE_NORMAL,
    random = SOFTFAULT_ADVICE_RANDOM,
    sequential = SOFTFAULT_ADVICE_SEQUENTIAL,
    will_need = SOFTFAULT_ADVICE_WILLNEED,
    dont_need = SOFTFAULT_ADVICE_DONTNEED,
    cold = SOFTFAULT_ADVICE_COLD,
    page_out = SOFTFAULT_ADVICE_PAGEOUT,
    populate_read = SOFTFAULT_ADVICE_POPULATE_READ,
    populate_write = SOFTFAULT_ADVICE_POPULATE_WRITE
};

/* Options: what is not set has its default. c() is the C structure, for fields that have no setter here. */
class runtime_options {
public:
    runtime_options() : c_() { c_.size = sizeof c_; }

    runtime_options &cache_limit(std::uint64_t bytes) { return set(c_.cache_limit_bytes, bytes); }
    /* A file or a folder for anonymous memory that leaves the cache, and its size. */
    runtime_options &swap(std::string path, std::uint64_t bytes) {
        swap_path_ = std::move(path);
        return set(c_.swap_bytes, bytes);
    }
    runtime_options &zswap(std::uint64_t bytes) { return set(c_.zswap_bytes, bytes); }
    runtime_options &fillers(std::uint32_t threads) { return set(c_.fillers, threads); }
    runtime_options &fill_window(std::uint32_t pages) { return set(c_.fill_window_pages, pages); }
    /* 0: none. */
    runtime_options &readahead(std::uint32_t pages) { return set(c_.readahead_pages, pages ? pages : SOFTFAULT_OFF); }
    /* Percent of the cache. */
    runtime_options &dirty_limits(std::uint32_t background, std::uint32_t dirty) {
        c_.dirty_background_percent = background ? background : SOFTFAULT_OFF;
        return set(c_.dirty_percent, dirty);
    }
    runtime_options &writeback(std::chrono::nanoseconds interval, std::chrono::nanoseconds expire) {
        c_.writeback_interval_ns = static_cast<std::uint64_t>(interval.count());
        return set(c_.writeback_expire_ns, static_cast<std::uint64_t>(expire.count()));
    }

    /* How long exit(3) waits until everything is written; 0: nothing is written then. */
    runtime_options &exit_wait(std::chrono::milliseconds limit) {
        return set(c_.exit_wait_ms, limit.count() > 0 ? static_cast<std::uint32_t>(limit.count()) : SOFTFAULT_OFF);
    }

    /* What is cached is locked in memory. */
    runtime_options &lock_cache(bool yes) { return flag(SOFTFAULT_RUNTIME_LOCK_CACHE, yes); }

    /* A touch that becomes SIGBUS or SIGSEGV writes a line to standard error that says why. */
    runtime_options &report_signals(bool yes = true) { return flag(SOFTFAULT_RUNTIME_REPORT_SIGNALS, yes); }

    /* Good as long as these options are neither changed nor gone. */
    softfault_runtime_options &c() {
        c_.swap_path = swap_path_.empty() ? nullptr : swap_path_.c_str();
        return c_;
    }

private:
    runtime_options &flag(std::uint32_t bit, bool yes) { return set(c_.flags, yes ? c_.flags | bit : c_.flags & ~bit); }
    template <typename Field> runtime_options &set(Field &field, Field value) {
        field = value;
        return *this;
    }

    softfault_runtime_options c_;
    std::string swap_path_;
};

class object_options {
public:
    object_options() : c_() { c_.size = sizeof c_; }

    object_options &writable(bool yes = true) { return flag(SOFTFAULT_OBJECT_WRITABLE, yes); }
    object_options &direct(bool yes = true) { return flag(SOFTFAULT_OBJECT_DIRECT, yes); }
    object_options &synchronous_writes(bool yes = true) { return flag(SOFTFAULT_OBJECT_SYNCHRONOUS_WRITES, yes); }
    object_options &dsync(bool yes = true) { return flag(SOFTFAULT_OBJECT_DSYNC, yes); }
    object_options &private_past_cache(bool yes) { return flag(SOFTFAULT_OBJECT_PRIVATE_BY_CACHE, !yes); }
    object_options &exclusive(bool yes = true) { return flag(SOFTFAULT_OBJECT_EXCLUSIVE, yes); }
    object_options &exclusive_by_copy(bool yes = true) { return flag(SOFTFAULT_OBJECT_EXCLUSIVE_BY_COPY, yes); }
    object_options &huge_pages(bool yes = true) { return flag(SOFTFAULT_OBJECT_HUGE_PAGES, yes); }
    object_options &on_failure(failure_policy policy) {
        c_.failure_policy = static_cast<std::uint32_t>(policy);
        return *this;
    }
    object_options &max_len(std::uint64_t bytes) { return set(c_.max_len_bytes, bytes); }
    object_options &growable(bool yes = true) { return flag(SOFTFAULT_OBJECT_GROWABLE, yes); }
    object_options &cache_limit(std::uint64_t bytes) { return set(c_.cache_limit_bytes, bytes); }
    object_options &deadline(std::chrono::nanoseconds bound) {
        return set(c_.deadline_ns, static_cast<std::uint64_t>(bound.count()));
    }
    object_options &retries(std::uint32_t times, std::chrono::nanoseconds backoff) {
        c_.retries = times;
        return set(c_.retry_backoff_ns, static_cast<std::uint64_t>(backoff.count()));
    }
    object_options &fill_window(std::uint32_t pages) { return set(c_.fill_window_pages, pages); }
    /* 0: none. */
    object_options &readahead(std::uint32_t pages) { return set(c_.readahead_pages, pages ? pages : SOFTFAULT_OFF); }
    /* What errors and failures call the object; default the path of a file, and a number of others. */
    object_options &label(const std::string &text) {
        label_ = std::make_shared<const std::string>(text);
        return set(c_.label, label_->c_str());
    }

    softfault_object_options &c() { return c_; }
    const softfault_object_options &c() const { return c_; }

private:
    object_options &flag(std::uint32_t bit, bool yes) {
        c_.flags = yes ? c_.flags | bit : c_.flags & ~bit;
        return *this;
    }
    template <typename Field> object_options &set(Field &field, Field value) {
        field = value;
        return *this;
    }

    softfault_object_options c_;
    /* Copies of these options share it, for c_ points at it. */
    std::shared_ptr<const std::string> label_;
};

class arena_options {
public:
    arena_options() : c_() { c_.size = sizeof c_; }

    arena_options &via(delivery how) {
        c_.delivery = static_cast<std::uint32_t>(how);
        return *this;
    }
    arena_options &kernel_access(bool yes = true) { return flag(SOFTFAULT_ARENA_KERNEL_ACCESS, yes); }
    arena_options &fault_around(bool yes) { return flag(SOFTFAULT_ARENA_NO_FAULT_AROUND, !yes); }
    arena_options &native_extents(bool yes) { return flag(SOFTFAULT_ARENA_NO_NATIVE_EXTENTS, !yes); }
    /* A capture can hold the stores of threads to it. */
    arena_options &capturable(bool yes = true) { return flag(SOFTFAULT_ARENA_CAPTURABLE, yes); }
    arena_options &lookup_first(bool yes = true) { return flag(SOFTFAULT_ARENA_LOOKUP_FIRST, yes); }
    arena_options &granule(std::uint64_t bytes) {
        c_.granule_bytes = bytes;
        return *this;
    }
    /* A multiple of 2 MiB, where nothing is mapped; nullptr: the kernel chooses. */
    arena_options &address(void *first) {
        c_.address = first;
        return *this;
    }

    softfault_arena_options &c() { return c_; }
    const softfault_arena_options &c() const { return c_; }

private:
    arena_options &flag(std::uint32_t bit, bool yes) {
        c_.flags = yes ? c_.flags | bit : c_.flags & ~bit;
        return *this;
    }

    softfault_arena_options c_;
};

/* A handle that is freed when it goes. One that was moved from, released or freed is empty: calls on it throw EINVAL. */
template <typename T, int (*Free)(T *)> class handle {
public:
    handle() noexcept : h_(nullptr) {}
    /* Takes over a handle of softfault.h. */
    explicit handle(T *h) noexcept : h_(h) {}
    handle(handle &&other) noexcept : h_(other.release()) {}
    handle &operator=(handle &&other) noexcept {
        handle gone(std::move(other));
        std::swap(h_, gone.h_);
        return *this;
    }
    handle(const handle &) = delete;
    handle &operator=(const handle &) = delete;
    ~handle() {
        if (h_)
            Free(h_);
    }

    explicit operator bool() const noexcept { return h_ != nullptr; }
    /* For functions of softfault.h. */
    T *get() const noexcept { return h_; }
    /* The handle is the caller's from now on. */
    T *release() noexcept {
        T *h = h_;
        h_ = nullptr;
        return h;
    }
    /* Frees now. */
    void free() {
        if (h_)
            check(Free(release()));
    }

private:
    T *h_;
};

/* Dirty pages that are not written back while it lives. */
class held : public handle<softfault_held, softfault_held_free> {
public:
    using handle::handle;

    softfault_range range() const {
        softfault_range range;
        check(softfault_held_range(get(), &range));
        return range;
    }
};

/* Pages that stay resident while it lives: system calls may be given them. Keeps its arena. */
class pin : public handle<softfault_pin, softfault_pin_free> {
public:
    using handle::handle;

    void *data() const {
        void *data;
        check(softfault_pin_data(get(), &data, nullptr));
        return data;
    }
    std::size_t size() const {
        std::size_t size;
        check(softfault_pin_data(get(), nullptr, &size));
        return size;
    }
    bool is_locked() const {
        bool locked;
        check(softfault_pin_is_locked(get(), &locked));
        return locked;
    }
};

/* Bytes that can be mapped, read and written. Ends with its last mapping; sync_all() before says what fails. */
class object : public handle<softfault_object, softfault_object_free> {
public:
    using handle::handle;

    std::uint64_t size() const {
        std::uint64_t size;
        check(softfault_object_len(get(), &size));
        return size;
    }
    void set_len(std::uint64_t bytes) { check(softfault_object_set_len(get(), bytes)); }
    /* Takes the file's end for the object's, and returns it. */
    std::uint64_t follow_len() {
        std::uint64_t bytes;
        check(softfault_object_follow_len(get(), &bytes));
        return bytes;
    }
    /* Returns how many bytes there were before the end. */
    std::size_t read_at(std::uint64_t offset, void *to, std::size_t size) const {
        std::size_t done;
        check(softfault_object_read_at(get(), offset, to, size, &done));
        return done;
    }
    std::size_t write_at(std::uint64_t offset, const void *from, std::size_t size) {
        std::size_t done;
        check(softfault_object_write_at(get(), offset, from, size, &done));
        return done;
    }
    void populate(std::uint64_t offset, std::uint64_t size) { check(softfault_object_populate(get(), offset, size)); }
    void advise(std::uint64_t offset, std::uint64_t size, advice what) {
        check(softfault_object_advise(get(), offset, size, static_cast<std::uint32_t>(what)));
    }
    /* Returns how many pages went. */
    std::uint64_t evict(std::uint64_t offset, std::uint64_t size) {
        std::uint64_t evicted;
        check(softfault_object_evict(get(), offset, size, &evicted));
        return evicted;
    }
    void punch_hole(std::uint64_t offset, std::uint64_t size) { check(softfault_object_punch_hole(get(), offset, size)); }
    std::uint64_t cached_pages() const {
        std::uint64_t pages;
        check(softfault_object_cached_pages(get(), &pages));
        return pages;
    }
    /* Gives the store what was written, and does not flush it. */
    void write_back(std::uint64_t offset, std::uint64_t size) { check(softfault_object_write_back(get(), offset, size)); }
    void sync(std::uint64_t offset, std::uint64_t size) { check(softfault_object_sync(get(), offset, size)); }
    void sync_all() { check(softfault_object_sync_all(get())); }
    void barrier() { check(softfault_object_barrier(get())); }
    held hold_dirty(std::uint64_t offset, std::uint64_t size) {
        softfault_held *held;
        check(softfault_object_hold_dirty(get(), offset, size, &held));
        return softfault::held(held);
    }
};

/* A range of address space. What data() points to ends with the arena and its pins. */
class arena : public handle<softfault_arena, softfault_arena_free> {
public:
    using handle::handle;

    void *data() const {
        void *base;
        check(softfault_arena_base(get(), &base));
        return base;
    }
    /* What lies offset bytes from the beginning. */
    template <typename T> T *at(std::size_t offset) const {
        return reinterpret_cast<T *>(static_cast<unsigned char *>(data()) + offset);
    }
    std::size_t size() const {
        std::size_t size;
        check(softfault_arena_len(get(), &size));
        return size;
    }
    softfault::delivery delivery() const {
        std::uint32_t mode;
        check(softfault_arena_delivery(get(), &mode));
        return static_cast<softfault::delivery>(mode);
    }
    void map(std::size_t offset, const object &what, std::uint64_t object_offset, std::size_t size, prot may,
             sharing how = sharing::shared) {
        check(softfault_arena_map(get(), offset, what.get(), object_offset, size, static_cast<std::uint32_t>(may),
                                  static_cast<std::uint32_t>(how)));
    }
    /* As map(), instead of what is mapped there. */
    void replace(std::size_t offset, const object &what, std::uint64_t object_offset, std::size_t size, prot may,
                 sharing how = sharing::shared) {
        check(softfault_arena_replace(get(), offset, what.get(), object_offset, size, static_cast<std::uint32_t>(may),
                                      static_cast<std::uint32_t>(how)));
    }
    void unmap(std::size_t offset, std::size_t size) { check(softfault_arena_unmap(get(), offset, size)); }
    void protect(std::size_t offset, std::size_t size, prot may) {
        check(softfault_arena_protect(get(), offset, size, static_cast<std::uint32_t>(may)));
    }
    void advise(std::size_t offset, std::size_t size, advice what) {
        check(softfault_arena_advise(get(), offset, size, static_cast<std::uint32_t>(what)));
    }
    void fault_in(std::size_t offset, std::size_t size, access how = access::read) {
        check(softfault_arena_fault_in(get(), offset, size, static_cast<std::uint32_t>(how)));
    }
    void zap(std::size_t offset, std::size_t size) { check(softfault_arena_zap(get(), offset, size)); }
    /* Without a signal: what cannot be had is an exception. */
    void read_at(std::size_t offset, void *to, std::size_t size) const {
        check(softfault_arena_read_at(get(), offset, to, size));
    }
    void write_at(std::size_t offset, const void *from, std::size_t size) {
        check(softfault_arena_write_at(get(), offset, from, size));
    }
    softfault::pin pin(std::size_t offset, std::size_t size, access how = access::read) {
        softfault_pin *pin;
        check(softfault_arena_pin(get(), offset, size, static_cast<std::uint32_t>(how), &pin));
        return softfault::pin(pin);
    }
};

/* A file, and the arena that it lies in, whole. They may end in either order. */
struct mapped_file {
    softfault::arena arena;
    softfault::object object;
};

enum class codec : std::uint32_t { raw = SOFTFAULT_CODEC_RAW, lz4 = SOFTFAULT_CODEC_LZ4, zstd = SOFTFAULT_CODEC_ZSTD };

enum class integrity : std::uint32_t {
    lazy = SOFTFAULT_INTEGRITY_LAZY,
    once = SOFTFAULT_INTEGRITY_ONCE,
    trusted = SOFTFAULT_INTEGRITY_TRUSTED
};

/* A range of memory that an image is of: where it was, where its pages are in the image, the bits of mmap(2). */
struct region {
    std::string name;
    std::uint64_t address;
    std::uint64_t offset;
    std::uint64_t size;
    std::uint32_t prot;
};

/* An image of memory. Opened by a runtime (open_image()) it can be restored; opened by itself, read, verified and converted. */
class image : public handle<softfault_image, softfault_image_free> {
public:
    using handle::handle;

    explicit image(const std::string &path, integrity often = integrity::lazy) : handle(open(path, often)) {}

    softfault_image_properties properties() const {
        softfault_image_properties info = softfault_image_properties();
        info.size = sizeof info;
        check(softfault_image_info(get(), &info));
        return info;
    }
    std::uint64_t size() const { return properties().len_bytes; }
    std::vector<softfault::region> regions() const {
        std::vector<softfault::region> found;
        const std::size_t nr = properties().nr_regions;
        for (std::size_t i = 0; i < nr; i++) {
            softfault_region r;
            check(softfault_image_region(get(), i, nullptr, 0, nullptr, &r));
            std::string name = detail::text([this, i](char *buf, std::size_t len, std::size_t *full) {
                return softfault_image_region(get(), i, buf, len, full, nullptr);
            });
            found.push_back(softfault::region{std::move(name), r.address, r.offset, r.len_bytes, r.prot});
        }
        return found;
    }
    /* What is kept beside the memory. */
    std::string key(const std::string &name) const {
        std::size_t size;
        check(softfault_image_key(get(), name.c_str(), nullptr, 0, &size));
        std::string value(size, '\0');
        check(softfault_image_key(get(), name.c_str(), &value[0], value.size(), nullptr));
        return value;
    }
    /* Verified, without a fault and without the cache. */
    void read_at(std::uint64_t offset, void *to, std::size_t size) const {
        check(softfault_image_read_at(get(), offset, to, size));
    }
    /* Everything, as it lies in the files now. */
    void verify() const { check(softfault_image_verify(get(), nullptr, nullptr)); }
    /* The same memory as one file that needs no other. */
    softfault_digest convert(const std::string &path, codec how = codec::raw) const {
        softfault_image_writer_options options = softfault_image_writer_options();
        softfault_digest digest;
        options.size = sizeof options;
        options.codec = static_cast<std::uint32_t>(how);
        check(softfault_image_convert(get(), path.c_str(), &options, &digest));
        return digest;
    }
    /* The ranges of bytes in which a newer image differs. */
    std::vector<softfault_range> diff(const image &newer) const {
        std::size_t nr;
        check(softfault_image_diff(get(), newer.get(), SOFTFAULT_COMPARE_DIGESTS, nullptr, 0, &nr, nullptr));
        std::vector<softfault_range> ranges(nr);
        check(softfault_image_diff(get(), newer.get(), SOFTFAULT_COMPARE_DIGESTS, ranges.data(), nr, nullptr, nullptr));
        return ranges;
    }

private:
    static softfault_image *open(const std::string &path, integrity often) {
        softfault_image_options options = softfault_image_options();
        softfault_image *image;
        options.size = sizeof options;
        options.integrity = static_cast<std::uint32_t>(often);
        check(softfault_image_open_file(path.c_str(), &options, &image));
        return image;
    }
};

/* Makes an .sfi file. One that is not finished leaves nothing. */
class image_writer : public handle<softfault_image_writer, softfault_image_writer_free> {
public:
    using handle::handle;

    image_writer(const std::string &path, std::uint64_t size, codec how = codec::raw, const image *parent = nullptr)
        : handle(make(path, size, how, parent)) {}

    /* In the order of their offsets. */
    void region(const softfault::region &r) {
        softfault_region c = {r.name.c_str(), r.address, r.offset, r.size, r.prot, 0};
        check(softfault_image_writer_region(get(), &c));
    }
    void key(const std::string &name, const std::string &value) {
        check(softfault_image_writer_key(get(), name.c_str(), value.data(), value.size()));
    }
    /* Whole pages, behind those that were written before. */
    void write(std::uint64_t offset, const void *from, std::size_t size) {
        check(softfault_image_writer_write(get(), offset, from, size));
    }
    /* Durable, and there under its name. */
    softfault_digest finish() {
        softfault_digest digest;
        check(softfault_image_writer_finish(get(), &digest));
        return digest;
    }

private:
    static softfault_image_writer *make(const std::string &path, std::uint64_t size, codec how, const image *parent) {
        softfault_image_writer_options options = softfault_image_writer_options();
        softfault_image_writer *writer;
        options.size = sizeof options;
        options.codec = static_cast<std::uint32_t>(how);
        options.parent = parent ? parent->get() : nullptr;
        check(softfault_image_writer_new(path.c_str(), size, &options, &writer));
        return writer;
    }
};

/* Which pages of an image were touched first. */
class working_set : public handle<softfault_working_set, softfault_working_set_free> {
public:
    using handle::handle;

    explicit working_set(const std::string &path) : handle(open(path)) {}

    std::uint64_t pages() const {
        softfault_working_set_properties info = softfault_working_set_properties();
        info.size = sizeof info;
        check(softfault_working_set_info(get(), &info));
        return info.nr_pages;
    }
    void save(const std::string &path) const { check(softfault_working_set_save(get(), path.c_str())); }
    void save_beside(const image &of) const { check(softfault_working_set_save_beside(get(), of.get())); }

private:
    static softfault_working_set *open(const std::string &path) {
        softfault_working_set *set;
        check(softfault_working_set_open(path.c_str(), &set));
        return set;
    }
};

/* An image that is memory again: private, filled as it is touched, verified before anybody sees it. */
class session : public handle<softfault_session, softfault_session_free> {
public:
    using handle::handle;

    std::size_t find(const std::string &name) const {
        std::size_t index;
        check(softfault_session_find(get(), name.c_str(), &index));
        return index;
    }
    /* A region, by its name or its number in the image; ends with the session. */
    void *data(const std::string &name) const { return data(find(name)); }
    void *data(std::size_t index) const {
        void *base;
        check(softfault_session_region(get(), index, &base, nullptr));
        return base;
    }
    std::size_t size(std::size_t index) const {
        std::size_t size;
        check(softfault_session_region(get(), index, nullptr, &size));
        return size;
    }
    softfault_progress progress() const {
        softfault_progress progress = softfault_progress();
        progress.size = sizeof progress;
        check(softfault_session_progress(get(), &progress));
        return progress;
    }
    /* Ready: what was touched first, if that was recorded; else empty. */
    working_set mark() {
        softfault_working_set *set;
        check(softfault_session_mark(get(), &set));
        return working_set(set);
    }
    /* All of it resident and verified. */
    void complete() { check(softfault_session_complete(get(), nullptr)); }
};

/* What a session is to be: restore(image).record(..).build(). */
class restore {
public:
    explicit restore(const image &of) : image_(of.get()), c_() { c_.size = sizeof c_; }

    restore &at_original_addresses(bool yes = true) {
        c_.flags = yes ? c_.flags | SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES
                       : c_.flags & ~static_cast<std::uint32_t>(SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES);
        return *this;
    }
    /* Options of the session's arenas. */
    restore &arena(const arena_options &options) {
        arena_ = options;
        return *this;
    }
    /* Whole pages that stand for the image's bytes from offset on. */
    restore &overlay(std::string name, std::uint64_t offset, std::string bytes) {
        overlays_.push_back(page{std::move(name), offset, std::move(bytes)});
        return *this;
    }
    /* What is touched first, in windows of this length, until session::mark(). */
    restore &record(std::chrono::nanoseconds window) {
        c_.record_window_ns = static_cast<std::uint64_t>(window.count());
        return *this;
    }
    /* Read before it is touched; the set is needed until build(). */
    restore &replay(const working_set &set) {
        c_.replay = set.get();
        return *this;
    }
    session build() {
        std::vector<softfault_overlay> overlays;
        for (const page &p : overlays_)
            overlays.push_back(softfault_overlay{p.name.c_str(), p.offset, p.bytes.data(), p.bytes.size()});
        c_.overlays = overlays.data();
        c_.nr_overlays = overlays.size();
        c_.arena = &arena_.c();
        softfault_session *session;
        check(softfault_restore(image_, &c_, &session));
        return softfault::session(session);
    }

private:
    struct page {
        std::string name;
        std::uint64_t offset;
        std::string bytes;
    };

    softfault_image *image_;
    softfault_restore_options c_;
    arena_options arena_;
    std::vector<page> overlays_;
};

/* An image that is being written of arenas: commit() it, or it is cancelled. */
class capture : public handle<softfault_capture, softfault_capture_free> {
public:
    using handle::handle;

    void key(const std::string &name, const std::string &value) {
        check(softfault_capture_key(get(), name.c_str(), value.data(), value.size()));
    }
    softfault_digest commit() {
        softfault_digest digest;
        check(softfault_capture_commit(get(), &digest));
        return digest;
    }
};

/* A cache, its counters, its threads. Ends with the last of its objects and arenas. */
class runtime : public handle<softfault_runtime, softfault_runtime_free> {
public:
    using handle::handle;

    runtime() : runtime(runtime_options()) {}
    explicit runtime(runtime_options options) : handle(make(options)) {}

    void set_cache_limit(std::uint64_t bytes) { check(softfault_runtime_set_cache_limit(get(), bytes)); }
    /* What exit(3) does, for programs that end otherwise; false: not done within the timeout. */
    bool write_back(std::chrono::nanoseconds timeout) {
        bool done = false;
        check(softfault_runtime_write_back(get(), static_cast<std::uint64_t>(timeout.count()), &done));
        return done;
    }
    softfault::delivery delivery() const {
        std::uint32_t mode;
        check(softfault_runtime_delivery(get(), &mode));
        return static_cast<softfault::delivery>(mode);
    }
    /* What can be had here, what was chosen, and why. */
    std::string delivery_report() const {
        return detail::text([this](char *buf, std::size_t len, std::size_t *full) {
            return softfault_runtime_delivery_report(get(), buf, len, full);
        });
    }
    /* In front again, after somebody else has installed handlers for SIGBUS or SIGSEGV. */
    void reinstall_handlers() { check(softfault_reinstall_handlers(get())); }
    /* A line for each thread that could not take a fault. */
    std::string audit_threads() const {
        std::size_t offenders = 0;
        std::string lines = detail::text([this, &offenders](char *buf, std::size_t len, std::size_t *full) {
            return softfault_runtime_audit_threads(get(), &offenders, buf, len, full);
        });
        return offenders ? lines : std::string();
    }
    /* A line for each thread that made or mapped something while it blocked our signals. */
    std::string warnings() const {
        std::size_t nr = 0;
        std::string lines = detail::text([this, &nr](char *buf, std::size_t len, std::size_t *full) {
            return softfault_runtime_warnings(get(), &nr, buf, len, full);
        });
        return nr ? lines : std::string();
    }

    object open(const std::string &path, const object_options &options = object_options()) {
        softfault_object *object;
        check(softfault_object_open(get(), path.c_str(), &options.c(), &object));
        return softfault::object(object);
    }
    /* Opens a file and maps it whole, from the arena's offset 0 on; to be written if the options say so. What mmap(2) does. */
    mapped_file map_file(const std::string &path, const object_options &options = object_options()) {
        softfault_arena *arena;
        softfault_object *object;
        check(softfault_arena_map_file(get(), path.c_str(), &options.c(), &arena, &object));
        return mapped_file{softfault::arena(arena), softfault::object(object)};
    }
    object from_fd(int fd, const object_options &options = object_options()) {
        softfault_object *object;
        check(softfault_object_from_fd(get(), fd, &options.c(), &object));
        return softfault::object(object);
    }
    object anonymous(std::uint64_t size, const object_options &options = object_options()) {
        softfault_object *object;
        check(softfault_object_anonymous(get(), size, &options.c(), &object));
        return softfault::object(object);
    }
    /* A store of one's own. operations.drop gets ctx at its end, also if this throws. */
    object from_store(std::uint64_t size, const softfault_store_operations &operations, void *ctx,
                      const object_options &options = object_options()) {
        softfault_object *object;
        check(softfault_object_from_store(get(), size, &operations, ctx, &options.c(), &object));
        return softfault::object(object);
    }
    /* A vtable of one's own; likewise. */
    object from_vm_operations(std::uint64_t size, const softfault_vm_operations &operations, void *ctx,
                              const object_options &options = object_options()) {
        softfault_object *object;
        check(softfault_object_from_vm_operations(get(), size, &operations, ctx, &options.c(), &object));
        return softfault::object(object);
    }
    /* An image, of which sessions are restored. */
    softfault::image open_image(const std::string &path, integrity often = integrity::lazy) {
        softfault_image_options options = softfault_image_options();
        softfault_image *image;
        options.size = sizeof options;
        options.integrity = static_cast<std::uint32_t>(often);
        check(softfault_image_open(get(), path.c_str(), &options, &image));
        return softfault::image(image);
    }
    /* Makes a cut of an arena that is capturable, and begins to write its image; options may say more (their size is set here). */
    softfault::capture begin_capture(const std::string &path, const softfault::arena &what,
                                     softfault_capture_options options = softfault_capture_options()) {
        softfault_arena *arena = what.get();
        softfault_capture *capture;
        options.size = sizeof options;
        check(softfault_capture_begin(get(), path.c_str(), &arena, 1, &options, nullptr, nullptr, &capture));
        return softfault::capture(capture);
    }
    softfault::arena arena(std::size_t size, const arena_options &options = arena_options()) {
        softfault_arena *arena;
        check(softfault_arena_new(get(), size, &options.c(), &arena));
        return softfault::arena(arena);
    }

    /* A counter by its name: "pgfault", "pgmajfault", "nr_cached_pages". */
    std::uint64_t stat(const char *name) const {
        std::uint64_t value;
        check(softfault_stats_get(stats().get(), name, &value));
        return value;
    }
    /* The last failures, oldest first: of stores, whoever was told, and touches that became signals. */
    std::vector<softfault_failure> recent_failures() const {
        std::size_t nr;
        check(softfault_runtime_recent_failures(get(), nullptr, 0, &nr));
        std::vector<softfault_failure> last(nr);
        check(softfault_runtime_recent_failures(get(), last.data(), nr, &nr));
        return last;
    }
    std::string stats_json() const {
        statistics now = stats();
        return detail::text([&now](char *buf, std::size_t len, std::size_t *full) {
            return softfault_stats_json(now.get(), buf, len, full);
        });
    }

private:
    using statistics = handle<softfault_stats, softfault_stats_free>;

    static softfault_runtime *make(runtime_options &options) {
        softfault_runtime *runtime;
        check(softfault_runtime_new(&options.c(), &runtime));
        return runtime;
    }
    statistics stats() const {
        softfault_stats *stats;
        check(softfault_stats_read(get(), &stats));
        return statistics(stats);
    }
};

} // namespace softfault

#endif /* SOFTFAULT_HPP */
