/*
 * softfault: a page-fault runtime inside the process that faults. The C ABI.
 *
 * Written by cbindgen from bindings-c/src; do not edit. bindings-c/README.md says how to build, link and use it.
 *
 * Functions that can fail return 0, or a negative errno; softfault_last_error() has the words, for this thread. Out-
 * parameters are written on success only, and may not be NULL unless their function says so. Offsets, lengths and limits
 * are bytes, page numbers count 4096 bytes. Strings are UTF-8 or file names, and end with a NUL.
 *
 * Handles (softfault_runtime, softfault_object, ..) are names, not addresses: a NULL handle is -EINVAL, one that was
 * freed, or is of another type, or was never given out, is -EBADF. Every handle is freed once, by the function of its
 * type; objects and arenas keep alive what they need, in whatever order handles are freed. Handles may be used by
 * several threads at once; freeing one while another thread is in a call on it is fine, and ends nothing early.
 *
 * Where a function may be called is said with each of them, in these words:
 *   program   any thread of the program, but in no callback that says "handler"
 *   filler    also in callbacks on filler threads
 *   handler   also in callbacks that run in the faulting thread, inside a signal handler
 * None may be called in a signal handler of the program's own.
 */

#ifndef SOFTFAULT_H
#define SOFTFAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The version of this header. Compare it with softfault_abi_version(): a library serves a program whose version is not
 * greater than its own.
 */
#define SOFTFAULT_ABI_VERSION 1

/**
 * The cache's limit cannot be met, or there is no memory.
 */
#define SOFTFAULT_VM_FAULT_OOM 0x1

/**
 * Past the end of the object, or the store failed.
 */
#define SOFTFAULT_VM_FAULT_SIGBUS 0x2

/**
 * The page came from the store.
 */
#define SOFTFAULT_VM_FAULT_MAJOR 0x4

/**
 * The page's content failed its check.
 */
#define SOFTFAULT_VM_FAULT_HWPOISON 0x10

/**
 * A huge page's content failed its check. Carried: never set here.
 */
#define SOFTFAULT_VM_FAULT_HWPOISON_LARGE 0x20

/**
 * The mapping does not permit the access.
 */
#define SOFTFAULT_VM_FAULT_SIGSEGV 0x40

/**
 * The page is mapped already; nothing more to do.
 */
#define SOFTFAULT_VM_FAULT_NOPAGE 0x100

/**
 * Fault found its page, and it is pinned.
 */
#define SOFTFAULT_VM_FAULT_LOCKED 0x200

/**
 * Something must be done first; the fault is made again.
 */
#define SOFTFAULT_VM_FAULT_RETRY 0x400

/**
 * No huge mapping; page by page.
 */
#define SOFTFAULT_VM_FAULT_FALLBACK 0x800

/**
 * The private copy has been made.
 */
#define SOFTFAULT_VM_FAULT_DONE_COW 0x1000

/**
 * The page's block must be durable before the first store to it.
 */
#define SOFTFAULT_VM_FAULT_NEEDDSYNC 0x2000

/**
 * Done, and the thread is to wait for write-back.
 */
#define SOFTFAULT_VM_FAULT_COMPLETED 0x4000

/**
 * Cached, and a delegate has not been told yet. Never set by a library without userfaultfd.
 */
#define SOFTFAULT_VM_FAULT_UFFD_MINOR 0x8000

/**
 * Size of a huge page. Carried: never set here.
 */
#define SOFTFAULT_VM_FAULT_HINDEX_MASK 0xf0000

/**
 * Any bit with which the access fails.
 */
#define SOFTFAULT_VM_FAULT_ERROR 0x873

/**
 * The access is a store.
 */
#define SOFTFAULT_FAULT_FLAG_WRITE 0x1

/**
 * SOFTFAULT_VM_FAULT_RETRY may be answered.
 */
#define SOFTFAULT_FAULT_FLAG_ALLOW_RETRY 0x4

/**
 * Do not sleep.
 */
#define SOFTFAULT_FAULT_FLAG_RETRY_NOWAIT 0x8

/**
 * Not the first attempt.
 */
#define SOFTFAULT_FAULT_FLAG_TRIED 0x20

/**
 * An instruction in user mode made the access.
 */
#define SOFTFAULT_FAULT_FLAG_USER 0x40

/**
 * Another thread than the one that waits resolves it.
 */
#define SOFTFAULT_FAULT_FLAG_REMOTE 0x80

/**
 * An instruction fetch.
 */
#define SOFTFAULT_FAULT_FLAG_INSTRUCTION 0x100

/**
 * Nothing is permitted.
 */
#define SOFTFAULT_PROT_NONE 0

/**
 * Loads are permitted.
 */
#define SOFTFAULT_PROT_READ 1

/**
 * Stores are permitted; only together with SOFTFAULT_PROT_READ.
 */
#define SOFTFAULT_PROT_WRITE 2

/**
 * Stores reach the object, and every other mapping of it.
 */
#define SOFTFAULT_MAP_SHARED 1

/**
 * Stores reach this mapping alone.
 */
#define SOFTFAULT_MAP_PRIVATE 2

/**
 * A load.
 */
#define SOFTFAULT_ACCESS_READ 0

/**
 * A store.
 */
#define SOFTFAULT_ACCESS_WRITE 1

/**
 * The best that can be had: in-thread, else SIGSEGV; the monitor where kernel access is asked for.
 */
#define SOFTFAULT_DELIVERY_AUTO 0

/**
 * userfaultfd and SIGBUS: the faulting thread resolves its own fault.
 */
#define SOFTFAULT_DELIVERY_IN_THREAD 1

/**
 * Protection and SIGSEGV: works everywhere, exposes a granule at once.
 */
#define SOFTFAULT_DELIVERY_SEGV 2

/**
 * A userfaultfd monitor thread: serves system calls too.
 */
#define SOFTFAULT_DELIVERY_MONITOR 3

/**
 * A page that the store cannot give raises SIGBUS, until a later touch finds the store well. The default.
 */
#define SOFTFAULT_FAILURE_POISON 0

/**
 * It reads as zeros, and stays so.
 */
#define SOFTFAULT_FAILURE_ZERO 1

/**
 * The process ends, with a line on standard error.
 */
#define SOFTFAULT_FAILURE_ABORT 2

/**
 * Nothing is known: streams are recognised.
 */
#define SOFTFAULT_ADVICE_NORMAL 0

/**
 * Read in no order: nothing is read ahead.
 */
#define SOFTFAULT_ADVICE_RANDOM 1

/**
 * Read in ascending order: far ahead.
 */
#define SOFTFAULT_ADVICE_SEQUENTIAL 2

/**
 * Needed soon: read in the background. A hint.
 */
#define SOFTFAULT_ADVICE_WILLNEED 3

/**
 * Not needed soon: page-table entries of shared mappings go, the pages stay cached.
 */
#define SOFTFAULT_ADVICE_DONTNEED 4

/**
 * The first pages to go when room is needed.
 */
#define SOFTFAULT_ADVICE_COLD 20

/**
 * Leaves the cache now, dirty pages by way of the store.
 */
#define SOFTFAULT_ADVICE_PAGEOUT 21

/**
 * Made resident now, as loads would.
 */
#define SOFTFAULT_ADVICE_POPULATE_READ 22

/**
 * Made resident now, as stores would.
 */
#define SOFTFAULT_ADVICE_POPULATE_WRITE 23

/**
 * For a number in an option structure where 0 means the default, and none or nothing is wanted.
 */
#define SOFTFAULT_OFF UINT32_MAX

/**
 * No call has failed on this thread.
 */
#define SOFTFAULT_ERROR_NONE 0

/**
 * An argument is not what it must be; nothing was changed. -EINVAL, or -E2BIG for an option structure of a later version.
 */
#define SOFTFAULT_ERROR_ARGUMENT 1

/**
 * A handle that is not, or no longer, valid. -EBADF; -EINVAL for NULL.
 */
#define SOFTFAULT_ERROR_HANDLE 2

/**
 * The range is not wholly mapped. -ENXIO.
 */
#define SOFTFAULT_ERROR_NOT_MAPPED 3

/**
 * Something is mapped there already. -EEXIST.
 */
#define SOFTFAULT_ERROR_OCCUPIED 4

/**
 * A pin holds the range. -EBUSY.
 */
#define SOFTFAULT_ERROR_PINNED 5

/**
 * The object or mapping does not permit it, or this is a forked child. -EACCES.
 */
#define SOFTFAULT_ERROR_DENIED 6

/**
 * A page could not be had: softfault_last_fault_reason() has the bits, softfault_last_fault() why and where. The store's
 * errno where it gave one; else -ENOMEM (OOM), -EHWPOISON, -EFAULT (SIGSEGV), or -EIO.
 */
#define SOFTFAULT_ERROR_FAULT 7

/**
 * The delivery that was asked for cannot be had here. -EOPNOTSUPP.
 */
#define SOFTFAULT_ERROR_DELIVERY 8

/**
 * A table, or a limit of the process, is exhausted. -ENOMEM.
 */
#define SOFTFAULT_ERROR_EXHAUSTED 9

/**
 * A system call failed. Its errno.
 */
#define SOFTFAULT_ERROR_SYSTEM 10

/**
 * The store did not take pages; they stay dirty. The store's errno where it gave one; else as SOFTFAULT_ERROR_FAULT.
 */
#define SOFTFAULT_ERROR_WRITEBACK 11

/**
 * The store could not make durable what it was given. The store's errno.
 */
#define SOFTFAULT_ERROR_FLUSH 12

/**
 * A flush failed after pages had left the cache: softfault_last_lost_ranges() names them. -EIO.
 */
#define SOFTFAULT_ERROR_LOST 13

/**
 * Pages are held dirty. -EBUSY.
 */
#define SOFTFAULT_ERROR_HELD 14

/**
 * Input or output of the control plane failed. Its errno.
 */
#define SOFTFAULT_ERROR_IO 15

/**
 * There is nothing of that name or number. -ENOENT.
 */
#define SOFTFAULT_ERROR_NO_ENTRY 16

/**
 * A bug of the library: a panic was caught. -ENOTRECOVERABLE; free what was involved.
 */
#define SOFTFAULT_ERROR_INTERNAL 17

/**
 * An error of a kind that a later version has. -EIO.
 */
#define SOFTFAULT_ERROR_OTHER 18

/**
 * What was to be opened is not a file of bytes that stay: a directory, a pipe, a file of procfs. -ENODEV, as mmap(2) has it.
 */
#define SOFTFAULT_ERROR_FILE_TYPE 19

/**
 * The file is open in this process, as the same object, with other options: the words name the one. -EBUSY.
 */
#define SOFTFAULT_ERROR_CONFLICT 20

/**
 * A limit of the process is too low: the words name it, its value, and the one that is needed. -EMFILE for RLIMIT_NOFILE,
 * else -ENOMEM.
 */
#define SOFTFAULT_ERROR_LIMIT 21

/**
 * An image of memory cannot be read or written, or is not what it says: softfault_last_image_failure() says what and where,
 * softfault_last_object() of which file. Its errno where a system call failed; else -EBADMSG (damaged), -EOPNOTSUPP, -ESTALE
 * (the file is another by now), -EBUSY (in use), -EINVAL (two things that do not belong together).
 */
#define SOFTFAULT_ERROR_IMAGE 22

/**
 * The image needs an overlay that was not given: the words name it, and its bytes. -ENODATA.
 */
#define SOFTFAULT_ERROR_OVERLAY 23

/**
 * A capture came to nothing: the words say why. -EIO.
 */
#define SOFTFAULT_ERROR_CAPTURE 24

/**
 * No cause is known: the last failure was none of a page, or a vtable of the program's said no.
 */
#define SOFTFAULT_CAUSE_NONE 0

/**
 * The store reported an error: its errno is beside it.
 */
#define SOFTFAULT_CAUSE_IO 1

/**
 * The store ended before the object did.
 */
#define SOFTFAULT_CAUSE_SHORT 2

/**
 * The content failed its check.
 */
#define SOFTFAULT_CAUSE_CORRUPT 3

/**
 * The store did not answer before the deadline.
 */
#define SOFTFAULT_CAUSE_DEADLINE 4

/**
 * No memory for the page, or for its page table.
 */
#define SOFTFAULT_CAUSE_NO_MEMORY 5

/**
 * A delegate refused the page, or the runtime an access that must not be made.
 */
#define SOFTFAULT_CAUSE_REFUSED 6

/**
 * The cache's limit is reached, or the object's own, and nothing can leave: the words of softfault_last_error() say what
 * is in the way.
 */
#define SOFTFAULT_CAUSE_CACHE_FULL 7

/**
 * Past the end of the object.
 */
#define SOFTFAULT_CAUSE_PAST_END 8

/**
 * The page has as many pins as a page can have.
 */
#define SOFTFAULT_CAUSE_NO_PINS 9

/**
 * The mapping does not permit the access.
 */
#define SOFTFAULT_CAUSE_NOT_PERMITTED 10

/**
 * Nothing is mapped there.
 */
#define SOFTFAULT_CAUSE_NOT_MAPPED 11

/**
 * The cache's memory is not what its words say.
 */
#define SOFTFAULT_CAUSE_BROKEN 12

/**
 * A system call on the image's file failed.
 */
#define SOFTFAULT_IMAGE_CAUSE_IO 1

/**
 * The file is not what its format says: truncated, damaged, or made to deceive.
 */
#define SOFTFAULT_IMAGE_CAUSE_CORRUPT 2

/**
 * Bytes are not those that the image was made of.
 */
#define SOFTFAULT_IMAGE_CAUSE_DIGEST 3

/**
 * The image is whole, but asks for what this build does not know.
 */
#define SOFTFAULT_IMAGE_CAUSE_UNSUPPORTED 4

/**
 * A file below the image is no longer the one that the image was made over.
 */
#define SOFTFAULT_IMAGE_CAUSE_CHANGED 5

/**
 * Something else holds what is to be removed.
 */
#define SOFTFAULT_IMAGE_CAUSE_IN_USE 6

/**
 * Two things cannot be put together: a working set and the image of another content, say.
 */
#define SOFTFAULT_IMAGE_CAUSE_MIXED 7

/**
 * A cause that a later version has.
 */
#define SOFTFAULT_IMAGE_CAUSE_OTHER 8

/**
 * What is cached is locked in memory, as by mlock2(2) with MLOCK_ONFAULT: never swapped, and never unmapped by the kernel's
 * reclaim. Without CAP_IPC_LOCK all objects together must stay below RLIMIT_MEMLOCK; one that does not fit is
 * SOFTFAULT_ERROR_LIMIT.
 */
#define SOFTFAULT_RUNTIME_LOCK_CACHE 1

/**
 * A line on standard error before a touch becomes a SIGBUS, with the object, its byte, and why.
 */
#define SOFTFAULT_RUNTIME_REPORT_SIGNALS 2

/**
 * The object may be written: shared mappings with stores, and softfault_object_write_at(). A file is written, too.
 */
#define SOFTFAULT_OBJECT_WRITABLE 0x1

/**
 * Files: read and written past the kernel's page cache (O_DIRECT) where the file system can.
 */
#define SOFTFAULT_OBJECT_DIRECT 0x2

/**
 * The first store to each page of a shared mapping faults (page_mkwrite), instead of being noted silently.
 */
#define SOFTFAULT_OBJECT_SYNCHRONOUS_WRITES 0x4

/**
 * As MAP_SYNC: a page's block is durable before the first store to it lands. Implies SOFTFAULT_OBJECT_SYNCHRONOUS_WRITES.
 */
#define SOFTFAULT_OBJECT_DSYNC 0x8

/**
 * A first store to an uncached page of a private mapping fills the cache first, instead of reading past it.
 */
#define SOFTFAULT_OBJECT_PRIVATE_BY_CACHE 0x10

/**
 * Pages live in the private memory of the one mapping, moved in and out of recycled frames. Needs in-thread delivery.
 */
#define SOFTFAULT_OBJECT_EXCLUSIVE 0x20

/**
 * As SOFTFAULT_OBJECT_EXCLUSIVE, but pages are copied.
 */
#define SOFTFAULT_OBJECT_EXCLUSIVE_BY_COPY 0x40

/**
 * Keeps 2 MiB that are cached whole as one huge page: read-only objects, and anonymous memory without swap.
 */
#define SOFTFAULT_OBJECT_HUGE_PAGES 0x80

/**
 * The object has room to grow without a maximum that is known beforehand: 64 GiB where nothing limits the address space.
 */
#define SOFTFAULT_OBJECT_GROWABLE 0x100

/**
 * System calls, O_DIRECT and KVM may touch the arena without a pin: needs the monitor.
 */
#define SOFTFAULT_ARENA_KERNEL_ACCESS 0x1

/**
 * A fault maps its page alone, no cached neighbours.
 */
#define SOFTFAULT_ARENA_NO_FAULT_AROUND 0x2

/**
 * Fully cached extents are handed to the kernel only by softfault_arena_promote().
 */
#define SOFTFAULT_ARENA_NO_NATIVE_EXTENTS 0x4

/**
 * Minor delegates are asked before fault is called, instead of by its SOFTFAULT_VM_FAULT_UFFD_MINOR.
 */
#define SOFTFAULT_ARENA_LOOKUP_FIRST 0x8

/**
 * softfault_capture_begin() can hold the stores of threads to the arena: the first store to a page that is clean, or that a capture has
 * protected, faults, and while a capture is made a system call that stores to the arena can fail with EFAULT. Needs in-thread
 * delivery; maps objects shared.
 */
#define SOFTFAULT_ARENA_CAPTURABLE 0x10

/**
 * Bytes are verified each time that they are read, where there are digests.
 */
#define SOFTFAULT_INTEGRITY_LAZY 0

/**
 * Bytes are verified the first time: who can change the file afterwards is trusted, or cannot.
 */
#define SOFTFAULT_INTEGRITY_ONCE 1

/**
 * Bytes are never verified: the file is what it was when it was written.
 */
#define SOFTFAULT_INTEGRITY_TRUSTED 2

/**
 * An .sfi file, or else a raw image, with sparse diffs over it if there are any.
 */
#define SOFTFAULT_IMAGE_FORMAT_AUTO 0

/**
 * A folder that CRIU dumped; process_id says which of its processes.
 */
#define SOFTFAULT_IMAGE_FORMAT_CRIU 1

/**
 * A folder of a Cloud Hypervisor snapshot.
 */
#define SOFTFAULT_IMAGE_FORMAT_CLOUD_HYPERVISOR 2

/**
 * A migration that QEMU wrote with mapped-ram.
 */
#define SOFTFAULT_IMAGE_FORMAT_QEMU 3

/**
 * The image has a digest of its file.
 */
#define SOFTFAULT_IMAGE_HAS_FILE_DIGEST 0x1

/**
 * The image knows the digest of its contents.
 */
#define SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST 0x2

/**
 * Each region is mapped at the address that it had, where nothing may be mapped within the 2 MiB around its ends.
 */
#define SOFTFAULT_RESTORE_AT_ORIGINAL_ADDRESSES 0x1

/**
 * Extents (2 MiB) that lie in a file as they are are mapped from there: the kernel's page cache serves them, outside the cache and
 * its limit, and unverified. The image must have been opened with SOFTFAULT_INTEGRITY_TRUSTED. Needs in-thread delivery.
 */
#define SOFTFAULT_RESTORE_DIRECT 0x2

/**
 * Pages are stored as they are.
 */
#define SOFTFAULT_CODEC_RAW 0

/**
 * Frames are LZ4 blocks.
 */
#define SOFTFAULT_CODEC_LZ4 1

/**
 * Frames are of Zstandard, where the library was built with it.
 */
#define SOFTFAULT_CODEC_ZSTD 2

/**
 * Files of the parent that have no digests are read, and the new image has digests of them.
 */
#define SOFTFAULT_WRITER_DIGEST_PARENT 0x1

/**
 * softfault_capture_begin() fails where it would wait for pins for writing, or for another capture of an arena.
 */
#define SOFTFAULT_CAPTURE_NO_WAIT 1

/**
 * A store did not give a page.
 */
#define SOFTFAULT_FAILED_READ 1

/**
 * A store did not take pages.
 */
#define SOFTFAULT_FAILED_WRITE 2

/**
 * A store did not make durable what it took.
 */
#define SOFTFAULT_FAILED_FLUSH 3

/**
 * A load or store of the program's became a signal.
 */
#define SOFTFAULT_FAILED_TOUCH 4

/**
 * read, dsync and write are called in the faulting thread, inside a signal handler; see softfault_store_operations.
 */
#define SOFTFAULT_STORE_HANDLER_SAFE 0x1

/**
 * A handler-safe store touches arena memory in read or dsync, and so may fault.
 */
#define SOFTFAULT_STORE_TOUCHES_ARENAS 0x2

/**
 * write must see bytes that nobody changes meanwhile (it checksums, compresses, encrypts): it gets a copy.
 */
#define SOFTFAULT_STORE_STABLE 0x4

/**
 * write waits for a device: it is called by fillers, several at once, and never in a handler.
 */
#define SOFTFAULT_STORE_WRITE_BLOCKS 0x8

/**
 * read does not give what write took before the next flush: such pages stay cached until then.
 */
#define SOFTFAULT_STORE_NO_REREAD 0x10

/**
 * read and write move bytes between descriptors (softfault_page_fill_from() and its neighbours) rather than through memory:
 * they get the cache's own pages. Else they usually get a buffer without a descriptor, of up to 256 KiB, and the runtime
 * copies, which is faster for what goes through memory.
 */
#define SOFTFAULT_STORE_USES_DESCRIPTORS 0x20

/**
 * The delegate runs in the faulting thread, inside a signal handler, under the rules of softfault_vm_operations.
 */
#define SOFTFAULT_MINOR_HANDLER_SAFE 0x1

/**
 * Map the page; the delegate is not asked again.
 */
#define SOFTFAULT_MINOR_CONTINUE 0

/**
 * Never map it: each touch is SIGBUS.
 */
#define SOFTFAULT_MINOR_REFUSE 1

/**
 * Not now: the access is made again, and the delegate asked again.
 */
#define SOFTFAULT_MINOR_DELAY 2

/**
 * Pages are compared by the digests of their contents, where both images have them.
 */
#define SOFTFAULT_COMPARE_DIGESTS 0

/**
 * Pages are read, verified and compared.
 */
#define SOFTFAULT_COMPARE_PAGES 1

/**
 * A range of address space over which objects are mapped. Freed by softfault_arena_free().
 */
typedef struct softfault_arena softfault_arena;

/**
 * An image that is being written of arenas. Freed by softfault_capture_free().
 */
typedef struct softfault_capture softfault_capture;

/**
 * A folder of images. Freed by softfault_catalog_free().
 */
typedef struct softfault_catalog softfault_catalog;

/**
 * A range of an object that is not written back. Freed by softfault_held_free().
 */
typedef struct softfault_held softfault_held;

/**
 * An image of memory: a snapshot. Freed by softfault_image_free().
 */
typedef struct softfault_image softfault_image;

/**
 * An image that is being written. Freed by softfault_image_writer_free().
 */
typedef struct softfault_image_writer softfault_image_writer;

/**
 * The first touch of a page that a softfault_minor_operations callback is told of; good for the length of the call.
 */
typedef struct softfault_minor_fault softfault_minor_fault;

/**
 * Bytes that can be mapped and read and written: a file, anonymous memory, or what a store of the program's has. Freed by
 * softfault_object_free().
 */
typedef struct softfault_object softfault_object;

/**
 * A page, or several, that a softfault_store_operations read is to fill; good for the length of the call.
 */
typedef struct softfault_page softfault_page;

/**
 * Pages that a softfault_store_operations write is to take; good for the length of the call.
 */
typedef struct softfault_pages softfault_pages;

/**
 * A range of an arena that stays resident. Freed by softfault_pin_free().
 */
typedef struct softfault_pin softfault_pin;

/**
 * A page-fault runtime: a cache, its counters, its threads. Freed by softfault_runtime_free().
 */
typedef struct softfault_runtime softfault_runtime;

/**
 * An image that was restored: memory, which is filled as it is touched. Freed by softfault_session_free().
 */
typedef struct softfault_session softfault_session;

/**
 * A reading of a runtime's counters. Freed by softfault_stats_free().
 */
typedef struct softfault_stats softfault_stats;

/**
 * A fault that a softfault_vm_operations callback is asked about; good for the length of the call.
 */
typedef struct softfault_vm_fault softfault_vm_fault;

/**
 * Which pages of an image a program touched first, in windows of time. Freed by softfault_working_set_free().
 */
typedef struct softfault_working_set softfault_working_set;

/**
 * Why, and where, a page could not be had, or was not written.
 */
typedef struct softfault_fault {
    /**
     * SOFTFAULT_CAUSE_*.
     */
    uint32_t cause;
    /**
     * The store's errno, positive; 0 if it gave none.
     */
    int store_errno;
    /**
     * The byte of the object; UINT64_MAX if that is not known.
     */
    uint64_t object_offset;
    /**
     * The same byte, of the arena; UINT64_MAX for calls on objects.
     */
    uint64_t arena_offset;
} softfault_fault;

/**
 * A digest (BLAKE3) of a file or of contents; all zeros stands for none.
 */
typedef struct softfault_digest {
    /**
     * Its bytes, in the order in which they are written.
     */
    uint8_t bytes[32];
} softfault_digest;

/**
 * What is wrong with an image, and where.
 */
typedef struct softfault_image_failure {
    /**
     * SOFTFAULT_IMAGE_CAUSE_*.
     */
    uint32_t cause;
    /**
     * What a system call said, positive; 0 if none failed.
     */
    int system_errno;
    /**
     * The byte of the file; UINT64_MAX if it is about no byte.
     */
    uint64_t file_offset;
    /**
     * With SOFTFAULT_IMAGE_CAUSE_DIGEST: what the image says.
     */
    struct softfault_digest wanted;
    /**
     * With SOFTFAULT_IMAGE_CAUSE_DIGEST: what the bytes say.
     */
    struct softfault_digest found;
} softfault_image_failure;

/**
 * A range of bytes: of an object, or of an arena.
 */
typedef struct softfault_range {
    /**
     * The first byte.
     */
    uint64_t start;
    /**
     * The byte behind the last one.
     */
    uint64_t end;
} softfault_range;

/**
 * Options of softfault_runtime_new(). Fields that are 0 have their defaults.
 */
typedef struct softfault_runtime_options {
    /**
     * sizeof(struct softfault_runtime_options).
     */
    size_t size;
    /**
     * Bounds the cached bytes over all objects. Default: half of what the memory cgroup, or the machine, has, divided evenly
     * between all runtimes of the process that have no limit of their own.
     */
    uint64_t cache_limit_bytes;
    /**
     * Where anonymous memory goes when the cache is full: a file, which is overwritten, or a folder, in which a file
     * without a name is made. Default: it stays. Read during the call only.
     */
    const char *swap_path;
    /**
     * Bytes of the swap file; needed with swap_path.
     */
    uint64_t swap_bytes;
    /**
     * Memory for compressed pages in front of the swap file; needs swap_path.
     */
    uint64_t zswap_bytes;
    /**
     * Threads that call stores that are not handler-safe; default 4, at most 64.
     */
    uint32_t fillers;
    /**
     * Pages that the thread that misses one reads at most: a power of two up to 512; default 16.
     */
    uint32_t fill_window_pages;
    /**
     * The largest readahead window in pages; default twice the fill window. SOFTFAULT_OFF: none.
     */
    uint32_t readahead_pages;
    /**
     * Percent of the cache that may be dirty before pages are written in the background; default 10. SOFTFAULT_OFF: 0.
     */
    uint32_t dirty_background_percent;
    /**
     * Percent of the cache that may be dirty before writers are made to wait; default 40.
     */
    uint32_t dirty_percent;
    /**
     * How long exit(3) waits until everything is written that was stored and not synced, in milliseconds; default 30 s.
     * SOFTFAULT_OFF: nothing is written then. Not at _exit(2), Go's os.Exit, signals that kill, and in forked children.
     */
    uint32_t exit_wait_ms;
    /**
     * How often mappings are scanned for stores; default 500 ms.
     */
    uint64_t writeback_interval_ns;
    /**
     * After how long dirty pages are written though nobody asks; default 5 s.
     */
    uint64_t writeback_expire_ns;
    /**
     * SOFTFAULT_RUNTIME_* together.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} softfault_runtime_options;

/**
 * One of a runtime's last failures.
 */
typedef struct softfault_failure {
    /**
     * Counts the runtime's failures: a gap means that some were not kept.
     */
    uint64_t number;
    /**
     * SOFTFAULT_FAILED_*.
     */
    uint32_t op;
    /**
     * SOFTFAULT_CAUSE_*.
     */
    uint32_t cause;
    /**
     * The store's errno, positive; 0 if it gave none.
     */
    int store_errno;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * The object's byte, of the page that could not be had or the first that was not written.
     */
    uint64_t object_offset;
    /**
     * The address that was touched; 0: none was.
     */
    uint64_t address;
    /**
     * How long ago.
     */
    uint64_t age_ns;
    /**
     * The object's label, or the end of a longer one; ends with a NUL.
     */
    char object[104];
} softfault_failure;

/**
 * Options of an object. Fields that are 0 have their defaults.
 */
typedef struct softfault_object_options {
    /**
     * sizeof(struct softfault_object_options).
     */
    size_t size;
    /**
     * SOFTFAULT_OBJECT_* together.
     */
    uint32_t flags;
    /**
     * What happens when the store cannot give a page: SOFTFAULT_FAILURE_*.
     */
    uint32_t failure_policy;
    /**
     * Up to where the object may grow (softfault_object_set_len()); default its length.
     */
    uint64_t max_len_bytes;
    /**
     * Bounds the object's own cached bytes, below the runtime's limit (at least 64 pages); default no bound.
     */
    uint64_t cache_limit_bytes;
    /**
     * Bounds how long a touch waits for the store; default for ever. Not for handler-safe stores.
     */
    uint64_t deadline_ns;
    /**
     * How often a read that failed is tried again, on filler threads; default never.
     */
    uint32_t retries;
    /**
     * As in softfault_runtime_options; default the runtime's.
     */
    uint32_t fill_window_pages;
    /**
     * The pause before the first retry; it doubles with each.
     */
    uint64_t retry_backoff_ns;
    /**
     * As in softfault_runtime_options; default the runtime's. SOFTFAULT_OFF: none.
     */
    uint32_t readahead_pages;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * What the object is called in errors and among the failures; default the path of a file, and a number of others. Read
     * during the call only.
     */
    const char *label;
} softfault_object_options;

/**
 * Options of softfault_arena_new(). Fields that are 0 have their defaults.
 */
typedef struct softfault_arena_options {
    /**
     * sizeof(struct softfault_arena_options).
     */
    size_t size;
    /**
     * SOFTFAULT_ARENA_* together.
     */
    uint32_t flags;
    /**
     * How faults arrive: SOFTFAULT_DELIVERY_*.
     */
    uint32_t delivery;
    /**
     * What SOFTFAULT_DELIVERY_SEGV exposes at once: a power of two, 4 KiB to 2 MiB; default 2 MiB.
     */
    uint64_t granule_bytes;
    /**
     * The arena's first address, a multiple of 2 MiB, where nothing may be mapped yet. Default: the kernel chooses.
     */
    void *address;
} softfault_arena_options;

/**
 * Where an object's pages come from and go to. NULL means the default.
 *
 * Functions return 0 or a negative errno: -ENODATA where the store ends before the object does, -EBADMSG for content that
 * failed its check (the page is poisoned, never shown), -ENOMEM, -EOPNOTSUPP, else an error of input or output.
 *
 * They run on filler threads, where they may sleep, allocate and lock, but wait for nothing that a faulting thread may
 * hold, and touch no arena. With SOFTFAULT_STORE_HANDLER_SAFE they run in the faulting thread under the rules of
 * softfault_vm_operations. None may unwind: a C++ exception that leaves one ends the process. They may run in several
 * threads at once.
 */
typedef struct softfault_store_operations {
    /**
     * sizeof(struct softfault_store_operations).
     */
    size_t size;
    /**
     * SOFTFAULT_STORE_* together.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * Fills the len bytes at dst with the object's from pos on: whole pages, except at the object's end. What was there
     * before is unspecified. page is for softfault_page_fill_from(). Must not be NULL.
     */
    int (*read)(void *ctx, uint64_t pos, void *dst, size_t len, struct softfault_page *page);
    /**
     * Takes the len bytes at src as the object's from pos on; not durable before flush. Other threads may store to them
     * meanwhile (they are written again then), unless SOFTFAULT_STORE_STABLE. Default: -EOPNOTSUPP.
     */
    int (*write)(void *ctx, uint64_t pos, const void *src, size_t len, const struct softfault_pages *pages);
    /**
     * Makes durable what write, punch and set_len were given before the call. Default: nothing to do.
     */
    int (*flush)(void *ctx);
    /**
     * Makes the range read as zeros. Default: -EOPNOTSUPP, upon which zeros are written.
     */
    int (*punch)(void *ctx, uint64_t pos, uint64_t len);
    /**
     * The object's end moved. Default: nothing to do.
     */
    int (*set_len)(void *ctx, uint64_t len_bytes);
    /**
     * Makes the blocks of a range durable before the first store to them (SOFTFAULT_OBJECT_DSYNC). Default: nothing to do.
     */
    int (*dsync)(void *ctx, uint64_t pos, uint64_t len);
    /**
     * The object is gone: nothing is called with ctx any more. Called by whoever held it last.
     */
    void (*drop)(void *ctx);
    /**
     * What reads are aligned to, in bytes: read is asked for whole blocks of as many, from a multiple of that on; only the
     * last block is cut where the object ends. For content that is made by blocks: frames that are compressed or encrypted.
     * A power of two, 4096 to 2 MiB; 0 is 4096. What is missing of a block of which some is cached costs a read of the
     * whole, and a block that fails, fails for all pages of it that were asked for. Writes come by pages as before.
     */
    uint64_t read_align_bytes;
} softfault_store_operations;

/**
 * The vtable of an object, as struct vm_operations_struct: what its faults go through. NULL means the default.
 *
 * All but open, close and drop run in the faulting thread, inside a signal handler: no allocation, no lock, no thread-
 * local, no function outside signal-safety(7), no access to an arena; at most 1 KiB of stack; errno as it was. None may
 * unwind: a C++ exception that leaves one ends the process. They may run in several threads at once.
 */
typedef struct softfault_vm_operations {
    /**
     * sizeof(struct softfault_vm_operations).
     */
    size_t size;
    /**
     * Finds or makes the touched page: returns what softfault_filemap_fill_with() or softfault_filemap_fault() returned,
     * or SOFTFAULT_VM_FAULT_SIGBUS, _OOM, _HWPOISON, _SIGSEGV to refuse, or _RETRY to be asked again.
     *
     * Default: softfault_shmem_fault().
     */
    uint32_t (*fault)(void *ctx, struct softfault_vm_fault *vmf);
    /**
     * Maps cached neighbours: returns what softfault_filemap_map_pages() returned. Default: none are mapped.
     */
    uint32_t (*map_pages)(void *ctx, struct softfault_vm_fault *vmf, uint64_t start, uint64_t end);
    /**
     * Hands complete extents to the kernel: returns what softfault_shmem_huge_fault() returned. Default: stays trapped.
     */
    uint32_t (*huge_fault)(void *ctx, struct softfault_vm_fault *vmf);
    /**
     * A clean page is about to be stored to through a shared mapping: 0, or an error bit to refuse. Default: not asked,
     * and stores are noted silently.
     */
    uint32_t (*page_mkwrite)(void *ctx, struct softfault_vm_fault *vmf);
    /**
     * Whether a minor delegate is to be asked about the page before fault is called (SOFTFAULT_ARENA_LOOKUP_FIRST);
     * cached says what the default answers.
     */
    bool (*get_folio_noalloc)(void *ctx, uint64_t pgoff, bool cached);
    /**
     * A mapping came to be. Called by who maps, splits or protects; may lock, but call no function on the object or arena.
     */
    void (*open)(void *ctx);
    /**
     * A mapping is gone. As open.
     */
    void (*close)(void *ctx);
    /**
     * The object is gone: nothing is called with ctx any more. Called by whoever held it last.
     */
    void (*drop)(void *ctx);
} softfault_vm_operations;

/**
 * Who is told of the first touch of each cached page of a range.
 */
typedef struct softfault_minor_operations {
    /**
     * sizeof(struct softfault_minor_operations).
     */
    size_t size;
    /**
     * SOFTFAULT_MINOR_HANDLER_SAFE, or 0: called on filler threads.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * Decides about one page: SOFTFAULT_MINOR_CONTINUE, _REFUSE or _DELAY. May look at it and rewrite it. Must not be
     * NULL, and must not unwind. Runs in several threads at once, but once for each page.
     */
    uint32_t (*minor_fault)(void *ctx, const struct softfault_minor_fault *fault);
    /**
     * The range is unmapped, wholly or in part: nothing is called with ctx any more once its last part is.
     */
    void (*drop)(void *ctx);
} softfault_minor_operations;

/**
 * The latency of one stage of a fault, from a sample of the faults.
 */
typedef struct softfault_stage_latency {
    /**
     * Observations.
     */
    uint64_t count;
    /**
     * Median, within a factor of two.
     */
    uint64_t p50_ns;
    /**
     * 99th percentile, likewise.
     */
    uint64_t p99_ns;
} softfault_stage_latency;

/**
 * A range of memory that an image is of, and where its pages are in the image.
 */
typedef struct softfault_region {
    /**
     * What it is called, unique in the image; NULL: nothing. Where a call fills the structure it is NULL, and the call has a
     * buffer for the name.
     */
    const char *name;
    /**
     * Where it was.
     */
    uint64_t address;
    /**
     * Where it begins in the image, in bytes.
     */
    uint64_t offset;
    /**
     * Its length in bytes.
     */
    uint64_t len_bytes;
    /**
     * What was permitted there: the bits of mmap(2), 1 to read, 2 to write, 4 to execute.
     */
    uint32_t prot;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} softfault_region;

/**
 * Options of softfault_image_open(). Fields that are 0 have their defaults.
 */
typedef struct softfault_image_options {
    /**
     * sizeof(struct softfault_image_options).
     */
    size_t size;
    /**
     * How often bytes are verified: SOFTFAULT_INTEGRITY_*.
     */
    uint32_t integrity;
    /**
     * What the path names: SOFTFAULT_IMAGE_FORMAT_*.
     */
    uint32_t format;
    /**
     * Sparse files over a raw image, the oldest first: their data replaces what is below.
     */
    const char *const *diffs;
    /**
     * How many there are.
     */
    size_t nr_diffs;
    /**
     * Regions instead of those that the image says, in the order of their offsets: of a raw image, where it was.
     */
    const struct softfault_region *regions;
    /**
     * How many there are; 0: those that the image says.
     */
    size_t nr_regions;
    /**
     * With SOFTFAULT_IMAGE_FORMAT_CRIU: the process.
     */
    uint32_t process_id;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} softfault_image_options;

/**
 * What an image is.
 */
typedef struct softfault_image_properties {
    /**
     * sizeof(struct softfault_image_properties), which the caller sets.
     */
    size_t size;
    /**
     * Its length in bytes.
     */
    uint64_t len_bytes;
    /**
     * How many regions it has: softfault_image_region().
     */
    size_t nr_regions;
    /**
     * How many keys it has: softfault_image_key_name().
     */
    size_t nr_keys;
    /**
     * How often bytes are verified: SOFTFAULT_INTEGRITY_*.
     */
    uint32_t integrity;
    /**
     * SOFTFAULT_IMAGE_HAS_* together.
     */
    uint32_t flags;
    /**
     * The digest of its file, which covers everything in it.
     */
    struct softfault_digest file_digest;
    /**
     * The digest of the memory, whatever file it lies in.
     */
    struct softfault_digest content_digest;
} softfault_image_properties;

/**
 * How a new image stores its pages. Fields that are 0 have their defaults.
 */
typedef struct softfault_image_writer_options {
    /**
     * sizeof(struct softfault_image_writer_options).
     */
    size_t size;
    /**
     * SOFTFAULT_WRITER_* together.
     */
    uint32_t flags;
    /**
     * SOFTFAULT_CODEC_*.
     */
    uint32_t codec;
    /**
     * Of SOFTFAULT_CODEC_ZSTD: 1 (fast) to 22 (small); default 3.
     */
    int32_t level;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * How many bytes are compressed together: whole pages, 2 MiB at most; default 64 KiB.
     */
    size_t frame_bytes;
    /**
     * The image whose pages are shared; NULL: none.
     */
    struct softfault_image *parent;
} softfault_image_writer_options;

/**
 * Pages that a session is given when it is restored, instead of the image's: entropy, a generation number, a mailbox.
 */
typedef struct softfault_overlay {
    /**
     * What it is called.
     */
    const char *name;
    /**
     * The image's byte from which on it lies.
     */
    uint64_t offset;
    /**
     * The bytes, read during the call only: whole pages, of one region that may be written.
     */
    const void *bytes;
    /**
     * How many there are.
     */
    size_t len_bytes;
} softfault_overlay;

/**
 * Options of softfault_restore(). Fields that are 0 have their defaults.
 */
typedef struct softfault_restore_options {
    /**
     * sizeof(struct softfault_restore_options).
     */
    size_t size;
    /**
     * SOFTFAULT_RESTORE_* together.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * Options of the session's arenas; NULL: defaults. The address must be NULL: it is the session's.
     */
    const struct softfault_arena_options *arena;
    /**
     * Pages that the session is given instead of the image's.
     */
    const struct softfault_overlay *overlays;
    /**
     * How many there are.
     */
    size_t nr_overlays;
    /**
     * Records which pages are touched first, in windows of this length, until softfault_session_mark(); 0: does not. A session that
     * records has pages of its own, and each touch of a page is a fault.
     */
    uint64_t record_window_ns;
    /**
     * Reads the pages of a working set before they are touched, in the background; NULL: none.
     */
    struct softfault_working_set *replay;
} softfault_restore_options;

/**
 * How far a session has come.
 */
typedef struct softfault_progress {
    /**
     * sizeof(struct softfault_progress), which the caller sets.
     */
    size_t size;
    /**
     * Pages of all regions.
     */
    uint64_t pages;
    /**
     * Pages of the image that are cached, for whichever session.
     */
    uint64_t cached;
    /**
     * Extents (2 MiB) that the kernel serves by itself.
     */
    uint64_t native_extents;
    /**
     * Extents that are mapped from the image's file itself.
     */
    uint64_t direct_extents;
    /**
     * Pages that a replay has read.
     */
    uint64_t replayed;
    /**
     * 1: the replay has read what it was to, or found no room for more, or there is none.
     */
    uint32_t replay_ended;
    /**
     * 0.
     */
    uint32_t reserved;
} softfault_progress;

/**
 * What softfault_session_complete() has reached.
 */
typedef struct softfault_completion {
    /**
     * sizeof(struct softfault_completion), which the caller sets.
     */
    size_t size;
    /**
     * Bytes that are resident for the session: all of its regions.
     */
    uint64_t resident_bytes;
    /**
     * Extents (2 MiB) that the kernel serves by itself.
     */
    uint64_t native_extents;
    /**
     * Extents, or parts of such, whose pages are mapped but still ours.
     */
    uint64_t trapped_extents;
    /**
     * Extents that are mapped from the image's file itself; not among the resident bytes.
     */
    uint64_t direct_extents;
} softfault_completion;

/**
 * Bytes of an arena that a capture leaves out, rounded outwards to pages: they are zero in the image.
 */
typedef struct softfault_excluded {
    /**
     * Which arena.
     */
    struct softfault_arena *arena;
    /**
     * Where they begin in it.
     */
    size_t offset;
    /**
     * How many there are.
     */
    size_t len_bytes;
} softfault_excluded;

/**
 * Options of softfault_capture_begin(). Fields that are 0 have their defaults.
 */
typedef struct softfault_capture_options {
    /**
     * sizeof(struct softfault_capture_options).
     */
    size_t size;
    /**
     * SOFTFAULT_CAPTURE_* together.
     */
    uint32_t flags;
    /**
     * How the image stores its pages: SOFTFAULT_CODEC_*.
     */
    uint32_t codec;
    /**
     * Of SOFTFAULT_CODEC_ZSTD: 1 (fast) to 22 (small); default 3.
     */
    int32_t level;
    /**
     * Must be 0.
     */
    uint32_t reserved;
    /**
     * An image in the same folder: only what differs from it is written, and it is needed from then on. NULL: none.
     */
    struct softfault_image *parent;
    /**
     * What is left out: secrets, what is made anew.
     */
    const struct softfault_excluded *excluded;
    /**
     * How many there are.
     */
    size_t nr_excluded;
    /**
     * How many bytes of memory old contents of pages may take that are stored to before they are written; when it is full they go to a
     * file beside the image. Default: an eighth of what is captured, 256 KiB to 64 MiB.
     */
    size_t budget_bytes;
} softfault_capture_options;

/**
 * How far a capture is.
 */
typedef struct softfault_capture_state {
    /**
     * sizeof(struct softfault_capture_state), which the caller sets.
     */
    size_t size;
    /**
     * Pages of the image that are written.
     */
    uint64_t done_pages;
    /**
     * Pages of the image.
     */
    uint64_t nr_pages;
    /**
     * Pages whose old bytes went to the file beside the image.
     */
    uint64_t spilled_pages;
    /**
     * Pages that were protected while stores waited.
     */
    uint64_t last_pages;
    /**
     * How long stores waited for the cut, at most.
     */
    uint64_t held_ns;
} softfault_capture_state;

/**
 * What a working set is.
 */
typedef struct softfault_working_set_properties {
    /**
     * sizeof(struct softfault_working_set_properties), which the caller sets.
     */
    size_t size;
    /**
     * Pages that were touched.
     */
    uint64_t nr_pages;
    /**
     * Pages of the image that it is of.
     */
    uint64_t image_pages;
    /**
     * How many windows of time it has: softfault_working_set_window().
     */
    size_t nr_windows;
    /**
     * How many neighbouring pages count as one: 1 where it was recorded exactly.
     */
    uint32_t resolution_pages;
    /**
     * How many recordings it was made of.
     */
    uint32_t recordings;
    /**
     * The digest of the contents that it is of.
     */
    struct softfault_digest content_digest;
} softfault_working_set_properties;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Copies the words of this thread's last failed call into buf, as snprintf(3): at most len bytes, the last one NUL. The
 * words name the call, the argument or the range, and why.
 *
 * Returns the full length without the NUL; 0 if no call has failed. A call that succeeds leaves the words as they are.
 * buf may be NULL if len is 0.
 *
 * Context: program, filler. Thread-safe: each thread has its own.
 *
 * The caller promises:
 * buf has room for len bytes.
 */
size_t softfault_last_error(char *buf, size_t len);

/**
 * Returns the kind of this thread's last failure: SOFTFAULT_ERROR_*. Several kinds may share an errno.
 *
 * Context: program, filler.
 */
uint32_t softfault_last_error_kind(void);

/**
 * Returns the SOFTFAULT_VM_FAULT_* bits of this thread's last failure, if that was SOFTFAULT_ERROR_FAULT, else 0.
 *
 * Context: program, filler.
 */
uint32_t softfault_last_fault_reason(void);

/**
 * Writes why this thread's last failure could not have, or write, a page: its cause, the store's errno, and both offsets.
 *
 * Errors: -ENOENT: the last failure was not SOFTFAULT_ERROR_FAULT, _WRITEBACK or _FLUSH. -EINVAL: out is NULL. This call is
 * not itself the last failure.
 *
 * Context: program, filler.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_last_fault(struct softfault_fault *out);

/**
 * Writes what was wrong with an image, if this thread's last failure was SOFTFAULT_ERROR_IMAGE.
 *
 * Errors: -ENOENT: it was not. -EINVAL: out is NULL. This call is not itself the last failure.
 *
 * Context: program, filler.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_last_image_failure(struct softfault_image_failure *out);

/**
 * Copies the label of the object that this thread's last failure was about, as softfault_last_error(): a file's path, or
 * what softfault_object_options.label said; of SOFTFAULT_ERROR_IMAGE the path of the image's file.
 *
 * Returns the full length without the NUL; 0 if the failure was about no object.
 *
 * Context: program, filler.
 *
 * The caller promises:
 * buf has room for len bytes.
 */
size_t softfault_last_object(char *buf,
                             size_t len);

/**
 * Copies up to nr of the object ranges whose writes were lost, if this thread's last failure was SOFTFAULT_ERROR_LOST.
 *
 * Returns how many there are in all. ranges may be NULL if nr is 0. See softfault_object_lost().
 *
 * Context: program, filler.
 *
 * The caller promises:
 * ranges has room for nr elements.
 */
size_t softfault_last_lost_ranges(struct softfault_range *ranges, size_t nr);

/**
 * Returns the version of the ABI that the library serves, at least SOFTFAULT_ABI_VERSION of the header that the program
 * was compiled with. Versions only add.
 *
 * Context: program, filler, handler.
 */
uint32_t softfault_abi_version(void);

/**
 * Returns the library's version, "0.1.0" say. The string is the library's, and stays.
 *
 * Context: program, filler, handler.
 */
const char *softfault_version(void);

/**
 * Writes the names of SOFTFAULT_VM_FAULT_* bits, "MAJOR|RETRY" say, as softfault_last_error() does; full may be NULL.
 *
 * Errors: -EINVAL: no buffer.
 *
 * Context: program, filler.
 *
 * The caller promises:
 * buf has room for len bytes.
 */
int softfault_fault_reason_text(uint32_t reason, char *buf, size_t len, size_t *full);

/**
 * Makes a runtime: installs handlers for SIGBUS and SIGSEGV (in front of who was there, who gets what is not about an
 * arena), and starts helper threads. options may be NULL: all defaults.
 *
 * The handle is the caller's: softfault_runtime_free(). A process may have several runtimes, each with its own cache.
 *
 * Errors: -EINVAL, -E2BIG, -ENOMEM, -EACCES in a forked child, or what opening the swap file said.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * options, if not NULL, has the size that it says; swap_path, if not NULL, is a string. out may be written.
 */
int softfault_runtime_new(const struct softfault_runtime_options *options, struct softfault_runtime **out);

/**
 * Frees the handle. The runtime ends with the last of its objects and arenas; the last runtime of the process puts the
 * former signal handlers back.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_runtime_free(struct softfault_runtime *runtime);

/**
 * Changes the limit of the cache. Pages above a lower one leave in the background.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 */
int softfault_runtime_set_cache_limit(struct softfault_runtime *runtime, uint64_t bytes);

/**
 * Writes everything that was stored before the call to the files and other stores of all objects, as exit(3) does, and
 * without making it durable. Writes whether that was done within timeout_ns; done may be NULL. Errors are counted
 * ("writeback_errors"), and told by softfault_object_sync().
 *
 * For programs that end without exit(3): before _exit(2), or Go's os.Exit.
 *
 * Errors: -EINVAL for NULL, -EBADF, -EACCES in a forked child.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * done may be written.
 */
int softfault_runtime_write_back(struct softfault_runtime *runtime, uint64_t timeout_ns, bool *done);

/**
 * Writes what arenas get that do not ask for a delivery: SOFTFAULT_DELIVERY_*.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * mode may be written.
 */
int softfault_runtime_delivery(struct softfault_runtime *runtime, uint32_t *mode);

/**
 * Writes what arenas get that ask for SOFTFAULT_ARENA_KERNEL_ACCESS: SOFTFAULT_DELIVERY_*.
 *
 * Errors: -EOPNOTSUPP: no delivery that can be had here serves system calls. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * mode may be written.
 */
int softfault_runtime_kernel_access_delivery(struct softfault_runtime *runtime, uint32_t *mode);

/**
 * Writes whether a delivery can be had here, and how that is known, as text. available, buf and full may be left out
 * (NULL, with len 0).
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * available may be written, buf has room for len bytes, full may be written.
 */
int softfault_runtime_delivery_finding(struct softfault_runtime *runtime,
                                       uint32_t mode,
                                       bool *available,
                                       char *buf,
                                       size_t len,
                                       size_t *full);

/**
 * Writes what was found out about every delivery, as lines for people. full may be NULL.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes, full may be written.
 */
int softfault_runtime_delivery_report(struct softfault_runtime *runtime, char *buf, size_t len, size_t *full);

/**
 * Looks for threads that could not take SIGBUS or SIGSEGV, and would be killed where they touch an arena. Writes how many
 * there are, and one line for each ("tid (name): why"; tid 0 is the whole process). buf and full may be left out.
 *
 * Errors: -EINVAL, -EBADF, or what reading /proc said.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * offenders may be written, buf has room for len bytes, full may be written.
 */
int softfault_runtime_audit_threads(struct softfault_runtime *runtime,
                                    size_t *offenders,
                                    char *buf,
                                    size_t len,
                                    size_t *full);

/**
 * Writes how many threads made the runtime, or mapped something where faults arrive by signals, while they blocked SIGBUS or
 * SIGSEGV, and one line for each ("tid (name): why"): they end the process where they touch an arena, unless they unblock the
 * signals before. buf and full may be left out.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * warnings may be written, buf has room for len bytes, full may be written.
 */
int softfault_runtime_warnings(struct softfault_runtime *runtime,
                               size_t *warnings,
                               char *buf,
                               size_t len,
                               size_t *full);

/**
 * Puts softfault's signal handlers back in front, where a language runtime or a crash reporter has installed its own after
 * softfault_runtime_new(). The newcomer then gets what is not about an arena.
 *
 * Errors: -EINVAL for NULL, -EBADF, or what rt_sigaction said.
 *
 * Context: program. Thread-safe.
 */
int softfault_reinstall_handlers(struct softfault_runtime *runtime);

/**
 * Measures how long a touch takes to reach the handler, into stage "delivery" of the statistics. Writes how many touches
 * were measured; measured may be NULL.
 *
 * Errors: -EINVAL, -EBADF, -EOPNOTSUPP for a delivery that cannot be had, -ENOMEM.
 *
 * Context: program.
 *
 * The caller promises:
 * measured may be written.
 */
int softfault_runtime_measure_delivery(struct softfault_runtime *runtime,
                                       uint32_t mode,
                                       uint64_t *measured);

/**
 * Copies the last nr failures, oldest first: of stores, whoever was told, and touches that became signals. all (may be
 * NULL) gets how many are kept: 64 at most. failures may be NULL if nr is 0.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe; nobody is stopped.
 *
 * The caller promises:
 * failures has room for nr elements; all may be written.
 */
int softfault_runtime_recent_failures(struct softfault_runtime *runtime,
                                      struct softfault_failure *failures,
                                      size_t nr,
                                      size_t *all);

/**
 * Opens a file or a block device as an object; its length is what it is now. options may be NULL: read-only, all defaults.
 * A file that is open as an object already, by whatever name and in whatever runtime of the process, is that object, with the
 * rights that are asked for here; other options must be the same.
 *
 * The handle is the caller's: softfault_object_free(). The object keeps the runtime that opened it first. The process's locks
 * on the file (fcntl(2)) stay.
 *
 * Errors: what open(2) said; -ENODEV for what has no bytes that stay (a directory, a pipe, a file of procfs); -EBUSY where it is
 * open with other options; -EMFILE; -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; options, if not NULL, has the size that it says; out may be written.
 */
int softfault_object_open(struct softfault_runtime *runtime,
                          const char *path,
                          const struct softfault_object_options *options,
                          struct softfault_object **out);

/**
 * As softfault_object_open(), of a file that is open already: for reading and writing if the object is to be written. The
 * descriptor stays the caller's, and may be closed afterwards.
 *
 * Errors: -EBADF for a descriptor that is none, too; -EACCES for one that does not permit what is asked; as
 * softfault_object_open().
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * options, if not NULL, has the size that it says; out may be written.
 */
int softfault_object_from_fd(struct softfault_runtime *runtime,
                             int fd,
                             const struct softfault_object_options *options,
                             struct softfault_object **out);

/**
 * Copies what the object is called in errors, and ends it with a NUL: what softfault_object_options.label said, or else the path of
 * a file, and a number of others. A longer one is cut. length (may be NULL) gets the full length without the NUL.
 *
 * Errors: -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; length, if not NULL, may be written.
 */
int softfault_object_label(struct softfault_object *object,
                           char *buf,
                           size_t len,
                           size_t *length);

/**
 * Makes len_bytes of anonymous memory, which begins as zeros, and may be written. options may be NULL.
 *
 * Errors: -EINVAL, -E2BIG, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * options, if not NULL, has the size that it says; out may be written.
 */
int softfault_object_anonymous(struct softfault_runtime *runtime,
                               uint64_t len_bytes,
                               const struct softfault_object_options *options,
                               struct softfault_object **out);

/**
 * Frees the handle. The object ends with its last mapping, pin or hold: what is dirty is written back then, but nobody
 * hears of errors; softfault_object_sync_all() before says them.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_free(struct softfault_object *object);

/**
 * Writes the end of the object, in bytes.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * len_bytes may be written.
 */
int softfault_object_len(struct softfault_object *object, uint64_t *len_bytes);

/**
 * Sets the end of the object, up to the max_len_bytes it was made with. Pages past a lower end are dropped: touching them
 * is SIGBUS from then on.
 *
 * Errors: -EINVAL past the maximum, -EACCES while a page past the end stays pinned, the store's error, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_set_len(struct softfault_object *object,
                             uint64_t len_bytes);

/**
 * Takes the file's end for the object's, where others have appended to the file or cut it; len_bytes (may be NULL) gets it.
 * The file is not changed. What lies behind a lower end is dropped: touching it is SIGBUS from then on.
 *
 * Errors: -EACCES: it is no file, or exclusive, or a page at the end stays pinned. -EINVAL: the file is longer than the maximum.
 * The file's error, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * len_bytes may be written, or is NULL.
 */
int softfault_object_follow_len(struct softfault_object *object,
                                uint64_t *len_bytes);

/**
 * Reads bytes through the cache, without a fault. Reads past the end are short; read_bytes (may be NULL) gets how many
 * were read. buf may lie in an arena.
 *
 * Errors: SOFTFAULT_ERROR_FAULT naming the first byte that could not be had; those before it were read. -EINVAL, -EBADF.
 *
 * Context: program. In filler callbacks only of objects whose own store is handler-safe. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes, which nobody else uses meanwhile; read_bytes may be written.
 */
int softfault_object_read_at(struct softfault_object *object,
                             uint64_t offset,
                             void *buf,
                             size_t len,
                             size_t *read_bytes);

/**
 * Writes bytes through the cache, without a fault. Does not grow the object: writes past the end are short;
 * written_bytes (may be NULL) gets how many were written. buf may lie in an arena.
 *
 * Errors: -EACCES on an object that is not writable, SOFTFAULT_ERROR_FAULT, -EINVAL, -EBADF.
 *
 * Context: as softfault_object_read_at(). Thread-safe.
 *
 * The caller promises:
 * len bytes of buf may be read, and nobody changes them meanwhile; written_bytes may be written.
 */
int softfault_object_write_at(struct softfault_object *object,
                              uint64_t offset,
                              const void *buf,
                              size_t len,
                              size_t *written_bytes);

/**
 * Reads the range into the cache, and waits for it.
 *
 * Errors: SOFTFAULT_ERROR_FAULT naming the first byte that could not be had. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_populate(struct softfault_object *object, uint64_t offset, uint64_t len);

/**
 * Writes how many of the object's pages are cached.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * pages may be written.
 */
int softfault_object_cached_pages(struct softfault_object *object, uint64_t *pages);

/**
 * Writes whether the page of that byte is cached: readable without asking the store.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * cached may be written.
 */
int softfault_object_is_cached(struct softfault_object *object, uint64_t offset, bool *cached);

/**
 * Changes the object's own limit. Pages above a lower one leave as others come.
 *
 * Errors: -EACCES: the object was made without a limit of its own. -EINVAL for NULL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 */
int softfault_object_set_cache_limit(struct softfault_object *object, uint64_t bytes);

/**
 * Says how the range will be used, or what is to be done with it now: SOFTFAULT_ADVICE_*. NORMAL, SEQUENTIAL and RANDOM
 * hold for the whole object.
 *
 * Errors: -EACCES for POPULATE_WRITE on an object that is not writable. SOFTFAULT_ERROR_FAULT. -EBUSY for DONTNEED and
 * COLD over a pin. -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_advise(struct softfault_object *object, uint64_t offset, uint64_t len, uint32_t advice);

/**
 * Drops clean, unpinned pages of the range from the cache; evicted (may be NULL) gets how many went. Pages that were
 * written since they were last written back stay: softfault_object_sync() first.
 *
 * Errors: -ENOMEM: an extent cannot be taken back. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * evicted may be written.
 */
int softfault_object_evict(struct softfault_object *object, uint64_t offset, uint64_t len, uint64_t *evicted);

/**
 * Makes the complete 2 MiB of the range huge pages, now; collapsed (may be NULL) gets how many are huge then. Needs
 * SOFTFAULT_OBJECT_HUGE_PAGES; what cannot be is left as it is.
 *
 * Errors: -EACCES in a forked child. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * collapsed may be written.
 */
int softfault_object_collapse(struct softfault_object *object, uint64_t offset, uint64_t len, uint64_t *collapsed);

/**
 * Forgets that pages of the range were poisoned: the next touch asks the store anew. healed (may be NULL) gets how many
 * were. Touches heal pages by themselves; this is for system calls on monitor arenas.
 *
 * Errors: -EINVAL, -EBADF, or what unpoisoning said.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * healed may be written.
 */
int softfault_object_heal(struct softfault_object *object, uint64_t offset, uint64_t len, uint64_t *healed);

/**
 * Drops what is cached of the range, because the store's content was changed by somebody else. dropped and kept (may be
 * NULL) get the pages that went, and that stayed because they were written here, or are pinned.
 *
 * Errors: -ENOMEM: an extent cannot be taken back. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * dropped and kept may be written.
 */
int softfault_object_invalidate(struct softfault_object *object,
                                uint64_t offset,
                                uint64_t len,
                                uint64_t *dropped,
                                uint64_t *kept);

/**
 * Makes the range read as zeros, in the cache and in the store, and gives its storage back where the store can.
 *
 * Errors: -EACCES: the object is not writable, or a page stays pinned. The store's error. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_punch_hole(struct softfault_object *object, uint64_t offset, uint64_t len);

/**
 * Gives the store every byte of the range that was written before the call, and does not flush it: other readers of a file
 * see the bytes, and a crash may still take them.
 *
 * Errors: SOFTFAULT_ERROR_WRITEBACK. -EBUSY: a page of the range is held and dirty; the others were written. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_write_back(struct softfault_object *object,
                                uint64_t offset,
                                uint64_t len);

/**
 * Makes durable every byte of the range that was written before the call, through whatever mapping or call.
 *
 * Errors: SOFTFAULT_ERROR_WRITEBACK and _FLUSH: nothing is promised, and the next call tries again.
 * SOFTFAULT_ERROR_LOST: writes are gone that a failed flush took away; so says every call over them until they are
 * written again, or softfault_object_forget_lost(). SOFTFAULT_ERROR_HELD. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_sync(struct softfault_object *object, uint64_t offset, uint64_t len);

/**
 * Makes everything durable that was written before the call. Errors: as softfault_object_sync().
 *
 * Context: program. Thread-safe.
 */
int softfault_object_sync_all(struct softfault_object *object);

/**
 * Makes everything that was written before the call, and is not held, durable before anything that is written after it.
 * Errors: as softfault_object_sync(), but for SOFTFAULT_ERROR_HELD.
 *
 * Context: program. Thread-safe.
 */
int softfault_object_barrier(struct softfault_object *object);

/**
 * Keeps the pages of the range from being written back until the hold is freed: a write-ahead log must be durable before
 * the pages it describes. Held dirty pages count against the cache's limit.
 *
 * The handle is the caller's: softfault_held_free(). It keeps the object.
 *
 * Errors: -EBUSY: a page is held already. -EACCES on exclusive objects. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_object_hold_dirty(struct softfault_object *object,
                                uint64_t offset,
                                uint64_t len,
                                struct softfault_held **out);

/**
 * Writes the bytes that are held: whole pages.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * range may be written.
 */
int softfault_held_range(struct softfault_held *held, struct softfault_range *range);

/**
 * Lets the pages be written back again.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_held_free(struct softfault_held *held);

/**
 * Copies up to nr of the ranges whose writes failed flushes took away; total (may be NULL) gets how many there are.
 * ranges may be NULL if nr is 0.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * ranges has room for nr elements; total may be written.
 */
int softfault_object_lost(struct softfault_object *object, struct softfault_range *ranges, size_t nr, size_t *total);

/**
 * Accepts the loss of what was written to the range: softfault_object_sync() does not report it any more.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 */
int softfault_object_forget_lost(struct softfault_object *object, uint64_t offset, uint64_t len);

/**
 * Opens a file, reserves an arena that is as long, and maps it whole and shared, from the arena's offset 0 on: what mmap(2)
 * does. options are the object's, and may be NULL: to be read; with SOFTFAULT_OBJECT_WRITABLE also to be written.
 *
 * Both handles are the caller's: softfault_arena_free(), softfault_object_free(), in either order. softfault_arena_base() is the
 * address, softfault_object_len() the length.
 *
 * Errors: as softfault_object_open(), softfault_arena_new() and softfault_arena_map(); nothing is made then.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; options, if not NULL, has the size that it says; arena and object may be written.
 */
int softfault_arena_map_file(struct softfault_runtime *runtime,
                             const char *path,
                             const struct softfault_object_options *options,
                             struct softfault_arena **arena,
                             struct softfault_object **object);

/**
 * Reserves an arena that is as long as the object, and maps it whole and shared, from the arena's offset 0 on; to be written, if
 * the handle permits that. The handle is the caller's: softfault_arena_free().
 *
 * Errors: as softfault_arena_new() and softfault_arena_map(); nothing is made then.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * arena may be written.
 */
int softfault_arena_map_object(struct softfault_runtime *runtime,
                               struct softfault_object *object,
                               struct softfault_arena **arena);

/**
 * Reserves len_bytes of address space, rounded up to 2 MiB. options may be NULL.
 *
 * The handle is the caller's: softfault_arena_free(). The arena keeps its runtime, and what is mapped in it.
 *
 * Arenas with SOFTFAULT_DELIVERY_IN_THREAD or _SEGV hold plain data: a system call that touches a page which is not
 * resident fails with EFAULT. Pin such ranges, use softfault_arena_read_at() and _write_at(), or ask for
 * SOFTFAULT_ARENA_KERNEL_ACCESS.
 *
 * Errors: -EOPNOTSUPP: the delivery cannot be had. -EEXIST: something is mapped at the address asked for. -EINVAL, -E2BIG,
 * -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * options, if not NULL, has the size that it says; out may be written.
 */
int softfault_arena_new(struct softfault_runtime *runtime,
                        size_t len_bytes,
                        const struct softfault_arena_options *options,
                        struct softfault_arena **out);

/**
 * Frees the handle. The arena ends with its last pin: everything in it is unmapped, and its addresses are used for other
 * things.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_free(struct softfault_arena *arena);

/**
 * Writes the arena's first address. It is the arena's as long as the arena lives; what may be read or written there is
 * what is mapped.
 *
 * Calls that change mappings (mprotect, mmap, munmap, mremap, madvise) are softfault's alone there. With
 * SOFTFAULT_DELIVERY_SEGV an mprotect(2) of the program's shows zeros where nothing is cached: softfault_stats_read() and
 * softfault_runtime_audit_threads() find it afterwards, and close what was opened. Use softfault_arena_protect().
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * base may be written.
 */
int softfault_arena_base(struct softfault_arena *arena,
                         void **base);

/**
 * Writes the arena's length in bytes: what was asked for, rounded up to 2 MiB.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * len_bytes may be written.
 */
int softfault_arena_len(struct softfault_arena *arena, size_t *len_bytes);

/**
 * Writes how the arena's faults arrive: SOFTFAULT_DELIVERY_*, never AUTO.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * mode may be written.
 */
int softfault_arena_delivery(struct softfault_arena *arena, uint32_t *mode);

/**
 * Maps len bytes of object from object_offset on at offset. prot is SOFTFAULT_PROT_*, sharing SOFTFAULT_MAP_*.
 *
 * Offsets are multiples of 4096; the length is rounded up to one. Bytes past the object's end read as zero in its last
 * page, whole pages past it raise SIGBUS. Extents can be handed to the kernel where offset and object_offset agree modulo
 * 2 MiB.
 *
 * Errors: -EEXIST: something is mapped there. -EACCES: shared stores to an object that is not writable. -EINVAL, -EBADF,
 * -ENOMEM. Nothing is mapped then.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_map(struct softfault_arena *arena,
                        size_t offset,
                        struct softfault_object *object,
                        uint64_t object_offset,
                        size_t len,
                        uint32_t prot,
                        uint32_t sharing);

/**
 * Maps as softfault_arena_map(), instead of whatever is mapped in the range, or of nothing: mmap(2) with MAP_FIXED. A thread
 * that touches the range meanwhile sees what was there or what is there now; it waits for the moments in between. System
 * calls on it may fail with EFAULT meanwhile. What was written to private mappings in the range is gone.
 *
 * Errors: as softfault_arena_map(), but for -EEXIST; -EBUSY: a pin holds it; -EACCES: an exclusive object is mapped there,
 * or is to be. Nothing was changed then. -ENOMEM: the kernel had no room; nothing may be mapped in the range then.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_replace(struct softfault_arena *arena,
                            size_t offset,
                            struct softfault_object *object,
                            uint64_t object_offset,
                            size_t len,
                            uint32_t prot,
                            uint32_t sharing);

/**
 * Unmaps the range, splitting mappings at its ends. Touching it afterwards raises SIGSEGV. Waits for faults that are being
 * resolved in it.
 *
 * Errors: -EBUSY: a pin holds it. -EINVAL, -EBADF, -ENOMEM. Nothing is unmapped then.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_unmap(struct softfault_arena *arena,
                          size_t offset,
                          size_t len);

/**
 * Changes what the range permits (SOFTFAULT_PROT_*), splitting mappings at its ends.
 *
 * Errors: -ENXIO: not wholly mapped. -EBUSY: pinned. -EACCES, -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_protect(struct softfault_arena *arena, size_t offset, size_t len, uint32_t prot);

/**
 * Says how the range will be used, or what is to be done with it now: SOFTFAULT_ADVICE_*, as madvise(2).
 *
 * Errors: -ENXIO: not wholly mapped. -EBUSY and -EACCES as softfault_arena_zap(), for DONTNEED and COLD.
 * SOFTFAULT_ERROR_FAULT naming the first page that cannot be populated. -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_advise(struct softfault_arena *arena, size_t offset, size_t len, uint32_t advice);

/**
 * Makes the range resident, as touching each page (SOFTFAULT_ACCESS_*) would. It may be evicted again at any time.
 *
 * Errors: SOFTFAULT_ERROR_FAULT naming the first page that cannot be had; those before it are resident. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_fault_in(struct softfault_arena *arena,
                             size_t offset,
                             size_t len,
                             uint32_t access);

/**
 * Drops the page-table entries of shared mappings in the range; the pages stay cached.
 *
 * Errors: -EBUSY: pinned. -EACCES: a private mapping lies there, whose written pages would be lost. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_arena_zap(struct softfault_arena *arena, size_t offset, size_t len);

/**
 * Hands every fully cached extent (2 MiB) of the range to the kernel; promoted (may be NULL) gets how many went.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * promoted may be written.
 */
int softfault_arena_promote(struct softfault_arena *arena, size_t offset, size_t len, size_t *promoted);

/**
 * Takes the range's extents back from the kernel; demoted (may be NULL) gets how many came.
 *
 * Errors: -ENOMEM: the process has no mapping left to split. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * demoted may be written.
 */
int softfault_arena_demote(struct softfault_arena *arena, size_t offset, size_t len, size_t *demoted);

/**
 * Writes how many of the arena's extents are the kernel's now.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * nr may be written.
 */
int softfault_arena_native_extents(struct softfault_arena *arena, size_t *nr);

/**
 * Reads mapped bytes without a fault of the caller's: errors are results instead of signals. buf may lie in an arena.
 *
 * Errors: -ENXIO: not wholly mapped. -EACCES: the mapping does not permit loads. SOFTFAULT_ERROR_FAULT. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes, which nobody else uses meanwhile.
 */
int softfault_arena_read_at(struct softfault_arena *arena,
                            size_t offset,
                            void *buf,
                            size_t len);

/**
 * Writes mapped bytes without a fault of the caller's. buf may lie in an arena.
 *
 * Errors: -ENXIO, -EACCES: the mapping does not permit stores. SOFTFAULT_ERROR_FAULT. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * len bytes of buf may be read, and nobody changes them meanwhile.
 */
int softfault_arena_write_at(struct softfault_arena *arena, size_t offset, const void *buf, size_t len);

/**
 * Makes the range resident and keeps it so until the pin is freed: system calls, O_DIRECT, futexes and asynchronous I/O
 * may use it. Its pages are locked in memory, as mlock(2) does it, and count against RLIMIT_MEMLOCK. access is SOFTFAULT_ACCESS_*; pinned for writing, the range counts as dirty.
 *
 * The handle is the caller's: softfault_pin_free(). The pin keeps the arena.
 *
 * Errors: SOFTFAULT_ERROR_FAULT, -ENXIO: not wholly mapped, -EACCES, -EINVAL, -EBADF. SOFTFAULT_ERROR_LIMIT, -ENOMEM:
 * the limit forbids the lock, and there is swap.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_arena_pin(struct softfault_arena *arena,
                        size_t offset,
                        size_t len,
                        uint32_t access,
                        struct softfault_pin **out);

/**
 * Writes address and length of the pinned range; each may be NULL.
 *
 * Errors: -EINVAL for a NULL pin, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * addr and len_bytes may be written.
 */
int softfault_pin_data(struct softfault_pin *pin, void **addr, size_t *len_bytes);

/**
 * Tells whether the range is locked in memory. Where it is not, because RLIMIT_MEMLOCK did not permit it on a machine without
 * swap, MADV_PAGEOUT can still unmap pages of a shared mapping, and system calls on them fail with EFAULT.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * locked may be written.
 */
int softfault_pin_is_locked(struct softfault_pin *pin,
                            bool *locked);

/**
 * Lets the range go. Asynchronous I/O on it must be over.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_pin_free(struct softfault_pin *pin);

/**
 * Makes an object of len_bytes over a store of the program's. options may be NULL.
 *
 * operations are copied. ctx passes to the library, which calls operations->drop with it once, when nothing is called with
 * it any more: if the call fails, before it returns. Only where operations are refused themselves (NULL, their size) is
 * there no drop to call.
 *
 * Errors: -EINVAL: no read function; a read_align_bytes that is none; a deadline with SOFTFAULT_STORE_HANDLER_SAFE, or SOFTFAULT_OBJECT_DSYNC without.
 * -E2BIG, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * operations, and options if not NULL, have the sizes that they say; out may be written. The functions keep to what
 * softfault_store_operations says, and may be called with ctx from any thread until drop.
 */
int softfault_object_from_store(struct softfault_runtime *runtime,
                                uint64_t len_bytes,
                                const struct softfault_store_operations *operations,
                                void *ctx,
                                const struct softfault_object_options *options,
                                struct softfault_object **out);

/**
 * Makes an object of len_bytes over a vtable of the program's. options may be NULL.
 *
 * operations are copied. ctx passes to the library, which calls operations->drop with it once, when nothing is called with
 * it any more: if the call fails, before it returns. Only where operations are refused themselves (NULL, their size) is
 * there no drop to call.
 *
 * Errors: -EINVAL, -E2BIG, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * operations, and options if not NULL, have the sizes that they say; out may be written. The functions keep to what
 * softfault_vm_operations says, and may be called with ctx from any thread until drop.
 */
int softfault_object_from_vm_operations(struct softfault_runtime *runtime,
                                        uint64_t len_bytes,
                                        const struct softfault_vm_operations *operations,
                                        void *ctx,
                                        const struct softfault_object_options *options,
                                        struct softfault_object **out);

/**
 * Has a delegate told of the first touch of each cached page of the range, before it is mapped there. Pages that are
 * mapped already are unmapped first, so that nothing escapes. Unmapping the range ends it.
 *
 * operations are copied. ctx passes to the library, as with softfault_object_from_store(): drop is called when the last part
 * of the range is unmapped, or the call fails.
 *
 * Errors: -ENXIO: not wholly mapped. -EACCES: a private mapping, or a library without userfaultfd. -EINVAL, -E2BIG,
 * -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * operations have the size that they say. The functions keep to what softfault_minor_operations says, and may be called
 * with ctx from any thread until drop.
 */
int softfault_arena_delegate_minor(struct softfault_arena *arena,
                                   size_t offset,
                                   size_t len,
                                   const struct softfault_minor_operations *operations,
                                   void *ctx);

/**
 * Returns the number of the touched page in its object; 0 for NULL.
 *
 * Context: program, filler, handler: in the callback that got vmf.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
uint64_t softfault_vm_fault_pgoff(const struct softfault_vm_fault *vmf);

/**
 * Returns the exact address that was touched; 0 for NULL.
 *
 * Context: program, filler, handler: in the callback that got vmf.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
size_t softfault_vm_fault_address(const struct softfault_vm_fault *vmf);

/**
 * Returns how the access was made: SOFTFAULT_FAULT_FLAG_* together; 0 for NULL.
 *
 * Context: program, filler, handler: in the callback that got vmf.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
uint32_t softfault_vm_fault_flags(const struct softfault_vm_fault *vmf);

/**
 * Returns whether the access is a store that reaches the object: a shared mapping's; false for NULL.
 *
 * Context: program, filler, handler: in the callback that got vmf.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
bool softfault_vm_fault_is_shared_write(const struct softfault_vm_fault *vmf);

/**
 * Fills the touched page by a function that gets its bytes, unless it is cached already: several threads on one page
 * compute it once. What was in the bytes before is unspecified.
 *
 * Returns what the fault callback is to return: SOFTFAULT_VM_FAULT_LOCKED, or why not (RETRY, OOM, SIGBUS). SIGBUS, too,
 * where it is called in another callback than fault, or fill is NULL.
 *
 * Context: handler: in a fault callback. fill runs in the faulting thread, too, under the rules of the callback.
 *
 * The caller promises:
 * vmf is what the callback got. fill may be called with ctx and the len writable bytes at page, and does not unwind.
 */
uint32_t softfault_filemap_fill_with(struct softfault_vm_fault *vmf,
                                     void (*fill)(void *ctx, void *page, size_t len),
                                     void *ctx);

/**
 * Finds the touched page in the cache, or begins to read it from the object's store (zeros, for an object over
 * softfault_vm_operations): the kernel's filemap_fault.
 *
 * Returns what the fault callback is to return; SIGBUS where it is called in another one.
 *
 * Context: handler: in a fault callback.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
uint32_t softfault_filemap_fault(struct softfault_vm_fault *vmf);

/**
 * As softfault_filemap_fault(), and asks a minor delegate before (SOFTFAULT_VM_FAULT_UFFD_MINOR): what objects of files
 * and anonymous memory do, and an object over softfault_vm_operations without a fault callback.
 *
 * Context: handler: in a fault callback.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
uint32_t softfault_shmem_fault(struct softfault_vm_fault *vmf);

/**
 * Maps those of pages start to end (not included) that are cached, with the touched one: what map_pages is for. Pages
 * outside the touched one's 2 MiB, or outside its mapping, are left.
 *
 * Returns what the map_pages callback is to return: SOFTFAULT_VM_FAULT_NOPAGE if the touched page is mapped now, or 0.
 *
 * Context: handler: in a map_pages callback.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
uint32_t softfault_filemap_map_pages(struct softfault_vm_fault *vmf, uint64_t start, uint64_t end);

/**
 * Hands the extent to the kernel if it is cached whole: what huge_fault is for.
 *
 * Returns what the huge_fault callback is to return: SOFTFAULT_VM_FAULT_NOPAGE, or SOFTFAULT_VM_FAULT_FALLBACK.
 *
 * Context: handler: in a huge_fault callback.
 *
 * The caller promises:
 * vmf is what the callback got.
 */
uint32_t softfault_shmem_huge_fault(struct softfault_vm_fault *vmf);

/**
 * Fills all of the page from fd at pos_bytes, inside the kernel where that can be (SOFTFAULT_STORE_USES_DESCRIPTORS): about
 * half the time of a read(2) into its bytes. Returns 0 or a negative errno, -ENODATA at the end of the file: what read is to return.
 *
 * Context: filler, handler: in the read callback that got page.
 *
 * The caller promises:
 * page is what the callback got.
 */
int softfault_page_fill_from(struct softfault_page *page,
                             int fd,
                             uint64_t pos_bytes);

/**
 * Writes descriptor and offset of the page's bytes, for stores that move data between descriptors; the descriptor stays
 * the library's, and is -1 where there is none: usually, without SOFTFAULT_STORE_USES_DESCRIPTORS. Returns 0, or -EINVAL.
 *
 * Context: filler, handler: in the read callback that got page.
 *
 * The caller promises:
 * page is what the callback got; fd and offset may be written.
 */
int softfault_page_fd(struct softfault_page *page,
                      int *fd,
                      uint64_t *offset);

/**
 * Writes all of the pages to fd at pos_bytes. Returns 0 or a negative errno: what write is to return.
 *
 * Context: filler, handler: in the write callback that got pages.
 *
 * The caller promises:
 * pages is what the callback got.
 */
int softfault_pages_write_to(const struct softfault_pages *pages, int fd, uint64_t pos_bytes);

/**
 * Writes descriptor and offset of the pages' bytes; -1: a copy, which has none (usually, without
 * SOFTFAULT_STORE_USES_DESCRIPTORS). Returns 0, or -EINVAL.
 *
 * Context: filler, handler: in the write callback that got pages.
 *
 * The caller promises:
 * pages is what the callback got; fd and offset may be written.
 */
int softfault_pages_fd(const struct softfault_pages *pages, int *fd, uint64_t *offset);

/**
 * Returns the page's number in its object; 0 for NULL.
 *
 * Context: filler, handler: in the callback that got fault.
 *
 * The caller promises:
 * fault is what the callback got.
 */
uint64_t softfault_minor_fault_pgoff(const struct softfault_minor_fault *fault);

/**
 * Returns the touched page's address in the arena; 0 for NULL.
 *
 * Context: filler, handler: in the callback that got fault.
 *
 * The caller promises:
 * fault is what the callback got.
 */
size_t softfault_minor_fault_address(const struct softfault_minor_fault *fault);

/**
 * Returns whether the touch is a store; false for NULL.
 *
 * Context: filler, handler: in the callback that got fault.
 *
 * The caller promises:
 * fault is what the callback got.
 */
bool softfault_minor_fault_is_write(const struct softfault_minor_fault *fault);

/**
 * Copies len bytes from offset in the page on to dst. Returns 0; -EINVAL if that leaves the page; -ENOENT if it has left
 * the cache meanwhile. softfault_last_error() says nothing of it.
 *
 * Context: filler, handler: in the callback that got fault.
 *
 * The caller promises:
 * fault is what the callback got; dst has room for len bytes.
 */
int softfault_minor_fault_read(const struct softfault_minor_fault *fault,
                               size_t offset,
                               void *dst,
                               size_t len);

/**
 * Lends the page's bytes to rewrite for rewriting; it is dirty afterwards. Returns 0; -EBUSY unless the object is mapped
 * this once and nobody has pinned the page; -ENOENT if it has left the cache meanwhile; -EINVAL.
 *
 * Context: filler, handler: in the callback that got fault. rewrite runs within the call, under the same rules.
 *
 * The caller promises:
 * fault is what the callback got. rewrite may be called with ctx and the len writable bytes at page, and does not unwind.
 */
int softfault_minor_fault_rewrite(const struct softfault_minor_fault *fault,
                                  void (*rewrite)(void *ctx, void *page, size_t len),
                                  void *ctx);

/**
 * Reads the runtime's counters, without stopping anyone. The handle is the caller's: softfault_stats_free().
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_stats_read(struct softfault_runtime *runtime, struct softfault_stats **out);

/**
 * Frees the reading.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 */
int softfault_stats_free(struct softfault_stats *stats);

/**
 * Writes what softfault_stats_text() says of that name: a counter (names are those of /proc/vmstat where it has them:
 * "pgfault", "pgmajfault"), how often the walk of a fault returned a bit ("vm_fault_sigbus"), or the observations of a
 * stage ("stage_total"). Some names come with what they count: those of a swap file, for instance.
 *
 * Errors: -ENOENT: no such name. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * name is a string; value may be written.
 */
int softfault_stats_get(struct softfault_stats *stats, const char *name, uint64_t *value);

/**
 * Writes name and value of counter number index, for those who want all: from 0 on, until -ENOENT. name, full and value
 * may be left out.
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * name has room for len bytes; full and value may be written.
 */
int softfault_stats_counter(struct softfault_stats *stats,
                            size_t index,
                            char *name,
                            size_t len,
                            size_t *full,
                            uint64_t *value);

/**
 * Writes how often the walk of a fault returned a bit: one of SOFTFAULT_VM_FAULT_*, not several.
 *
 * Errors: -ENOENT: no such bit. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * value may be written.
 */
int softfault_stats_reason(struct softfault_stats *stats, uint32_t bit, uint64_t *value);

/**
 * Writes the latency of the stage of that name ("total", "delivery"): softfault_stats_json() names them all.
 *
 * Errors: -ENOENT: no such stage. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * name is a string; latency may be written.
 */
int softfault_stats_stage(struct softfault_stats *stats, const char *name, struct softfault_stage_latency *latency);

/**
 * Writes everything as one JSON object; full (may be NULL) gets its length without the NUL. Ask with len 0, then again.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; full may be written.
 */
int softfault_stats_json(struct softfault_stats *stats, char *buf, size_t len, size_t *full);

/**
 * Writes everything as lines, as /proc/vmstat does; otherwise as softfault_stats_json().
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; full may be written.
 */
int softfault_stats_text(struct softfault_stats *stats, char *buf, size_t len, size_t *full);

/**
 * Opens an image of memory in a runtime, for sessions (softfault_restore()): an .sfi file, a raw one, or what options say. options
 * may be NULL. Nothing is read but its head. If the runtime has it open already, it is that one: its pages are in memory once,
 * for as long as a handle or a session is there.
 *
 * The handle is the caller's: softfault_image_free(). It keeps its runtime.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: softfault_last_image_failure() says what is wrong with which byte of the file. -EINVAL,
 * -E2BIG, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; options, if not NULL, has the size that it says, and what it names may be read; out may be written.
 */
int softfault_image_open(struct softfault_runtime *runtime,
                         const char *path,
                         const struct softfault_image_options *options,
                         struct softfault_image **out);

/**
 * As softfault_image_open(), without a runtime: to be looked at, read, verified, converted; not to be restored.
 *
 * Errors: as softfault_image_open().
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * As softfault_image_open().
 */
int softfault_image_open_file(const char *path,
                              const struct softfault_image_options *options,
                              struct softfault_image **out);

/**
 * Frees the handle. Sessions of the image keep what they need.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_image_free(struct softfault_image *image);

/**
 * Writes what the image is: its length, its digests, how many regions and keys it has. The caller sets properties->size.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * properties has the size that it says, and may be written.
 */
int softfault_image_info(struct softfault_image *image,
                         struct softfault_image_properties *properties);

/**
 * Writes the image's file, as softfault_last_error() does; full may be NULL.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; full may be written.
 */
int softfault_image_path(struct softfault_image *image, char *buf, size_t len, size_t *full);

/**
 * Writes the files that the image needs besides its own, a line each, and how many they are; nr and full may be NULL.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; nr and full may be written.
 */
int softfault_image_needs(struct softfault_image *image, size_t *nr, char *buf, size_t len, size_t *full);

/**
 * Tells whether bytes of every file of the image have digests: else nothing of it may be called verified.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: a file below cannot be opened. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * verifiable may be written.
 */
int softfault_image_is_verifiable(struct softfault_image *image, bool *verifiable);

/**
 * Writes region number index of the image, and its name. name, full and region may be left out.
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * name has room for len bytes; full and region may be written.
 */
int softfault_image_region(struct softfault_image *image,
                           size_t index,
                           char *name,
                           size_t len,
                           size_t *full,
                           struct softfault_region *region);

/**
 * Writes the name of key number index, as softfault_last_error() does; full may be NULL.
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; full may be written.
 */
int softfault_image_key_name(struct softfault_image *image, size_t index, char *buf, size_t len, size_t *full);

/**
 * Copies what the image keeps under a key beside its memory, cut to len bytes; full (may be NULL) gets the full length.
 *
 * Errors: -ENOENT: no such key. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * key is a string; buf has room for len bytes; full may be written.
 */
int softfault_image_key(struct softfault_image *image, const char *key, void *buf, size_t len, size_t *full);

/**
 * Reads bytes of the image, verified as it was opened for, without a fault and without the cache.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: these bytes are not what was saved; others can be read. -EINVAL: past the end; -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes.
 */
int softfault_image_read_at(struct softfault_image *image, uint64_t offset, void *buf, size_t len);

/**
 * Verifies everything of the image that has digests, as it lies in the files now. progress (may be NULL) is called on this thread,
 * seldom, with ctx and the bytes done so far; it must not unwind.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: the first thing that is wrong; -EOPNOTSUPP: it has no digests, of which
 * softfault_image_write_sidecar() makes some; -ESTALE: the file's name is another file's. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * progress may be called so.
 */
int softfault_image_verify(struct softfault_image *image,
                           void (*progress)(void *ctx, uint64_t bytes),
                           void *ctx);

/**
 * Writes a handle of the object whose pages are the image's: to be mapped in an arena of the program's own, and never written. The
 * handle is the caller's: softfault_object_free().
 *
 * Errors: -EINVAL: the image was opened without a runtime. -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_image_object(struct softfault_image *image,
                           struct softfault_object **out);

/**
 * Writes why the last read of the image that failed did, for whichever session or touch, and the words, as
 * softfault_last_error(): a touch is only told SIGBUS. failure and full may be NULL.
 *
 * Errors: -ENOENT: none has failed. -EINVAL: the image was opened without a runtime. -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * failure and full may be written; buf has room for len bytes.
 */
int softfault_image_read_failure(struct softfault_image *image,
                                 struct softfault_image_failure *failure,
                                 char *buf,
                                 size_t len,
                                 size_t *full);

/**
 * Begins an image (.sfi) of len_bytes, whole pages, that will be called path: of a memory, or with options->parent of what has changed
 * since another image, whose files stay where they are, in the same folder, and are needed whenever this one is read. options may
 * be NULL. The file appears under its name in softfault_image_writer_finish(), and not before; no file is ever replaced.
 *
 * The handle is the caller's: softfault_image_writer_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: -EEXIST: there is such a file; no file could be made in the folder. -EINVAL, -E2BIG, -EBADF,
 * -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; options, if not NULL, has the size that it says; out may be written.
 */
int softfault_image_writer_new(const char *path,
                               uint64_t len_bytes,
                               const struct softfault_image_writer_options *options,
                               struct softfault_image_writer **out);

/**
 * Gives up what is not finished: nothing is left of it. What is finished stays.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_image_writer_free(struct softfault_image_writer *writer);

/**
 * Says what a range of the image is of, in the order of the offsets.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -EBADMSG: it is not of whole pages, ends past the image, or overlaps the one before; the words say
 * which. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * region may be read, and its name is a string or NULL.
 */
int softfault_image_writer_region(struct softfault_image_writer *writer,
                                  const struct softfault_region *region);

/**
 * Keeps len bytes under a key beside the memory: the application's version, registers.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * key is a string; value has len bytes.
 */
int softfault_image_writer_key(struct softfault_image_writer *writer, const char *key, const void *value, size_t len);

/**
 * Writes whole pages from byte offset of the image on, behind those that were written before. Pages that are zero take no room; those
 * that never are written are zero, or the parent's.
 *
 * Errors: -EINVAL: not in order, past the end, not whole pages. SOFTFAULT_ERROR_IMAGE: the disk is full, and so on; the writer can
 * only be freed then. -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * buf has len bytes.
 */
int softfault_image_writer_write(struct softfault_image_writer *writer,
                                 uint64_t offset,
                                 const void *buf,
                                 size_t len);

/**
 * Makes everything durable, and gives the file its name; digest (may be NULL) gets the digest of the file. The writer is done,
 * whether this succeeds or not.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: nothing has got the name, or what has got it meanwhile has it still. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * digest may be written.
 */
int softfault_image_writer_finish(struct softfault_image_writer *writer,
                                  struct softfault_digest *digest);

/**
 * Writes an image as one .sfi file that needs no other, whatever it was before. options may be NULL; digest (may be NULL) gets the
 * digest of the new file.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: pages cannot be read, or are not what was saved; -EEXIST: there is such a file. -EINVAL, -E2BIG, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; options, if not NULL, has the size that it says; digest may be written.
 */
int softfault_image_convert(struct softfault_image *image,
                            const char *path,
                            const struct softfault_image_writer_options *options,
                            struct softfault_digest *digest);

/**
 * As softfault_image_convert(), with no more than budget pieces in any 2 MiB: what a chain of images costs each fault is gone.
 *
 * Errors: as softfault_image_convert().
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * As softfault_image_convert().
 */
int softfault_image_compact(struct softfault_image *image,
                            const char *path,
                            const struct softfault_image_writer_options *options,
                            uint32_t budget,
                            struct softfault_digest *digest);

/**
 * Writes an image as a child of parent: the pages that differ. The memory is the image's, whatever the parent is.
 *
 * Errors: as softfault_image_convert(); -EINVAL: a file of the parent lies in another folder.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * As softfault_image_convert().
 */
int softfault_image_rebase(struct softfault_image *image,
                           struct softfault_image *parent,
                           const char *path,
                           const struct softfault_image_writer_options *options,
                           struct softfault_digest *digest);

/**
 * Compares two images by SOFTFAULT_COMPARE_*, and copies up to nr ranges of bytes that differ, in order; full (may be NULL) gets how many
 * there are, and differ_bytes (may be NULL) their sum.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: a page of either cannot be read. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * ranges has room for nr elements; full and differ_bytes may be written.
 */
int softfault_image_diff(struct softfault_image *old,
                         struct softfault_image *new_,
                         uint32_t compare,
                         struct softfault_range *ranges,
                         size_t nr,
                         size_t *full,
                         uint64_t *differ_bytes);

/**
 * Writes len bytes of an image from offset on, whole pages, into a raw file that begins with them; zero pages are holes. No file is
 * replaced.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: as softfault_image_convert(). -EINVAL: past the end, not whole pages. -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string.
 */
int softfault_image_extract(struct softfault_image *image,
                            uint64_t offset,
                            uint64_t len,
                            const char *path);

/**
 * Writes the pages of new that differ from old into a sparse file as long as the image: what Firecracker calls a diff snapshot, and
 * softfault_image_options.diffs takes.
 *
 * Errors: as softfault_image_extract(); -EINVAL: the images are not of one length.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string.
 */
int softfault_image_extract_diff(struct softfault_image *old,
                                 struct softfault_image *new_,
                                 const char *path);

/**
 * Writes digests of an image that has none into an .sfi file of their own, in the same folder: opened, that is the same memory, verified.
 * digest may be NULL.
 *
 * Errors: as softfault_image_convert().
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; digest may be written.
 */
int softfault_image_write_sidecar(struct softfault_image *image,
                                  const char *path,
                                  struct softfault_digest *digest);

/**
 * Writes an image into a folder of OCI's layout, as registries understand it, under a name; the digest of its manifest is written as
 * softfault_last_error() does. full may be NULL.
 *
 * Errors: as softfault_image_convert().
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * folder and name are strings; buf has room for len bytes; full may be written.
 */
int softfault_image_export_oci(struct softfault_image *image,
                               const char *folder,
                               const char *name,
                               char *buf,
                               size_t len,
                               size_t *full);

/**
 * Takes the image of that name out of a folder of OCI's layout, verified, into another folder; the file that it is there is written as
 * softfault_last_error() does. full may be NULL.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * folder, name and into are strings; buf has room for len bytes; full may be written.
 */
int softfault_image_import_oci(const char *folder,
                               const char *name,
                               const char *into,
                               char *buf,
                               size_t len,
                               size_t *full);

/**
 * Opens a folder of .sfi files, which is made if there is none. The handle is the caller's: softfault_catalog_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * folder is a string; out may be written.
 */
int softfault_catalog_open(const char *folder, struct softfault_catalog **out);

/**
 * Frees the handle. The folder stays as it is.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_catalog_free(struct softfault_catalog *catalog);

/**
 * Has a tag name the image with this file digest, instead of what it named.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -ENOENT: there is no such image. -EINVAL: the text cannot be a tag. -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * tag is a string; digest may be read.
 */
int softfault_catalog_tag(struct softfault_catalog *catalog, const char *tag, const struct softfault_digest *digest);

/**
 * Forgets a tag. The image stays until softfault_catalog_collect().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: there is no such tag. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * tag is a string.
 */
int softfault_catalog_untag(struct softfault_catalog *catalog, const char *tag);

/**
 * Writes the tags, a line each, digest and tag, as softfault_last_error() does, and how many they are; nr and full may be NULL.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; nr and full may be written.
 */
int softfault_catalog_tags(struct softfault_catalog *catalog,
                           size_t *nr,
                           char *buf,
                           size_t len,
                           size_t *full);

/**
 * Opens the image that a tag names, or that has the digest which the name is, as softfault_image_open() does; without a runtime, if
 * that is NULL, as softfault_image_open_file(). The handle is the caller's: softfault_image_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -ENOENT: there is none. -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * name is a string; out may be written.
 */
int softfault_catalog_image(struct softfault_catalog *catalog,
                            struct softfault_runtime *runtime,
                            const char *name,
                            struct softfault_image **out);

/**
 * Says what a collection would remove now, what it keeps and why, as softfault_last_error() does, a line each: "remove BYTES FILE",
 * "remove-set FILE", "keep FILE tagged TAG ..", "keep FILE held", "keep FILE needed FILE", "damaged FILE WHY". While a file is
 * damaged nothing is removed: nobody knows what it needs. removed gets how many images; it and full may be NULL.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; removed and full may be written.
 */
int softfault_catalog_plan(struct softfault_catalog *catalog,
                           size_t *removed,
                           char *buf,
                           size_t len,
                           size_t *full);

/**
 * Removes what nothing names, holds or needs, and says what that was as softfault_catalog_plan() does.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: a file could not be removed; those before it were. -EINVAL: buf is NULL, and len is not 0:
 * nothing was removed. -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * As softfault_catalog_plan().
 */
int softfault_catalog_collect(struct softfault_catalog *catalog,
                              size_t *removed,
                              char *buf,
                              size_t len,
                              size_t *full);

/**
 * Removes the image with this file digest.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -EBUSY: the words name the tag or the image that needs it, or somebody holds it; -ENOENT: there is
 * none. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * digest may be read.
 */
int softfault_catalog_remove(struct softfault_catalog *catalog,
                             const struct softfault_digest *digest);

/**
 * Makes an image memory again: its regions are mapped, private to the session, and filled as they are touched, verified as the image
 * was opened for. options may be NULL. Nothing is read but what overlays need.
 *
 * The handle is the caller's: softfault_session_free(). The session keeps its image and its runtime.
 *
 * Errors: -EEXIST: the words name what is in the way of an original address. -ENODATA, SOFTFAULT_ERROR_OVERLAY: the image needs
 * an overlay that was not given. SOFTFAULT_ERROR_IMAGE: the working set is of another image, or there can be none of this one.
 * SOFTFAULT_ERROR_FAULT: a page below an overlay cannot be had. -EINVAL: overlays are not whole pages of one region, or the
 * image has no regions or no runtime. -EACCES: direct extents of files that may change, or an overlay where
 * nobody may store. -E2BIG, -EBADF, -EOPNOTSUPP, -ENOMEM. There is no session then.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * options, if not NULL, has the size that it says, and what it names may be read; out may be written.
 */
int softfault_restore(struct softfault_image *image,
                      const struct softfault_restore_options *options,
                      struct softfault_session **out);

/**
 * Frees the handle. The session's memory ends with it, but for arenas that the program has handles or pins of.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_session_free(struct softfault_session *session);

/**
 * Writes the address and the length of region number index, in the image's order; each may be NULL. softfault_image_region() has what
 * the image says of it.
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * base and len_bytes may be written.
 */
int softfault_session_region(struct softfault_session *session,
                             size_t index,
                             void **base,
                             size_t *len_bytes);

/**
 * Writes the number of the region of that name.
 *
 * Errors: -ENOENT: there is none. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * name is a string; index may be written.
 */
int softfault_session_find(struct softfault_session *session, const char *name, size_t *index);

/**
 * Writes a handle of the arena that region number index lies in, perhaps with others, and where in it (may be NULL): for
 * softfault_arena_read_at(), pins, advice. The handle is the caller's: softfault_arena_free().
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out and offset may be written.
 */
int softfault_session_arena(struct softfault_session *session,
                            size_t index,
                            struct softfault_arena **out,
                            size_t *offset);

/**
 * Writes a handle of the session's image. The handle is the caller's: softfault_image_free().
 *
 * Errors: -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_session_image(struct softfault_session *session, struct softfault_image **out);

/**
 * Writes the name and the image's bytes of overlay number index that the session was given: who restores a capture of it must
 * give one of the same name and place. name, full and bytes may be left out.
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * name has room for len bytes; full and bytes may be written.
 */
int softfault_session_overlay(struct softfault_session *session,
                              size_t index,
                              char *name,
                              size_t len,
                              size_t *full,
                              struct softfault_range *bytes);

/**
 * Writes how far the session has come. Nobody is stopped. The caller sets progress->size.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * progress has the size that it says, and may be written.
 */
int softfault_session_progress(struct softfault_session *session, struct softfault_progress *progress);

/**
 * Says that the session is ready, and ends the recording that softfault_restore_options.record_window_ns began: set gets the pages
 * that were touched first, or NULL if nothing was being recorded. The handle is the caller's: softfault_working_set_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: there are more windows than a set may have. -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * set may be written.
 */
int softfault_session_mark(struct softfault_session *session,
                           struct softfault_working_set **set);

/**
 * Makes all of the session resident and verified, and has the kernel serve what it can. Other threads may touch it meanwhile.
 * completion may be NULL; else the caller sets completion->size.
 *
 * Errors: SOFTFAULT_ERROR_LIMIT: the cache's limit cannot hold the pages, and nothing was done. SOFTFAULT_ERROR_FAULT naming
 * the first page that cannot be had: softfault_image_read_failure() says why. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * completion, if not NULL, has the size that it says, and may be written.
 */
int softfault_session_complete(struct softfault_session *session,
                               struct softfault_completion *completion);

/**
 * Makes a consistent cut of nr arenas, each made with SOFTFAULT_ARENA_CAPTURABLE, and returns after it; the image is written
 * meanwhile, until softfault_capture_commit(). Threads go on storing, but for the last moment before the cut (a millisecond or
 * two). options may be NULL.
 *
 * at_cut (may be NULL) is called with ctx in that moment, on this thread: what it reads of the program's state is of the same moment
 * as the memory. It must not wait for a thread that stores to the arenas (for a lock of such a thread, malloc's included), nor store
 * to them itself, nor unwind; it may be called again, three times in all, if it takes a tenth of a second. What it returns, if not 0,
 * ends the capture.
 *
 * The handle is the caller's: softfault_capture_free(), which cancels what is not committed.
 *
 * Errors: -EACCES: an arena is not capturable, or something is mapped in a way that no capture can hold. -EBUSY: a pin for writing
 * is there, and SOFTFAULT_CAPTURE_NO_WAIT. SOFTFAULT_ERROR_CAPTURE: at_cut said no, or stores would have waited for too long.
 * SOFTFAULT_ERROR_IMAGE: the file cannot be made. -ENOMEM: a fifth capture at once, or memory. -EINVAL, -E2BIG, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; arenas has nr elements; options, if not NULL, has the size that it says, and what it names may be read; at_cut may
 * be called so; out may be written.
 */
int softfault_capture_begin(struct softfault_runtime *runtime,
                            const char *path,
                            struct softfault_arena *const *arenas,
                            size_t nr,
                            const struct softfault_capture_options *options,
                            int (*at_cut)(void *ctx),
                            void *ctx,
                            struct softfault_capture **out);

/**
 * Keeps len bytes under a key beside the memory: what at_cut found, the registers, a version.
 *
 * Errors: -EINVAL: the capture is committed. -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * key is a string; value has len bytes.
 */
int softfault_capture_key(struct softfault_capture *capture, const char *key, const void *value, size_t len);

/**
 * Writes how far the capture is. The caller sets progress->size.
 *
 * Errors: -EINVAL: the capture is committed. -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * progress has the size that it says, and may be written.
 */
int softfault_capture_progress(struct softfault_capture *capture, struct softfault_capture_state *progress);

/**
 * Waits until the image is whole, durable, and there under its name; digest (may be NULL) gets the digest of its file. The capture
 * is over, whether this succeeds or not.
 *
 * Errors: SOFTFAULT_ERROR_CAPTURE, SOFTFAULT_ERROR_IMAGE: there is no image, and one that was there before is as it was. -EINVAL: the
 * capture is committed already. -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * digest may be written.
 */
int softfault_capture_commit(struct softfault_capture *capture,
                             struct softfault_digest *digest);

/**
 * Frees the handle. A capture that is not committed is cancelled: there will be no image.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_capture_free(struct softfault_capture *capture);

/**
 * Opens the file of a working set. The handle is the caller's: softfault_working_set_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string; out may be written.
 */
int softfault_working_set_open(const char *path, struct softfault_working_set **out);

/**
 * Opens the working set that lies beside an image (softfault_working_set_save_beside()); NULL in out: there is none.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE; -EOPNOTSUPP: the image knows no digest of its contents. -EINVAL, -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out may be written.
 */
int softfault_working_set_find(struct softfault_image *image, struct softfault_working_set **out);

/**
 * Frees the set.
 *
 * Errors: -EINVAL for NULL, -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_working_set_free(struct softfault_working_set *set);

/**
 * Saves the set as a file, instead of one that is there: the old one or the new one, at any moment.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE. -EINVAL, -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * path is a string.
 */
int softfault_working_set_save(struct softfault_working_set *set, const char *path);

/**
 * Saves the set in the folder of the image that it is of, where softfault_working_set_find() looks.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL where the set is of other contents. -EBADF.
 *
 * Context: program. Thread-safe.
 */
int softfault_working_set_save_beside(struct softfault_working_set *set, struct softfault_image *image);

/**
 * Writes what the set is. The caller sets properties->size.
 *
 * Errors: -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * properties has the size that it says, and may be written.
 */
int softfault_working_set_info(struct softfault_working_set *set, struct softfault_working_set_properties *properties);

/**
 * Writes window number index, the earliest first: its time, from when the session was restored on, and how many pages were touched in
 * it first. Each may be NULL.
 *
 * Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * start_ns, end_ns and nr_pages may be written.
 */
int softfault_working_set_window(struct softfault_working_set *set,
                                 size_t index,
                                 uint64_t *start_ns,
                                 uint64_t *end_ns,
                                 uint64_t *nr_pages);

/**
 * Copies up to nr ranges of the image's bytes that were touched first in window number index, in the order of their places; full
 * (may be NULL) gets how many there are.
 *
 * Errors: -ENOENT: no such window. -EINVAL, -EBADF.
 *
 * Context: program, filler. Thread-safe.
 *
 * The caller promises:
 * ranges has room for nr elements; full may be written.
 */
int softfault_working_set_ranges(struct softfault_working_set *set,
                                 size_t index,
                                 struct softfault_range *ranges,
                                 size_t nr,
                                 size_t *full);

/**
 * Makes one set of nr recordings of the same contents: what was touched in least of them at least, 1 for everything, each page as
 * early as in any of those. The handle is the caller's: softfault_working_set_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL: they are of different contents, or tell different numbers of pages apart. -EINVAL: there are
 * fewer than least. -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * sets has nr elements; out may be written.
 */
int softfault_working_set_merge(struct softfault_working_set *const *sets,
                                size_t nr,
                                size_t least,
                                struct softfault_working_set **out);

/**
 * Compares a set with what was touched afterwards: how many pages are in both, only foretold, only touched. Each may be NULL.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL: as softfault_working_set_merge(). -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * both, only_foretold and only_touched may be written.
 */
int softfault_working_set_compare(struct softfault_working_set *foretold,
                                  struct softfault_working_set *touched,
                                  uint64_t *both,
                                  uint64_t *only_foretold,
                                  uint64_t *only_touched);

/**
 * Carries a set from the image that it is of to another, of the program's next build say: each group of four pages is looked for by its
 * digest. stayed, moved and lost (each may be NULL) get how many groups are where they were, elsewhere, and gone. The
 * handle is the caller's: softfault_working_set_free().
 *
 * Errors: SOFTFAULT_ERROR_IMAGE: -EINVAL where the set is not of from; -EOPNOTSUPP where to has no content digest. -EBADF, -ENOMEM.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * out, stayed, moved and lost may be written.
 */
int softfault_working_set_carry(struct softfault_working_set *set,
                                struct softfault_image *from,
                                struct softfault_image *to,
                                struct softfault_working_set **out,
                                uint64_t *stayed,
                                uint64_t *moved,
                                uint64_t *lost);

/**
 * Writes why the set should be looked at before it is replayed over the image, as softfault_last_error(): it is most of the image, or
 * far larger than before (may be NULL), the set of before. An empty text: nothing is strange. full may be NULL.
 *
 * Errors: SOFTFAULT_ERROR_IMAGE, -EINVAL where the set is of other contents. -EBADF.
 *
 * Context: program. Thread-safe.
 *
 * The caller promises:
 * buf has room for len bytes; full may be written.
 */
int softfault_working_set_suspicion(struct softfault_working_set *set,
                                    struct softfault_image *image,
                                    struct softfault_working_set *before,
                                    char *buf,
                                    size_t len,
                                    size_t *full);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SOFTFAULT_H */
