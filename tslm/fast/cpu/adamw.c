/* AdamW's update of all parameters in one pass over memory. The definition is optim.adamw.adamw_step.
 *
 * Each entry is computed by itself, so the number of threads changes no bit. All numbers are float32.
 */
#include <omp.h>
#include <math.h>
#include <stdint.h>

/* β₁, 1 - β₁, β₂, 1 - β₂, ε and 1 - α λ; the differences would lose digits in float32. */
struct factors { float beta1, of_gradient, beta2, of_square, eps, decay; };

static void update(int64_t size, float *restrict theta, const float *restrict gradient, float *restrict mean,
                   float *restrict square, float rate, struct factors f)
{
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        float g = gradient[i];
        mean[i] = mean[i] * f.beta1 + g * f.of_gradient;
        square[i] = square[i] * f.beta2 + g * g * f.of_square;
        theta[i] = (theta[i] - rate * mean[i] / (sqrtf(square[i]) + f.eps)) * f.decay;
    }
}

/* `count` parameters of `sizes` entries; theirs are `rates`, α_t. The threads divide all entries evenly. */
void adamw(int count, const int64_t *sizes, float *const *theta, float *const *gradients, float *const *means,
           float *const *squares, const float *rates, const struct factors *factors, int threads)
{
    int64_t total = 0;
    for (int each = 0; each < count; each++) total += sizes[each];
#pragma omp parallel num_threads(threads)
    {
        int64_t from = total * omp_get_thread_num() / omp_get_num_threads();
        int64_t to = total * (omp_get_thread_num() + 1) / omp_get_num_threads(), start = 0;
        for (int each = 0; each < count; start += sizes[each++]) {
            int64_t first = from > start ? from - start : 0, end = to < start + sizes[each] ? to - start : sizes[each];
            if (first < end)
                update(end - first, theta[each] + first, gradients[each] + first, means[each] + first,
                       squares[each] + first, rates[each], *factors);
        }
    }
}
