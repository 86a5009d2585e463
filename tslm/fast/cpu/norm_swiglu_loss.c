/* RMSNorm, SwiGLU and cross-entropy for training, forward and backward, each in one pass over memory. The definitions
 * are in ops.py and objective.py, the derivatives in kernels.py.
 *
 * A sum adds the same numbers in the same order for any number of threads.
 *
 * Shapes: N rows, D d_model, F d_ff, V vocab_size.
 */
#include <omp.h>
#include "simd.h"

enum { CHUNK = 1024 };  /* numbers summed before their sum is added to the total, which keeps rounding errors small */

/* y = x r ∘ gain with r = 1 / √(mean(x²) + eps), which is stored in `rates`; x and r are float32. */
void rms_norm_forward(int rows, int size, const float *x, const float *gain, float eps, number *y, float *rates,
                      int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < rows; row++) {
        const float *from = x + (size_t)row * size;
        number *to = y + (size_t)row * size;
        float rate = inverse_rms(from, size, eps);
        for (int i = 0; i < size; i++) to[i] = set(from[i] * rate * gain[i]);
        rates[row] = rate;
    }
}

/* With n = x r:  dx = r (dy ∘ gain - n mean(dy ∘ gain ∘ n)), and the sums of dy ∘ n over every `rows_per_sum` rows,
 * (N / rows_per_sum rounded up, D), which add up to dgain. */
void rms_norm_backward(int rows, int size, const float *x, const float *gain, const float *rates, const number *grad_y,
                       float *grad_x, float *grad_gains, int rows_per_sum, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int first = 0; first < rows; first += rows_per_sum) {
        float *grad_gain = grad_gains + (size_t)(first / rows_per_sum) * size;
        memset(grad_gain, 0, sizeof *grad_gain * size);
        for (int row = first; row < rows && row < first + rows_per_sum; row++) {
            const float *from = x + (size_t)row * size;
            const number *grad = grad_y + (size_t)row * size;
            float *to = grad_x + (size_t)row * size, rate = rates[row], product = 0;
#pragma omp simd reduction(+ : product)
            for (int i = 0; i < size; i++) {
                float each = get(grad[i]) * (from[i] * rate);
                grad_gain[i] += each;
                product += each * gain[i];
            }
            float mean = product / size;
            for (int i = 0; i < size; i++) to[i] = rate * (get(grad[i]) * gain[i] - from[i] * rate * mean);
        }
    }
}

/* y = g s u with s = sigmoid(g), for g and u side by side (N, 2F). */
void swiglu_forward(int rows, int size, const number *gate_up, number *y, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < rows; row++) {
        const number *gate = gate_up + (size_t)row * 2 * size, *up = gate + size;
        number *to = y + (size_t)row * size;
        for (int i = 0; i < size; i++) {
            float g = get(gate[i]);
            to[i] = set(g * sigmoid(g) * get(up[i]));
        }
    }
}

/* du = dy ∘ g s,  dg = dy ∘ u ∘ (s + g s (1 - s)), side by side. `y` (N, F) holds dy and is overwritten with y itself,
 * which the gradient of the down projection needs; so y is not kept from the forward pass. */
void swiglu_backward(int rows, int size, const number *gate_up, number *y, number *grad, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int row = 0; row < rows; row++) {
        const number *gate = gate_up + (size_t)row * 2 * size, *up = gate + size;
        number *both = y + (size_t)row * size, *grad_gate = grad + (size_t)row * 2 * size, *grad_up = grad_gate + size;
        for (int i = 0; i < size; i++) {
            float g = get(gate[i]), u = get(up[i]), dy = get(both[i]), s = sigmoid(g), activated = g * s;
            grad_up[i] = set(dy * activated);
            grad_gate[i] = set(dy * u * (s + activated * (1 - s)));
            both[i] = set(activated * u);
        }
    }
}

/* -log softmax(logits)[target] of each row (N, V). With `with_gradient` the logits are overwritten with
 * softmax(logits) - onehot(target). `scratch` has V floats per thread. Returns a row whose target is outside 0 … V-1, or
 * -1. */
int cross_entropy(int rows, int size, number *logits, const int64_t *targets, float *losses, int with_gradient,
                  float *scratch, int threads)
{
    int wrong = -1;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : wrong)
    for (int row = 0; row < rows; row++) {
        number *from = logits + (size_t)row * size;
        float *exps = scratch + (size_t)omp_get_thread_num() * size, largest = -INFINITY, total = 0;
        int64_t target = targets[row];
        if (target < 0 || target >= size) {
            wrong = row;
            continue;
        }
#pragma omp simd reduction(max : largest)
        for (int i = 0; i < size; i++) {
            float x = get(from[i]);
            largest = x > largest ? x : largest;
        }
        for (int start = 0; start < size; start += CHUNK) {
            int end = start + CHUNK < size ? start + CHUNK : size;
            float part = 0;
#pragma omp simd reduction(+ : part)
            for (int i = start; i < end; i++) part += exps[i] = exponential(get(from[i]) - largest);
            total += part;
        }
        losses[row] = logf(total) - (get(from[target]) - largest);
        if (!with_gradient) continue;
        exps[target] -= total;
        float rate = 1 / total;
        for (int i = 0; i < size; i++) from[i] = set(exps[i] * rate);
    }
    return wrong;
}
