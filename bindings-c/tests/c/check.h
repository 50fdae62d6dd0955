/* Checks of the C tests: the first that fails ends the program, with its line and the library's words. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "softfault.h"

#define PAGE ((size_t)4096)
#define EXTENT ((size_t)2 << 20)

static inline void check_failed(const char *file, int line, const char *what, long have, long want)
{
    char words[512];
    softfault_last_error(words, sizeof words);
    fprintf(stderr, "%s:%d: %s: is %ld, must be %ld (last error: %s)\n", file, line, what, have, want, words);
    exit(1);
}

/* The expression is true. */
#define CHECK(x)                                                                                                     \
    do {                                                                                                             \
        if (!(x))                                                                                                    \
            check_failed(__FILE__, __LINE__, #x, 0, 1);                                                              \
    } while (0)

/* The call returns this. */
#define CHECK_IS(x, want)                                                                                            \
    do {                                                                                                             \
        long check_have = (long)(x), check_want = (long)(want);                                                      \
        if (check_have != check_want)                                                                                \
            check_failed(__FILE__, __LINE__, #x, check_have, check_want);                                            \
    } while (0)

/* The call succeeds. */
#define OK(x) CHECK_IS(x, 0)

/* The call fails with this errno, of this kind, and its words contain the text. */
#define FAILS(x, code, kind, text)                                                                                   \
    do {                                                                                                             \
        char check_words[512];                                                                                       \
        CHECK_IS(x, -(code));                                                                                        \
        CHECK_IS(softfault_last_error_kind(), SOFTFAULT_ERROR_##kind);                                               \
        softfault_last_error(check_words, sizeof check_words);                                                       \
        if (strstr(check_words, (text)) == NULL) {                                                                   \
            fprintf(stderr, "%s:%d: %s says: %s, not: %s\n", __FILE__, __LINE__, #x, check_words, (text));           \
            exit(1);                                                                                                 \
        }                                                                                                            \
    } while (0)

#endif
