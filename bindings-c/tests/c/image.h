/* What the topics of images share: images of known content. */
#ifndef IMAGE_H
#define IMAGE_H

#include "env.h"

#define IMAGE_PAGES 1024

/* A path in the folder of the run; the memory is the caller's. */
struct path {
    char text[512];
};
struct path in_folder(const char *name);

/* Makes an image of two regions, "low" and "heap", 512 pages each, whose byte i is pattern(i), but for zero pages where
 * page % 8 == 7; with a key "application". Returns where it is. */
struct path make_image(const char *name, uint32_t codec);
/* Whether the bytes are those of such an image, from byte pos on; whole pages. */
bool is_image(const void *src, uint64_t pos, size_t len);

softfault_image *open_image(softfault_runtime *rt, struct path path);
softfault_image *open_image_file(struct path path);
/* Restores with the delivery under test. */
softfault_session *restore(softfault_image *image, softfault_restore_options options);
unsigned char *region_of(softfault_session *session, const char *name);

#endif
