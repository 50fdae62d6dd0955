/* Images: written, opened, asked, read, verified; and what is done with them. */
#include "image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct path in_folder(const char *name)
{
    struct path path;
    snprintf(path.text, sizeof path.text, "%s/%s", env.dir, name);
    return path;
}

static bool is_zero_page(uint64_t page)
{
    return page % 8 == 7;
}

static void write_pages(softfault_image_writer *w, uint64_t first, uint64_t nr, unsigned char xor)
{
    unsigned char page[4096];
    for (uint64_t p = first; p < first + nr; p++) {
        fill_pattern(page, p * PAGE, PAGE);
        for (size_t i = 0; i < PAGE; i++)
            page[i] = is_zero_page(p) && xor == 0 ? 0 : page[i] ^ xor;
        OK(softfault_image_writer_write(w, p * PAGE, page, PAGE));
    }
}

struct path make_image(const char *name, uint32_t codec)
{
    struct path path = in_folder(name);
    softfault_image_writer_options options = {.size = sizeof options, .codec = codec};
    softfault_region low = {.name = "low", .address = 0x300000000000, .len_bytes = 512 * PAGE, .prot = 1};
    softfault_region heap = {
        .name = "heap", .address = 0x300040000000, .offset = 512 * PAGE, .len_bytes = 512 * PAGE, .prot = 3};
    softfault_image_writer *w;
    unlink(path.text);
    OK(softfault_image_writer_new(path.text, IMAGE_PAGES * PAGE, &options, &w));
    OK(softfault_image_writer_region(w, &low));
    OK(softfault_image_writer_region(w, &heap));
    OK(softfault_image_writer_key(w, "application", "1.4.2", 5));
    write_pages(w, 0, IMAGE_PAGES, 0);
    OK(softfault_image_writer_finish(w, NULL));
    OK(softfault_image_writer_free(w));
    return path;
}

bool is_image(const void *src, uint64_t pos, size_t len)
{
    static const unsigned char zeros[4096];
    for (size_t at = 0; at < len; at += PAGE) {
        const unsigned char *page = (const unsigned char *)src + at;
        bool is_zero = is_zero_page((pos + at) / PAGE);
        if (is_zero ? memcmp(page, zeros, PAGE) != 0 : !is_pattern(page, pos + at, PAGE))
            return false;
    }
    return true;
}

softfault_image *open_image(softfault_runtime *rt, struct path path)
{
    softfault_image *image;
    OK(softfault_image_open(rt, path.text, NULL, &image));
    return image;
}

softfault_image *open_image_file(struct path path)
{
    softfault_image *image;
    OK(softfault_image_open_file(path.text, NULL, &image));
    return image;
}

static void count_bytes(void *ctx, uint64_t bytes)
{
    uint64_t *last = ctx;
    CHECK(bytes >= *last);
    *last = bytes;
}

void test_image(void)
{
    struct path path = make_image("head.sfi", SOFTFAULT_CODEC_LZ4);
    softfault_image *image = open_image_file(path);
    softfault_image_properties info = {.size = sizeof info};
    softfault_region region;
    unsigned char bytes[3 * 4096];
    char text[512];
    size_t full, nr = 9;
    bool verifiable = false;
    uint64_t done = 0;

    OK(softfault_image_info(image, &info));
    CHECK_IS(info.len_bytes, IMAGE_PAGES * PAGE);
    CHECK_IS(info.nr_regions, 2);
    CHECK_IS(info.nr_keys, 1);
    CHECK_IS(info.integrity, SOFTFAULT_INTEGRITY_LAZY);
    CHECK_IS(info.flags, SOFTFAULT_IMAGE_HAS_FILE_DIGEST | SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST);
    CHECK_IS(info.size, sizeof info);

    OK(softfault_image_path(image, text, sizeof text, NULL));
    CHECK(strcmp(text, path.text) == 0);
    OK(softfault_image_needs(image, &nr, text, sizeof text, &full));
    CHECK(nr == 0 && full == 0);
    OK(softfault_image_is_verifiable(image, &verifiable));
    CHECK(verifiable);
    OK(softfault_image_region(image, 1, text, sizeof text, &full, &region));
    CHECK(strcmp(text, "heap") == 0 && full == 4);
    CHECK(region.address == 0x300040000000 && region.offset == 512 * PAGE && region.len_bytes == 512 * PAGE);
    CHECK(region.prot == 3 && region.name == NULL);
    FAILS(softfault_image_region(image, 2, NULL, 0, NULL, NULL), ENOENT, NO_ENTRY, "no region 2");
    OK(softfault_image_key_name(image, 0, text, sizeof text, NULL));
    CHECK(strcmp(text, "application") == 0);
    FAILS(softfault_image_key_name(image, 1, text, sizeof text, NULL), ENOENT, NO_ENTRY, "no key 1");
    OK(softfault_image_key(image, "application", text, 3, &full));
    CHECK(full == 5 && memcmp(text, "1.4", 3) == 0);
    OK(softfault_image_key(image, "application", NULL, 0, &full));
    FAILS(softfault_image_key(image, "cpu", text, 3, NULL), ENOENT, NO_ENTRY, "no key \"cpu\"");

    /* Bytes that begin and end inside pages. */
    OK(softfault_image_read_at(image, 100, bytes, 2 * PAGE));
    CHECK(is_pattern(bytes, 100, 2 * PAGE));
    OK(softfault_image_read_at(image, 6 * PAGE, bytes, 3 * PAGE));
    CHECK(is_image(bytes, 6 * PAGE, 3 * PAGE));
    FAILS(softfault_image_read_at(image, IMAGE_PAGES * PAGE, bytes, 1), EINVAL, ARGUMENT, "past the image");
    OK(softfault_image_verify(image, count_bytes, &done));
    CHECK(done > 0);
    OK(softfault_image_verify(image, NULL, NULL));

    /* A structure of an earlier version, and of a later one. */
    memset(&info, 0xff, sizeof info);
    info.size = 8;
    FAILS(softfault_image_info(image, &info), EINVAL, ARGUMENT, "softfault_image_properties.size is 8");
    struct {
        softfault_image_properties known;
        uint64_t later;
    } longer = {.known = {.size = sizeof longer}, .later = 7};
    OK(softfault_image_info(image, &longer.known));
    CHECK(longer.known.nr_regions == 2 && longer.later == 0 && longer.known.size == sizeof longer);
    OK(softfault_image_free(image));
    FAILS(softfault_image_info(image, &longer.known), EBADF, HANDLE, "softfault_image");
}

static void damage(struct path path, long at)
{
    unsigned char byte;
    int fd = open(path.text, O_RDWR);
    CHECK(fd >= 0);
    CHECK_IS(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    CHECK_IS(pwrite(fd, &byte, 1, at), 1);
    OK(close(fd));
}

void test_image_errors(void)
{
    struct path path = make_image("damaged.sfi", SOFTFAULT_CODEC_RAW);
    softfault_image_options options = {.size = sizeof options, .format = 9};
    softfault_image_failure failure;
    softfault_image *image = NULL;
    softfault_image_writer *w;
    softfault_region region = {.name = "odd", .len_bytes = 1};
    unsigned char page[4096];
    char text[512];

    FAILS(softfault_image_open_file(in_folder("none.sfi").text, NULL, &image), ENOENT, IMAGE, "none.sfi");
    OK(softfault_last_image_failure(&failure));
    CHECK(failure.cause == SOFTFAULT_IMAGE_CAUSE_IO && failure.system_errno == ENOENT);
    CHECK(failure.file_offset == UINT64_MAX && image == NULL);
    FAILS(softfault_image_open_file(path.text, &options, &image), EINVAL, ARGUMENT, "format is 9");
    CHECK_IS(softfault_last_image_failure(&failure), -ENOENT);
    options = (softfault_image_options){.size = sizeof options, .integrity = 3};
    FAILS(softfault_image_open_file(path.text, &options, &image), EINVAL, ARGUMENT, "integrity is 3");
    options = (softfault_image_options){.size = sizeof options, .nr_diffs = 1};
    FAILS(softfault_image_open_file(path.text, &options, &image), EINVAL, ARGUMENT, "diffs is NULL");
    options = (softfault_image_options){.size = sizeof options, .format = SOFTFAULT_IMAGE_FORMAT_QEMU};
    CHECK(softfault_image_open_file(path.text, &options, &image) < 0);
    CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_IMAGE);
    CHECK_IS(softfault_last_image_failure(NULL), -EINVAL);

    /* A byte of the data that is another: these pages cannot be read, and verifying names the byte. */
    image = open_image_file(path);
    struct stat st;
    OK(stat(path.text, &st));
    damage(path, st.st_size / 2);
    FAILS(softfault_image_verify(image, NULL, NULL), EBADMSG, IMAGE, "damaged.sfi");
    OK(softfault_last_image_failure(&failure));
    CHECK_IS(failure.cause, SOFTFAULT_IMAGE_CAUSE_DIGEST);
    CHECK(failure.file_offset <= (uint64_t)st.st_size / 2 && failure.file_offset + 16384 > (uint64_t)st.st_size / 2);
    CHECK(memcmp(failure.wanted.bytes, failure.found.bytes, 32) != 0);
    CHECK_IS(softfault_last_object(text, sizeof text), strlen(path.text));
    CHECK(strcmp(text, path.text) == 0);
    OK(softfault_image_read_at(image, 0, page, PAGE));
    OK(softfault_image_free(image));

    /* Writers. */
    FAILS(softfault_image_writer_new(path.text, PAGE, NULL, &w), EEXIST, IMAGE, "damaged.sfi");
    FAILS(softfault_image_writer_new(in_folder("w.sfi").text, 5, NULL, &w), EINVAL, ARGUMENT, "whole pages");
    OK(softfault_image_writer_new(in_folder("w.sfi").text, 4 * PAGE, NULL, &w));
    FAILS(softfault_image_writer_region(w, &region), EBADMSG, IMAGE, "whole pages");
    FAILS(softfault_image_writer_region(w, NULL), EINVAL, ARGUMENT, "region is NULL");
    OK(softfault_image_writer_write(w, 2 * PAGE, page, PAGE));
    FAILS(softfault_image_writer_write(w, PAGE, page, PAGE), EINVAL, ARGUMENT, "ascending");
    FAILS(softfault_image_writer_write(w, 3 * PAGE, page, 7), EINVAL, ARGUMENT, "whole pages");
    CHECK(access(in_folder("w.sfi").text, F_OK) != 0);
    OK(softfault_image_writer_finish(w, NULL));
    CHECK(access(in_folder("w.sfi").text, F_OK) == 0);
    FAILS(softfault_image_writer_finish(w, NULL), EINVAL, ARGUMENT, "finished");
    FAILS(softfault_image_writer_key(w, "k", "v", 1), EINVAL, ARGUMENT, "finished");
    OK(softfault_image_writer_free(w));
    OK(softfault_image_writer_new(in_folder("given-up.sfi").text, PAGE, NULL, &w));
    OK(softfault_image_writer_free(w));
    CHECK(access(in_folder("given-up.sfi").text, F_OK) != 0);
}

/* A child of an image, in which pages 8..10 are others. */
static struct path make_child(const char *name, softfault_image *parent)
{
    struct path path = in_folder(name);
    softfault_image_writer_options options = {.size = sizeof options, .parent = parent};
    softfault_image_writer *w;
    unlink(path.text);
    OK(softfault_image_writer_new(path.text, IMAGE_PAGES * PAGE, &options, &w));
    write_pages(w, 8, 2, 0x55);
    OK(softfault_image_writer_finish(w, NULL));
    OK(softfault_image_writer_free(w));
    return path;
}

static softfault_digest content_of(struct path path)
{
    softfault_image *image = open_image_file(path);
    softfault_image_properties info = {.size = sizeof info};
    OK(softfault_image_info(image, &info));
    CHECK(info.flags & SOFTFAULT_IMAGE_HAS_CONTENT_DIGEST);
    OK(softfault_image_free(image));
    return info.content_digest;
}

static bool same(softfault_digest a, softfault_digest b)
{
    return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

void test_image_ops(void)
{
    struct path parent_path = make_image("parent.sfi", SOFTFAULT_CODEC_RAW);
    softfault_image *parent = open_image_file(parent_path);
    struct path child_path = make_child("child.sfi", parent);
    softfault_image *child = open_image_file(child_path), *raw;
    softfault_image_writer_options lz4 = {.size = sizeof lz4, .codec = SOFTFAULT_CODEC_LZ4};
    softfault_range ranges[2] = {{1, 1}, {1, 1}};
    softfault_digest made, content = content_of(child_path);
    struct path at;
    uint64_t bytes = 0;
    size_t full = 0, nr = 0;
    char text[512];
    unsigned char page[4096];

    OK(softfault_image_diff(parent, child, SOFTFAULT_COMPARE_PAGES, ranges, 2, &full, &bytes));
    CHECK(full == 1 && ranges[0].start == 8 * PAGE && ranges[0].end == 10 * PAGE && ranges[1].start == 1);
    CHECK_IS(bytes, 2 * PAGE);
    OK(softfault_image_diff(parent, child, SOFTFAULT_COMPARE_DIGESTS, NULL, 0, &full, NULL));
    FAILS(softfault_image_diff(parent, child, 2, NULL, 0, NULL, NULL), EINVAL, ARGUMENT, "compare is 2");
    OK(softfault_image_needs(child, &nr, text, sizeof text, NULL));
    CHECK(nr == 1 && strcmp(text, parent_path.text) == 0);

    at = in_folder("flat.sfi");
    OK(softfault_image_compact(child, at.text, &lz4, 8, &made));
    CHECK(same(content_of(at), content));
    FAILS(softfault_image_compact(child, at.text, &lz4, 8, NULL), EEXIST, IMAGE, "flat.sfi");
    at = in_folder("converted.sfi");
    OK(softfault_image_convert(child, at.text, NULL, NULL));
    CHECK(same(content_of(at), content));
    lz4.parent = parent;
    FAILS(softfault_image_convert(child, at.text, &lz4, NULL), EINVAL, ARGUMENT, "for writers");
    at = in_folder("rebased.sfi");
    OK(softfault_image_rebase(child, parent, at.text, NULL, NULL));
    CHECK(same(content_of(at), content));
    struct stat st;
    OK(stat(at.text, &st));
    CHECK(st.st_size < (long)(IMAGE_PAGES * PAGE / 8));

    /* Raw files, diffs of such, and digests for them. */
    at = in_folder("pages.raw");
    OK(softfault_image_extract(child, 8 * PAGE, 4 * PAGE, at.text));
    OK(stat(at.text, &st));
    CHECK_IS(st.st_size, 4 * PAGE);
    FAILS(softfault_image_extract(child, 0, 5, in_folder("x").text), EINVAL, ARGUMENT, "whole pages");
    struct path base = in_folder("base.raw"), diff = in_folder("diff.raw");
    OK(softfault_image_extract(parent, 0, IMAGE_PAGES * PAGE, base.text));
    OK(softfault_image_extract_diff(parent, child, diff.text));
    const char *diffs[] = {diff.text};
    softfault_region whole = {.name = "all", .address = 1 << 30, .len_bytes = IMAGE_PAGES * PAGE, .prot = 1};
    softfault_image_options stack = {
        .size = sizeof stack, .diffs = diffs, .nr_diffs = 1, .regions = &whole, .nr_regions = 1};
    OK(softfault_image_open_file(base.text, &stack, &raw));
    OK(softfault_image_region(raw, 0, text, sizeof text, NULL, NULL));
    CHECK(strcmp(text, "all") == 0);
    OK(softfault_image_read_at(raw, 9 * PAGE, page, PAGE));
    CHECK(page[0] == (pattern(9 * PAGE) ^ 0x55));
    FAILS(softfault_image_verify(raw, NULL, NULL), EOPNOTSUPP, IMAGE, "sidecar");
    OK(softfault_image_write_sidecar(raw, in_folder("stack.sfi").text, &made));
    CHECK(same(content_of(in_folder("stack.sfi")), content));
    OK(softfault_image_free(raw));

    OK(softfault_image_export_oci(child, in_folder("oci").text, "monday", text, sizeof text, NULL));
    CHECK(strncmp(text, "sha256:", 7) == 0);
    OK(mkdir(in_folder("imported").text, 0700));
    OK(softfault_image_import_oci(in_folder("oci").text, "monday", in_folder("imported").text, text, sizeof text, &full));
    snprintf(at.text, sizeof at.text, "%s", text);
    CHECK(same(content_of(at), content));
    CHECK(softfault_image_import_oci(in_folder("oci").text, "tuesday", in_folder("imported").text, NULL, 0, NULL) < 0);
    OK(softfault_image_free(child));
    OK(softfault_image_free(parent));
}

void test_catalog(void)
{
    softfault_catalog *catalog;
    softfault_image *parent, *child, *named;
    softfault_image_properties info = {.size = sizeof info}, of_parent = {.size = sizeof info};
    size_t nr, full;
    char text[2048];

    OK(softfault_catalog_open(in_folder("catalog").text, &catalog));
    parent = open_image_file(make_image("catalog/parent.sfi", SOFTFAULT_CODEC_RAW));
    child = open_image_file(make_child("catalog/child.sfi", parent));
    OK(softfault_image_info(child, &info));
    OK(softfault_image_info(parent, &of_parent));
    FAILS(softfault_catalog_tag(catalog, "no/tag", &info.file_digest), EINVAL, ARGUMENT, "tag");
    FAILS(softfault_catalog_tag(catalog, "monday", NULL), EINVAL, ARGUMENT, "digest is NULL");
    FAILS(softfault_catalog_tag(catalog, "monday", &info.content_digest), ENOENT, IMAGE, "no image with the digest");
    OK(softfault_catalog_tag(catalog, "monday", &info.file_digest));
    OK(softfault_catalog_tags(catalog, &nr, text, sizeof text, &full));
    CHECK(nr == 1 && full == 64 + 1 + strlen("monday") && strcmp(text + 65, "monday") == 0);
    OK(softfault_image_free(parent));
    OK(softfault_image_free(child));

    OK(softfault_catalog_image(catalog, NULL, "monday", &named));
    OK(softfault_image_path(named, text, sizeof text, NULL));
    CHECK(strcmp(text, in_folder("catalog/child.sfi").text) == 0);
    OK(softfault_image_free(named));
    FAILS(softfault_catalog_image(catalog, NULL, "tuesday", &named), ENOENT, IMAGE, "tuesday");

    /* A parent that is needed stays; what nothing names goes. */
    OK(softfault_catalog_plan(catalog, &nr, text, sizeof text, &full));
    CHECK(nr == 0 && strstr(text, "tagged monday") != NULL && strstr(text, "parent.sfi needed") != NULL);
    FAILS(softfault_catalog_remove(catalog, &of_parent.file_digest), EBUSY, IMAGE, "needs it");
    OK(softfault_catalog_untag(catalog, "monday"));
    FAILS(softfault_catalog_untag(catalog, "monday"), ENOENT, IMAGE, "monday");
    OK(softfault_catalog_remove(catalog, &info.file_digest));
    FAILS(softfault_catalog_collect(catalog, &nr, NULL, 5, NULL), EINVAL, ARGUMENT, "NULL");
    CHECK(access(in_folder("catalog/parent.sfi").text, F_OK) == 0);
    OK(softfault_catalog_collect(catalog, &nr, text, sizeof text, NULL));
    CHECK(nr == 1 && strncmp(text, "remove ", 7) == 0);
    CHECK(access(in_folder("catalog/parent.sfi").text, F_OK) != 0);
    OK(softfault_catalog_free(catalog));
    FAILS(softfault_catalog_free(catalog), EBADF, HANDLE, "softfault_catalog");
}
