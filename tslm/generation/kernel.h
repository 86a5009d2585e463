/* What kernel.c and kernel_sampling.c share: the exponential, and numbers as words.
 *
 * The weights are multiplied as float32 or, compiled with -DBFLOAT16, as bfloat16. A word has 32 bits and holds
 * PER_WORD numbers that are neighbours along the summed dimension: one float32, or two bfloat16.
 */
#ifndef TSLM_KERNEL_H
#define TSLM_KERNEL_H

#include <stdint.h>
#include <string.h>

typedef uint32_t word;

#ifdef BFLOAT16
enum { PER_WORD = 2 };
#else
enum { PER_WORD = 1 };
#endif

static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }

/* e^x, with x first put between -87 and 88: x = n ln 2 + r with n whole and |r| <= ln 2 / 2, then 2^n in the exponent's
 * bits times the Taylor polynomial of e^r. No branch and no call, so the compiler vectorises loops over it; the relative
 * error is below 3e-7. ln 2 is subtracted in two parts, the first of which n multiplies without rounding. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float round = 12582912.0f;  /* 1.5 · 2^23: what is added to it loses its fraction */
    float n = (x * 1.44269504f + round) - round;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float power = 1.0f + r * (1.0f + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r / 720)))));
    return power * float_of((uint32_t)((int32_t)n + 127) << 23);
}

#endif
