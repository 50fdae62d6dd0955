/* See ill_store.h. */
#include "ill_store.h"

#include <errno.h>
#include <string.h>

static const struct ill_row rows[] = {
    {EIO, EIO, SOFTFAULT_CAUSE_IO, EIO},
    {ENOSPC, ENOSPC, SOFTFAULT_CAUSE_IO, ENOSPC},
    {EDQUOT, EDQUOT, SOFTFAULT_CAUSE_IO, EDQUOT},
    {ECONNRESET, ECONNRESET, SOFTFAULT_CAUSE_IO, ECONNRESET},
    {ESTALE, ESTALE, SOFTFAULT_CAUSE_IO, ESTALE},
    {ETIMEDOUT, ETIMEDOUT, SOFTFAULT_CAUSE_IO, ETIMEDOUT},
    {EROFS, EROFS, SOFTFAULT_CAUSE_IO, EROFS},
    {ENOMEM, ENOMEM, SOFTFAULT_CAUSE_NO_MEMORY, 0},
    {ENODATA, EIO, SOFTFAULT_CAUSE_SHORT, 0},
    {EBADMSG, EHWPOISON, SOFTFAULT_CAUSE_CORRUPT, 0},
};

static int read_answer, write_answer, flush_answer;

static const struct ill_row flush_rows[] = {
    {ENODATA, ENODATA, SOFTFAULT_CAUSE_SHORT, 0},
    {EBADMSG, EBADMSG, SOFTFAULT_CAUSE_CORRUPT, 0},
};

const struct ill_row *ill_row_at(size_t i, int is_flush)
{
    const size_t nr = sizeof rows / sizeof *rows, same = nr - sizeof flush_rows / sizeof *flush_rows;
    if (i >= nr)
        return NULL;
    return is_flush && i >= same ? &flush_rows[i - same] : &rows[i];
}

void ill_answers(int read, int write, int flush)
{
    __atomic_store_n(&read_answer, read, __ATOMIC_RELAXED);
    __atomic_store_n(&write_answer, write, __ATOMIC_RELAXED);
    __atomic_store_n(&flush_answer, flush, __ATOMIC_RELAXED);
}

static int ill_read(void *ctx, uint64_t pos, void *dst, size_t len, softfault_page *page)
{
    (void)ctx;
    (void)pos;
    (void)page;
    memset(dst, 7, len);
    return -__atomic_load_n(&read_answer, __ATOMIC_RELAXED);
}

static int ill_write(void *ctx, uint64_t pos, const void *src, size_t len, const softfault_pages *pages)
{
    (void)ctx;
    (void)pos;
    (void)src;
    (void)len;
    (void)pages;
    return -__atomic_load_n(&write_answer, __ATOMIC_RELAXED);
}

static int ill_flush(void *ctx)
{
    (void)ctx;
    return -__atomic_load_n(&flush_answer, __ATOMIC_RELAXED);
}

const softfault_store_operations *ill_operations(void)
{
    static const softfault_store_operations operations = {
        .size = sizeof operations, .read = ill_read, .write = ill_write, .flush = ill_flush};
    return &operations;
}
