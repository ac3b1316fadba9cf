/* Inner products of long rows and sums weighted by them, for one thread; compiled.py splits
   the work over several. Every function works on the components begin..end.

   Float32 is multiplied and summed in float64, where neither 1e-25 nor 1e25 squared is lost. */

#include <stdint.h>

#include "vectors.h"

/* Components taken at a time: the rows are read from memory once for all pairs, and stay in the
   nearest cache as float64 (`wide`: domains times BLOCK of them) for a few domains. */
#define BLOCK 256
/* Independent sums, which a compiler turns into vector code. */
#define LANES 8

#define DEFINE(REAL, NAME)                                                                        \
    /* Adds rows[i] . rows[j] to out[i * domains + j] for all i <= j. */                          \
    VECTORS void add_gramian_##NAME(const REAL *const *rows, int64_t domains, double *wide,       \
                                    double *out, int64_t begin, int64_t end) {                    \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t size = end - start < BLOCK ? end - start : BLOCK;                             \
            int64_t padded = (size + LANES - 1) / LANES * LANES;                                  \
            for (int64_t d = 0; d < domains; d++) {                                               \
                const REAL *row = rows[d] + start;                                                \
                double *copy = wide + d * BLOCK;                                                  \
                for (int64_t n = 0; n < size; n++)                                                \
                    copy[n] = (double)row[n];                                                     \
                for (int64_t n = size; n < padded; n++)                                           \
                    copy[n] = 0;                                                                  \
            }                                                                                     \
            for (int64_t i = 0; i < domains; i++) {                                               \
                const double *left = wide + i * BLOCK;                                            \
                for (int64_t j = i; j < domains; j++) {                                           \
                    const double *right = wide + j * BLOCK;                                       \
                    double sums[LANES] = {0}, total = 0;                                          \
                    for (int64_t n = 0; n < padded; n += LANES)                                   \
                        for (int64_t lane = 0; lane < LANES; lane++)                              \
                            sums[lane] += left[n + lane] * right[n + lane];                       \
                    for (int64_t lane = 0; lane < LANES; lane++)                                  \
                        total += sums[lane];                                                      \
                    out[i * domains + j] += total;                                                \
                }                                                                                 \
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
