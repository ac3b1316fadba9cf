/* Sign agreement in one pass over memory, for one thread; compiled.py splits the work over several.

   The loops are the definitions of rules/agreement.py, written so that a compiler turns
   them into vector code for any processor. Every function works on the components begin..end. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

/* The sha256 of the sources, without which the library is not taken for this version's. */
const char built_of[] = SOURCES;

/* Components taken at a time: few enough to stay in the nearest cache, enough to keep the loops'
   overhead small. */
#define BLOCK 256
/* Independent sums, which a compiler turns into vector code. */
#define LANES 8

#define DEFINE(REAL, NAME, BITS, POSITIVE)                                                        \
    /* out = sum of the rows where all are > 0 or all are < 0, else 0. `stride` lies between the  \
       rows. Returns 0 where a NaN or an Inf turned up. */                                        \
    VECTORS int64_t agreement_sum_##NAME(const REAL *rows, int64_t stride, int64_t domains,       \
                                         REAL *out, int64_t begin, int64_t end) {                 \
        REAL total[BLOCK], lowest[BLOCK], highest[BLOCK];                                         \
        int bad = 0;                                                                              \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t size = end - start < BLOCK ? end - start : BLOCK;                             \
            for (int64_t n = 0; n < size; n++)                                                    \
                total[n] = lowest[n] = highest[n] = rows[start + n];                              \
            for (int64_t d = 1; d < domains; d++) {                                               \
                const REAL *row = rows + d * stride + start;                                      \
                FETCH_NEXT(REAL, row, BLOCK, end - start);                                        \
                for (int64_t n = 0; n < size; n++) {                                              \
                    REAL value = row[n];                                                          \
                    total[n] += value;                                                            \
                    lowest[n] = value < lowest[n] ? value : lowest[n];                            \
                    highest[n] = value > highest[n] ? value : highest[n];                         \
                }                                                                                 \
            }                                                                                     \
            for (int64_t n = 0; n < size; n++) {                                                  \
                REAL agrees = (lowest[n] > 0 ? 1 : 0) + (highest[n] < 0 ? 1 : 0);                 \
                out[start + n] = total[n] * agrees;                                               \
                bad |= total[n] * 0 != 0; /* NaN where the total is not finite */                 \
            }                                                                                     \
        }                                                                                         \
        return !bad;                                                                              \
    }                                                                                             \
                                                                                                  \
    /* total += gradient where the signs are equal, NaN elsewhere and where total is NaN. */      \
    VECTORS void fold_agreement_##NAME(REAL *restrict total, const REAL *restrict gradient,       \
                                       int64_t begin, int64_t end) {                              \
        const REAL nan = (REAL)__builtin_nan("");                                                 \
        for (int64_t n = begin; n < end; n++) {                                                   \
            REAL t = total[n], g = gradient[n];                                                   \
            int same = ((t > 0) == (g > 0)) & ((t < 0) == (g < 0));                               \
            total[n] = same ? t + g : nan;                                                        \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    /* The size of the largest component, NaN where there is one. Sizes are compared as whole     \
       numbers, the bits without the sign: infinity is larger than what is finite, and NaN than   \
       infinity. */                                                                               \
    VECTORS REAL largest_##NAME(const REAL *gradient, int64_t begin, int64_t end) {               \
        BITS top = 0;                                                                             \
        for (int64_t n = begin; n < end; n++) {                                                   \
            BITS size;                                                                            \
            memcpy(&size, gradient + n, sizeof size);                                             \
            size &= POSITIVE;                                                                     \
            top = size > top ? size : top;                                                        \
        }                                                                                         \
        REAL largest;                                                                             \
        memcpy(&largest, &top, sizeof top);                                                       \
        return largest;                                                                           \
    }                                                                                             \
                                                                                                  \
    /* Sets NaN to 0. Returns how many components were neither NaN nor 0, and writes into `zeros` \
       how many were 0. */                                                                        \
    VECTORS int64_t resolve_marks_##NAME(REAL *total, int64_t *zeros, int64_t begin,              \
                                         int64_t end) {                                           \
        int64_t agreeing = 0, zero = 0;                                                           \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t stop = end - start < BLOCK ? end : start + BLOCK;                             \
            int32_t agreeing_here = 0, zero_here = 0; /* as wide as the values, for vector code */\
            for (int64_t n = start; n < stop; n++) {                                              \
                REAL value = total[n];                                                            \
                int32_t finite = value == value, nothing = value == 0;                            \
                agreeing_here += finite & !nothing;                                               \
                zero_here += nothing;                                                             \
                total[n] = finite ? value : 0;                                                    \
            }                                                                                     \
            agreeing += agreeing_here;                                                            \
            zero += zero_here;                                                                    \
        }                                                                                         \
        *zeros = zero;                                                                            \
        return agreeing;                                                                          \
    }                                                                                             \
                                                                                                  \
    /* The sum of the sizes of the components that are not NaN, in double. Writes how many are    \
       neither NaN nor 0, and how many are 0. */                                                  \
    VECTORS double survey_marks_##NAME(const REAL *total, int64_t *agreeing, int64_t *zeros,      \
                                       int64_t begin, int64_t end) {                              \
        double sums[LANES] = {0}, sum = 0;                                                        \
        int64_t nan = 0, zero = 0;                                                                \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t stop = end - start < BLOCK ? end : start + BLOCK, n = start;                  \
            int32_t nan_here = 0, zero_here = 0;                                                  \
            for (int64_t m = start; m < stop; m++) {                                              \
                nan_here += total[m] != total[m];                                                 \
                zero_here += total[m] == 0;                                                       \
            }                                                                                     \
            for (; n + LANES <= stop; n += LANES)                                                 \
                for (int64_t lane = 0; lane < LANES; lane++) {                                    \
                    double value = total[n + lane];                                               \
                    sums[lane] += value == value ? fabs(value) : 0;                               \
                }                                                                                 \
            for (; n < stop; n++) {                                                               \
                double value = total[n];                                                          \
                sums[0] += value == value ? fabs(value) : 0;                                      \
            }                                                                                     \
            nan += nan_here;                                                                      \
            zero += zero_here;                                                                    \
        }                                                                                         \
        for (int64_t lane = 0; lane < LANES; lane++)                                              \
            sum += sums[lane];                                                                    \
        *agreeing = end - begin - nan - zero;                                                     \
        *zeros = zero;                                                                            \
        return sum;                                                                               \
    }                                                                                             \
                                                                                                  \
    /* Puts noise of the deviation sigma where the total is NaN, and where it is 0 unless zeros   \
       agree; then divides. */                                                                    \
    VECTORS void fill_marks_##NAME(REAL *restrict total, const REAL *restrict noise, double sigma,\
                                   double divisor, int64_t zero_agrees, int64_t begin,            \
                                   int64_t end) {                                                 \
        const REAL scale = (REAL)sigma, parts = (REAL)divisor;                                    \
        for (int64_t n = begin; n < end; n++) {                                                   \
            REAL value = total[n];                                                                \
            int agrees = (value == value) & ((value != 0) | (zero_agrees != 0));                  \
            total[n] = (agrees ? value : noise[n] * scale) / parts;                               \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    /* rows += beta * memory; out = the sum of the rows before that, where all are > 0 or all are \
       < 0 after it, else 0; which these are, and which are all 0. `stride` lies between rows,    \
       `apart` between those of the memory. Returns 0 where `out` or a row after it is not        \
       finite. */                                                                                 \
    VECTORS int64_t judge_means_##NAME(REAL *rows, int64_t stride, const REAL *memory,            \
                                       int64_t apart, int64_t domains, double beta, REAL *out,    \
                                       uint8_t *agrees, uint8_t *none, int64_t begin,             \
                                       int64_t end) {                                             \
        REAL total[BLOCK], lowest[BLOCK], highest[BLOCK];                                         \
        const REAL decay = (REAL)beta;                                                            \
        int bad = 0;                                                                              \
        for (int64_t start = begin; start < end; start += BLOCK) {                                \
            int64_t size = end - start < BLOCK ? end - start : BLOCK;                             \
            for (int64_t d = 0; d < domains; d++) {                                               \
                REAL *row = rows + d * stride + start;                                            \
                const REAL *before = memory + d * apart + start;                                  \
                FETCH_NEXT(REAL, row, BLOCK, end - start);                                        \
                FETCH_NEXT(REAL, before, BLOCK, end - start);                                     \
                for (int64_t n = 0; n < size; n++) {                                              \
                    REAL value = row[n], mean = value + decay * before[n];                        \
                    row[n] = mean;                                                                \
                    total[n] = d ? total[n] + value : value;                                      \
                    lowest[n] = d && lowest[n] < mean ? lowest[n] : mean;                         \
                    highest[n] = d && highest[n] > mean ? highest[n] : mean;                      \
                    bad |= mean * 0 != 0;                                                         \
                }                                                                                 \
            }                                                                                     \
            for (int64_t n = 0; n < size; n++) {                                                  \
                int same = (lowest[n] > 0) | (highest[n] < 0);                                    \
                REAL value = same ? total[n] : 0;                                                 \
                out[start + n] = value;                                                           \
                agrees[start + n] = (uint8_t)same;                                                \
                none[start + n] = (lowest[n] == 0) & (highest[n] == 0);                           \
                bad |= value * 0 != 0;                                                            \
            }                                                                                     \
        }                                                                                         \
        return !bad;                                                                              \
    }

DEFINE(float, float32, int32_t, INT32_MAX)
DEFINE(double, float64, int64_t, INT64_MAX)
