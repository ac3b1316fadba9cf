/* Pixels to numbers through a table, for one thread; kernels/compiled.py splits the work. */

#include <stdint.h>

/* out[i] = table[i % 3][pixels[i]] for the values begin..end, both multiples of 3: interleaved red,
   green and blue, of which the table holds the 256 results each. */
void look_up_rgb(const uint8_t *restrict pixels, const float *restrict table, float *restrict out,
                 int64_t begin, int64_t end) {
    const float *red = table, *green = table + 256, *blue = table + 512;
    for (int64_t i = begin; i < end; i += 3) {
        out[i] = red[pixels[i]];
        out[i + 1] = green[pixels[i + 1]];
        out[i + 2] = blue[pixels[i + 2]];
    }
}
