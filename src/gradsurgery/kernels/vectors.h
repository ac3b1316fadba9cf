/* What all loops have in common.

   VECTORS before a function: it is compiled for several widths of vector, and the widest that the
   processor has is taken. The results are the same, to the last bit. */

#include <stdint.h> /* of the C library, whose name it defines */

#if defined(__x86_64__) && defined(__GNUC__) && defined(__GLIBC__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

/* The next SIZE components of a row, of which LEFT are left, come from memory while these are used:
   a processor does not foresee by itself what comes of many rows. */
#define FETCH_NEXT(REAL, ROW, SIZE, LEFT)                                                         \
    for (int64_t n = SIZE; n < 2 * SIZE && n < LEFT; n += 64 / sizeof(REAL))                      \
    __builtin_prefetch((ROW) + n)
