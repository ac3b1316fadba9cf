/* Inner products of long rows and sums weighted by them, for one thread; compiled.py splits
   the work over several. Every function works on the components begin..end.

   Float32 is multiplied and summed in float64, where neither 1e-25 nor 1e25 squared is lost. */

#include <stdint.h>

#include "vectors.h"

/* Components taken at a time: the rows are read from memory once for all pairs, and stay in the
   nearest cache as float64 (`wide`: domains times BLOCK of them) for a few domains. */
#define BLOCK 128
/* Independent sums of a pair, a vector of the widest processors and several of others, as compilers
   write them (GCC's and Clang's extension). */
#define LANES 8
typedef double lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double))));
#define LANES_AT(ADDRESS) (*(const lanes *)(ADDRESS))
/* Pairs multiplied side by side: an addition of one pair does not wait for its last one. */
#define PAIRS 4

#define DEFINE(REAL, NAME)                                                                        \
    /* Adds rows[i] . rows[j], as LANES sums, to out[i][j] for all i <= j. */                     \
    VECTORS void add_gramian_##NAME(const REAL *const *rows, int64_t domains, double *wide,       \
                                    double *out, int64_t begin, int64_t end) {                    \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t size = end - start < BLOCK ? end - start : BLOCK;                             \
            int64_t padded = (size + LANES - 1) / LANES * LANES;                                  \
            for (int64_t d = 0; d < domains; d++) {                                               \
                const REAL *row = rows[d] + start;                                                \
                double *copy = wide + d * BLOCK;                                                  \
                /* the next block comes from memory while this one is multiplied */               \
                for (int64_t n = BLOCK; n < 2 * BLOCK && n < end - start; n += 64 / sizeof(REAL)) \
                    __builtin_prefetch(row + n);                                                  \
                for (int64_t n = 0; n < size; n++)                                                \
                    copy[n] = (double)row[n];                                                     \
                for (int64_t n = size; n < padded; n++)                                           \
                    copy[n] = 0;                                                                  \
            }                                                                                     \
            for (int64_t i = 0, j = 0; i < domains;) {                                            \
                const double *left[PAIRS], *right[PAIRS];                                         \
                lanes *totals[PAIRS], unused = {0};                                               \
                for (int64_t pair = 0; pair < PAIRS; pair++) {                                    \
                    int there = i < domains;                                                      \
                    left[pair] = wide + (there ? i : 0) * BLOCK;                                  \
                    right[pair] = wide + (there ? j : 0) * BLOCK;                                 \
                    totals[pair] = there ? (lanes *)out + i * domains + j : &unused;              \
                    if (there && ++j == domains)                                                  \
                        j = ++i;                                                                  \
                }                                                                                 \
                lanes first = {0}, second = {0}, third = {0}, fourth = {0}; /* in registers */    \
                for (int64_t n = 0; n < padded; n += LANES) {                                     \
                    first += LANES_AT(left[0] + n) * LANES_AT(right[0] + n);                      \
                    second += LANES_AT(left[1] + n) * LANES_AT(right[1] + n);                     \
                    third += LANES_AT(left[2] + n) * LANES_AT(right[2] + n);                      \
                    fourth += LANES_AT(left[3] + n) * LANES_AT(right[3] + n);                     \
                }                                                                                 \
                *totals[0] += first;                                                              \
                *totals[1] += second;                                                             \
                *totals[2] += third;                                                              \
                *totals[3] += fourth;                                                             \
            }                                                                                     \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    /* out = sum of weights[d] * rows[d]; `out` may be one of the rows. */                        \
    VECTORS void weighted_sum_##NAME(const REAL *const *rows, const double *weights,              \
                                     int64_t domains, REAL *out, int64_t begin, int64_t end) {    \
        double total[BLOCK];                                                                      \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t size = end - start < BLOCK ? end - start : BLOCK;                             \
            for (int64_t n = 0; n < size; n++)                                                    \
                total[n] = weights[0] * (double)rows[0][start + n];                               \
            for (int64_t d = 1; d < domains; d++)                                                 \
                for (int64_t n = 0; n < size; n++)                                                \
                    total[n] += weights[d] * (double)rows[d][start + n];                          \
            for (int64_t n = 0; n < size; n++)                                                    \
                out[start + n] = (REAL)total[n];                                                  \
        }                                                                                         \
    }

DEFINE(float, float32)
DEFINE(double, float64)
