/* A store that fails as it is told, for the tests of every language above C: the functions run inside faults, so they are C
 * whatever the language is. One store a process. */
#ifndef ILL_STORE_H
#define ILL_STORE_H

#include <softfault.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A row of the table that each language walks: what the store answers, and what has to come of it. */
struct ill_row {
    int answer;      /* positive */
    int error;       /* the errno of the call */
    uint32_t cause;  /* SOFTFAULT_CAUSE_* */
    int store_errno; /* as in softfault_fault */
};

/* Returns row i; NULL after the last. Those for a flush have the errno as it was answered. */
const struct ill_row *ill_row_at(size_t i, int is_flush);

/* What the functions answer from now on: positive errnos; 0: they succeed, and pages are read as bytes of 7. */
void ill_answers(int read, int write, int flush);

/* Its functions; their ctx is not used. */
const softfault_store_operations *ill_operations(void);

#ifdef __cplusplus
}
#endif

#endif
