/* Shared by all C kernels: numbers as words, functions of numbers and rows, and the product of small matrices.
 *
 * Activations and factors are float32 or, compiled with -DBFLOAT16, bfloat16. A word has 32 bits and holds PER_WORD
 * neighbours along the summed dimension: one float32, or two bfloat16. Sums are float32.
 */
#ifndef TSLM_SIMD_H
#define TSLM_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef BFLOAT16
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

typedef uint32_t __attribute__((may_alias)) word;  /* may_alias: numbers are also read as words */

/* The columns of a product are stored in panels of PANEL columns and processed LANES at a time. A vector register holds
 * PART sums, and SUMS registers are free for sums. */
#if defined(__AVX512F__)
enum { PART = 16, SUMS = 24 };
#elif defined(__AVX__)
enum { PART = 8, SUMS = 12 };
#else
enum { PART = 4, SUMS = 24 };
#endif
enum { LANES = 16, PANEL = 64, PARTS = LANES / PART };
enum { BLOCK = 6, HEAD_COLUMNS = 32 };  /* most rows of a product at once; the columns of a head are padded to a multiple */

typedef float part __attribute__((vector_size(4 * PART)));

static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline int padded(int size, int to) { return (size + to - 1) / to * to; }

/* e^x for x clamped to -87 … 88: x = n ln 2 + r with n whole and |r| <= ln 2 / 2, then 2^n in the exponent's
 * bits times the Taylor polynomial of e^r. No branch and no call, so the compiler vectorises loops over it; the relative
 * error is below 3e-7. ln 2 is subtracted in two parts, the first of which n multiplies without rounding. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float round = 12582912.0f;  /* 1.5 · 2^23: a number added to it loses its fraction */
    float n = (x * 1.44269504f + round) - round;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float power = 1.0f + r * (1.0f + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r / 720)))));
    return power * float_of((uint32_t)((int32_t)n + 127) << 23);
}

static inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

/* Rotates each pair (a, b) of a row to (a cos - b sin, a sin + b cos), or with sign -1 by the opposite angle. */
static inline void rotate(const float *from, const float *rotation, int width, float sign, float *to)
{
    for (int i = 0; i < width; i += 2) {
        float a = from[i], b = from[i + 1], cosine = rotation[i], sine = sign * rotation[i + 1];
        to[i] = a * cosine - b * sine;
        to[i + 1] = a * sine + b * cosine;
    }
}

/* 1 / √(mean(x²) + eps), by which RMSNorm multiplies x. */
static inline float inverse_rms(const float *x, int size, float eps)
{
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < size; i++) squares += x[i] * x[i];
    return 1 / sqrtf(squares / size + eps);
}

static inline float largest_of(const float *x, int size)
{
    float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < size; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

#ifdef BFLOAT16
enum { PER_WORD = 2 };
typedef uint16_t number;

static inline uint32_t rounded(float x)          /* to the nearest bfloat16, ties to even */
{
    uint32_t bits = bits_of(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline float get(number x) { return float_of((uint32_t)x << 16); }
static inline number set(float x) { return (number)rounded(x); }

INLINE part multiply_add(part sum, const word *weights, word x)
{
    __m512bh left = (__m512bh)_mm512_loadu_si512(weights), right = (__m512bh)_mm512_set1_epi32((int)x);
    return (part)_mm512_dpbf16_ps((__m512)sum, left, right);
}
#else
enum { PER_WORD = 1 };
typedef float number;

static inline float get(number x) { return x; }
static inline number set(float x) { return x; }

INLINE part multiply_add(part sum, const word *weights, word x)
{
    part left;
    memcpy(&left, weights, sizeof left);
    return sum + left * float_of(x);
}
#endif

static inline int words(int size) { return (size + PER_WORD - 1) / PER_WORD; }

INLINE void multiply_at_once(int rows, int vectors, const word *panel, size_t depth_stride, size_t vector_stride,
                             int depth, const word *x, size_t x_stride, float *y, size_t y_stride, int add)
{
    part sums[BLOCK][PANEL / LANES * PARTS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < vectors * PARTS; p++) sums[r][p] = (part){0};
    for (int d = 0; d < depth; d++, panel += depth_stride)
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < vectors * PARTS; p++)
                sums[r][p] = multiply_add(sums[r][p], panel + vector_stride * (p / PARTS) + p % PARTS * PART,
                                          x[r * x_stride + d]);
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < vectors * PARTS; p++) {
            float *to = y + r * y_stride + PART * p;
            part before = {0};
            if (add) memcpy(&before, to, sizeof before);
            before += sums[r][p];
            memcpy(to, &before, sizeof before);
        }
}

/* y (rows, vectors · LANES) = or += x (rows, depth) · panel (depth, vectors · LANES). `rows` and `vectors` are
 * constants at every call, so that the sums stay in registers; if these are too few, one vector is computed at a time. */
INLINE void multiply(int rows, int vectors, const word *panel, size_t depth_stride, size_t vector_stride, int depth,
                     const word *x, size_t x_stride, float *y, size_t y_stride, int add)
{
    if (vectors > 1 && rows * vectors * PARTS > SUMS) {
        for (int v = 0; v < vectors; v++)
            multiply_at_once(rows, 1, panel + vector_stride * v, depth_stride, 0, depth, x, x_stride, y + LANES * v,
                             y_stride, add);
        return;
    }
    multiply_at_once(rows, vectors, panel, depth_stride, vector_stride, depth, x, x_stride, y, y_stride, add);
}

/* The same for 1 to BLOCK rows, where the number need not be a constant. */
INLINE void multiply_rows(int rows, int vectors, const word *panel, size_t depth_stride, size_t vector_stride, int depth,
                          const word *x, size_t x_stride, float *y, size_t y_stride, int add)
{
    switch (rows) {
#define ROWS(n) multiply(n, vectors, panel, depth_stride, vector_stride, depth, x, x_stride, y, y_stride, add)
    case 1: ROWS(1); break;
    case 2: ROWS(2); break;
    case 3: ROWS(3); break;
    case 4: ROWS(4); break;
    case 5: ROWS(5); break;
    default: ROWS(BLOCK);
#undef ROWS
    }
}

#endif
