/* Chooses tokens from logits, as generation/sampling.py defines it, without sorting the vocabulary.
 *
 * Top-k and top-p keep the tokens at and above a threshold, which is found by bisection: 30 sums over the vocabulary.
 * The draw inverts the cumulative sum of the remaining probabilities in the order of the ids.
 *
 * Shapes: B sequences, V vocab_size.
 */
#include "simd.h"

enum { CHUNK = 1024 };  /* numbers summed in float32; the sums of chunks are summed in double */

/* Σ p_i over the p_i >= t. */
static double mass_from(const float *p, int size, float t)
{
    double total = 0;
    for (int start = 0; start < size; start += CHUNK) {
        int end = start + CHUNK < size ? start + CHUNK : size;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int i = start; i < end; i++) part += p[i] >= t ? p[i] : 0.0f;
        total += part;
    }
    return total;
}

/* The number of p_i >= t. */
static double count_from(const float *p, int size, float t)
{
    int count = 0;
#pragma omp simd reduction(+ : count)
    for (int i = 0; i < size; i++) count += p[i] >= t;
    return count;
}

/* Sets to zero all but the largest p_i, as few as have a `measure` of at least `need`; among equals the lowest ids are
 * kept. The p_i are between 0 and 1, where the bits of floats have the order of the floats, so the threshold, the
 * largest t with measure(t) >= need, can be bisected by its bits. */
static void cut(float *p, int size, double (*measure)(const float *, int, float), double need)
{
    uint32_t least = 0, most = bits_of(1.0f);
    while (least < most) {
        uint32_t middle = least + (most - least + 1) / 2;
        if (measure(p, size, float_of(middle)) >= need) least = middle;
        else most = middle - 1;
    }
    if (least == 0) return;  /* because of rounding, all of them together do not reach `need` */
    float t = float_of(least), next = float_of(least + 1);
    double wanted = ceil((need - measure(p, size, next)) / (measure == mass_from ? t : 1));
    double spare = count_from(p, size, t) - count_from(p, size, next) - wanted;
    for (int i = 0; i < size; i++) p[i] = p[i] >= t ? p[i] : 0;
    for (int i = size - 1; spare > 0; i--)
        if (p[i] == t) p[i] = 0, spare--;
}

/* The first token whose cumulative probability exceeds `point`; if rounding leaves none, the last one above 0. */
static int invert(const float *p, int size, double point)
{
    double before = 0, sum = 0;
    int first = 0, last = 0;
    for (int start = 0; start < size; start += CHUNK) {
        double chunk = mass_from(p + start, size - start < CHUNK ? size - start : CHUNK, 0);
        if (chunk > 0) first = start, sum = before;
        before += chunk;
        if (before > point) break;
    }
    for (int i = first; i < size && sum <= point; i++)
        if (p[i] > 0) last = i, sum += p[i];
    return last;
}

/* One row of `sample`. The logits are overwritten by probabilities, divided by the largest of them. */
static int choose(float *p, int size, double temperature, double top_p, int top_k, double uniform)
{
    float largest = -INFINITY;
    int wrong = 0;
#pragma omp simd reduction(max : largest) reduction(| : wrong)
    for (int i = 0; i < size; i++) {
        largest = p[i] > largest ? p[i] : largest;
        wrong |= p[i] != p[i];
    }
    if (wrong || isinf(largest)) return -1;
    if (temperature == 0 || top_k == 1) {
        int first = 0;
        while (p[first] < largest) first++;
        return first;
    }
    float rate = (float)fmin(1 / temperature, 3e38);
    for (int i = 0; i < size; i++) p[i] = p[i] > -INFINITY ? exponential((p[i] - largest) * rate) : 0;
    if (top_k < size) cut(p, size, count_from, top_k);
    if (top_p < 1) cut(p, size, mass_from, top_p * mass_from(p, size, 0));
    return invert(p, size, uniform * mass_from(p, size, 0));
}

/* Chooses a token from each of B rows of logits, `stride` numbers apart, which it overwrites; -1 where they are not
 * finite. Temperature 0 takes the first of the largest, top_k = V and top_p = 1 keep all. */
void sample(float *logits, int rows, int vocab_size, int stride, double temperature, double top_p, int top_k,
            const double *uniform, int32_t *tokens, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < rows; row++)
        tokens[row] = choose(logits + (size_t)row * stride, vocab_size, temperature, top_p, top_k,
                             uniform ? uniform[row] : 0);
}
