/* Images changed at random, for one thread; what becomes of them is drawn in data/augmentation.py,
   whose functions of the same names do the same to the same bits. */

#include "vectors.h"

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

INLINE float whole(float value) { /* from 0 to 255 */
    value = value < 0.0f ? 0.0f : value;
    return floorf(value > 255.0f ? 255.0f : value);
}

INLINE float between(float low, float high, float share) {
    float first = low * (1.0f - share), second = high * share;
    return first + second;
}

INLINE float grey_of(const float *image, int64_t n, int64_t i) {
    float red = image[i] * 0.2989f, green = image[n + i] * 0.587f;
    float blue = image[2 * n + i] * 0.114f;
    return floorf((red + green) + blue);
}

INLINE void bright(float *image, int64_t n, float factor) {
    for (int64_t i = 0; i < 3 * n; i++) image[i] = whole(image[i] * factor);
}

INLINE void contrasted(float *image, int64_t n, float factor) {
    int64_t total = 0;
    for (int64_t start = 0; start < n; start += 4096) { /* sums that 32 bits hold */
        int32_t part = 0;
        for (int64_t i = start; i < n && i < start + 4096; i++)
            part += (int32_t)grey_of(image, n, i);
        total += part;
    }
    float other = (float)total * (float)(1.0 / (double)n) * (1.0f - factor);
    for (int64_t i = 0; i < 3 * n; i++) image[i] = whole(image[i] * factor + other);
}

INLINE void saturated(float *image, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) {
        float other = grey_of(image, n, i) * (1.0f - factor);
        for (int64_t at = i; at < 3 * n; at += n) image[at] = whole(image[at] * factor + other);
    }
}

INLINE float turned_channel(float largest, float range, float hue, float offset) {
    float k = hue + offset;
    k = k - floorf(k * (float)(1.0 / 6.0)) * 6.0f;
    float other = 4.0f - k;
    k = k < other ? k : other;
    k = k < 0.0f ? 0.0f : k > 1.0f ? 1.0f : k;
    return floorf((largest - k * range) * (float)(255.999 / 255.0));
}

INLINE void turned(float *image, int64_t n, float factor) {
    float turn = factor * 6.0f;
    for (int64_t i = 0; i < n; i++) {
        float red = image[i], green = image[n + i], blue = image[2 * n + i];
        float largest = red > green ? red : green, smallest = red < green ? red : green;
        largest = largest > blue ? largest : blue;
        smallest = smallest < blue ? smallest : blue;
        float range = largest - smallest, divisor = range > 1.0f ? range : 1.0f;
        float r = (largest - red) / divisor, g = (largest - green) / divisor;
        float b = (largest - blue) / divisor;
        float hue = largest == green ? (r - b) + 2.0f : (g - r) + 4.0f;
        hue = (largest == red ? b - g : hue) + turn;
        image[i] = turned_channel(largest, range, hue, 5.0f);
        image[n + i] = turned_channel(largest, range, hue, 3.0f);
        image[2 * n + i] = turned_channel(largest, range, hue, 1.0f);
    }
}

INLINE void grey(float *image, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        image[i] = grey_of(image, n, i);
        image[n + i] = image[2 * n + i] = image[i];
    }
}

/* The images begin..end of those at `pixels`, rows of interleaved colours, changed into `out`.

   neighbours: [vertical, horizontal][low, high, share][images][size]; rows and columns of all
       images are counted one after the other.
   order, factors: [images][4]; grey: [images]; none of them is looked at without `colours`.
   scratch: for 3 * size * (size + 1) numbers. */
VECTORS void change_images(const uint8_t *pixels, uint8_t *out, int64_t images, int64_t size,
                           const double *neighbours, int64_t colours, const int64_t *order,
                           const float *factors, const uint8_t *greys, float *scratch,
                           int64_t begin, int64_t end) {
    int64_t n = size * size, width = 3 * size, table = images * size;
    float *image = scratch, *row = scratch + 3 * n;
    for (int64_t each = begin; each < end; each++) {
        const double *vertical = neighbours + each * size;
        const double *horizontal = vertical + 3 * table;
        for (int64_t y = 0; y < size; y++) {
            const uint8_t *low = pixels + (int64_t)vertical[y] * width;
            const uint8_t *high = pixels + (int64_t)vertical[table + y] * width;
            float share = (float)vertical[2 * table + y];
            for (int64_t x = 0; x < width; x++) row[x] = between(low[x], high[x], share);
            for (int64_t x = 0; x < size; x++) {
                int64_t before = 3 * ((int64_t)horizontal[x] - each * size);
                int64_t behind = 3 * ((int64_t)horizontal[table + x] - each * size);
                float across = (float)horizontal[2 * table + x];
                for (int64_t c = 0; c < 3; c++)
                    image[c * n + y * size + x] =
                        rintf(between(row[before + c], row[behind + c], across));
            }
        }
        for (int64_t turn = 0; colours && turn < 4; turn++) {
            int64_t which = order[4 * each + turn];
            float factor = factors[4 * each + which];
            if (which == 0) bright(image, n, factor);
            if (which == 1) contrasted(image, n, factor);
            if (which == 2) saturated(image, n, factor);
            if (which == 3) turned(image, n, factor);
        }
        if (colours && greys[each]) grey(image, n);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < 3; c++)
                out[3 * (each * n + i) + c] = (uint8_t)image[c * n + i];
    }
}
