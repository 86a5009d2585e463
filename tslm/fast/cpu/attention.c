/* Causal self-attention for training, forward and backward, in which the T × T weights never reach memory.
 *
 * Queries, keys and values are read side by side, as the projection writes them. One thread computes a whole head of a
 * sequence, so no two threads add to the same number. If a sequence holds several documents, each is treated as a
 * sequence of its own. Forward, for a few queries at a time over all keys up to theirs:
 *
 *     S = q kᵀ / √K,   P = exp(S - rowmax S),   o = P v / rowsum P,   L = rowmax S + log rowsum P
 *
 * L is kept for the backward pass, one number per query. The backward pass takes PANEL queries at a time, as columns, so
 * that L and Δ = rowsum(do ∘ o) are numbers of a column, and passes over their keys a few at a time:
 *
 *     Pᵀ = exp(k qᵀ / √K - L),   dv += Pᵀ do,   dSᵀ = Pᵀ ∘ (v doᵀ - Δ),   dk += dSᵀ q / √K,   dqᵀ = kᵀ dSᵀ / √K
 *
 * The definition is ops.self_attention. A sum adds the same numbers in the same order for any number of threads.
 *
 * Shapes: B batch, T positions, H heads, K head dimension; a query, key or value is a row of K numbers.
 */
#include <omp.h>
#include "simd.h"

struct sizes { int length, heads, width; };                              /* T, H, K */

enum { HALF = PANEL / 2 };  /* where the mask ends within a panel, half of it may be left out */

/* y (rows, columns) = or += x (rows, depth) · panel (depth, columns), rows ≤ BLOCK, columns a multiple of HEAD_COLUMNS.
 * The rows of the panel are panel_stride words apart. */
static void product(int rows, const word *x, size_t x_stride, const word *panel, size_t panel_stride, int depth,
                    int columns, float *y, size_t y_stride, int add)
{
    int column = 0;
    for (; columns - column >= PANEL; column += PANEL)
        multiply_rows(rows, PANEL / LANES, panel + column, panel_stride, LANES, depth, x, x_stride, y + column,
                      y_stride, add);
    if (column < columns)
        multiply_rows(rows, HEAD_COLUMNS / LANES, panel + column, panel_stride, LANES, depth, x, x_stride, y + column,
                      y_stride, add);
}

/* Loads the T rows of one head, `stride` numbers apart, rotated by their positions unless `rotation` is null, and pads
 * them with zeros to a whole panel. */
static void load(const number *from, size_t stride, const float *rotation, const struct sizes *s, number *to)
{
    int width = s->width;
    float row[width];
    for (int t = 0; t < s->length; t++, from += stride, to += width) {
        if (!rotation) {
            memcpy(to, from, sizeof *to * width);
            continue;
        }
        for (int i = 0; i < width; i++) row[i] = get(from[i]);
        rotate(row, rotation + (size_t)t * width, width, 1, row);
        for (int i = 0; i < width; i++) to[i] = set(row[i]);
    }
    memset(to, 0, sizeof *to * width * (padded(s->length, PANEL) - s->length));
}

/* Stores the rows of a gradient, rotated back. */
static void store(float *rows, size_t row_stride, const float *rotation, const struct sizes *s, number *to,
                  size_t stride)
{
    for (int t = 0; t < s->length; t++, rows += row_stride, to += stride) {
        if (rotation) rotate(rows, rotation + (size_t)t * s->width, s->width, -1, rows);
        for (int i = 0; i < s->width; i++) to[i] = set(rows[i]);
    }
}

/* Packs rows as the columns of panels, (panels, words(K), PANEL), for a product that sums over K. K is even, so a row is
 * a whole number of words. */
static void as_columns(const number *rows, int count, int width, word *panels)
{
    const word *from = (const word *)rows;
    int depth = words(width);
    for (int first = 0; first < count; first += PANEL, panels += depth * PANEL, from += depth * PANEL)
        for (int lane = 0; lane < PANEL; lane++)
            for (int d = 0; d < depth; d++) panels[d * PANEL + lane] = from[lane * depth + d];
}

/* Packs rows as the rows of a panel, the summed dimension: (words(rows), columns); neighbours share a word. */
static void as_rows(const number *rows, int count, int width, int columns, word *panel)
{
    for (int d = 0; d < words(count); d++, panel += columns, rows += PER_WORD * width) {
#ifdef BFLOAT16
        for (int i = 0; i < width; i++) panel[i] = rows[i] | (word)rows[width + i] << 16;
#else
        memcpy(panel, rows, sizeof *panel * width);
#endif
        memset(panel + width, 0, sizeof *panel * (columns - width));
    }
}

/* Computes the weights P of a query that attends to the first `count` keys, not yet divided by their sum, and zeros up
 * to `end`. Stores the sum in `sum` and returns L. */
static float softmax(float *scores, int count, int end, float scale, number *weights, float *sum)
{
    float total = 0;
    int masked = (count - 1) / HALF * HALF;
#pragma omp simd
    for (int i = masked; i < end; i++) scores[i] = i < count ? scores[i] : -INFINITY;
    float largest = largest_of(scores, end);
#pragma omp simd
    for (int i = 0; i < end; i++) scores[i] = exponential((scores[i] - largest) * scale);
#pragma omp simd
    for (int i = masked; i < end; i++) scores[i] = i < count ? scores[i] : 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < end; i++) total += scores[i];
    for (int i = 0; i < end; i++) weights[i] = set(scores[i]);
    *sum = total;
    return largest * scale + logf(total);
}

/* Computes o and L of one head. `scratch` has attention_scratch words. */
static void forward_head(const number *q, const number *k, const number *v, size_t stride, const float *rotation,
                         const struct sizes *s, number *out, float *log_sums, word *scratch)
{
    int width = s->width, whole = padded(s->length, PANEL), columns = padded(width, HEAD_COLUMNS), depth = words(width);
    float scale = 1 / sqrtf((float)width);
    word *queries = scratch, *keys = queries + whole * depth, *values = keys + whole * depth;
    number *rows = (number *)(values + words(whole) * columns), *weights = rows + whole * width;
    float *scores = (float *)(weights + BLOCK * whole), *sums = scores + BLOCK * whole;
    load(k, stride, rotation, s, rows);
    as_columns(rows, whole, width, keys);
    load(v, stride, 0, s, rows);
    as_rows(rows, whole, width, columns, values);
    load(q, stride, rotation, s, (number *)queries);
    for (int first = 0; first < s->length; first += BLOCK) {
        int count = s->length - first < BLOCK ? s->length - first : BLOCK;
        int end = padded(first + count, HALF);
        float totals[BLOCK];
        for (int start = 0; start < end; start += PANEL)
            product(count, queries + first * depth, depth, keys + start * depth, PANEL, depth,
                    end - start < PANEL ? HALF : PANEL, scores + start, whole, 0);
        for (int r = 0; r < count; r++)
            log_sums[first + r] = softmax(scores + r * whole, first + r + 1, end, scale, weights + r * whole, totals + r);
        product(count, (word *)weights, words(whole), values, columns, words(end), columns, sums, columns, 0);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < width; i++)
                out[(size_t)(first + r) * s->heads * width + i] = set(sums[r * columns + i] / totals[r]);
    }
}

/* Computes the gradients of one head. `scratch` has attention_scratch words. */
static void backward_head(const number *q, const number *k, const number *v, size_t stride, const float *rotation,
                          const struct sizes *s, const number *out, const number *grad_out, const float *log_sums,
                          number *grad_q, number *grad_k, number *grad_v, word *scratch)
{
    int width = s->width, whole = padded(s->length, PANEL), columns = padded(width, HEAD_COLUMNS), depth = words(width);
    size_t out_stride = (size_t)s->heads * width;
    float scale = 1 / sqrtf((float)width);
    word *keys = scratch, *values = keys + whole * depth;                              /* rows */
    word *query_columns = values + whole * depth, *grad_columns = query_columns + whole * depth;
    word *query_rows = grad_columns + whole * depth, *grad_rows = query_rows + words(whole) * columns;
    word *key_columns = grad_rows + words(whole) * columns;                         /* kᵀ: (K, words(T)) */
    word *slopes = key_columns + width * words(whole);                              /* dSᵀ as rows of a panel */
    float *of_keys = (float *)(slopes + words(whole) * PANEL), *of_values = of_keys + whole * columns;
    float *of_queries = of_values + whole * columns, *deltas = of_queries + whole * columns, *logs = deltas + whole;
    float *rotated_back = logs + whole;                                                   /* dqᵀ (K, PANEL) */
    number *rows = (number *)(rotated_back + padded(width, BLOCK) * PANEL);
    load(q, stride, rotation, s, rows);
    as_columns(rows, whole, width, query_columns);
    as_rows(rows, whole, width, columns, query_rows);
    load(grad_out, out_stride, 0, s, rows);
    as_columns(rows, whole, width, grad_columns);
    as_rows(rows, whole, width, columns, grad_rows);
    for (int t = 0; t < whole; t++) {
        float delta = 0;
        if (t < s->length)
#pragma omp simd reduction(+ : delta)
            for (int i = 0; i < width; i++) delta += get(rows[t * width + i]) * get(out[t * out_stride + i]);
        deltas[t] = delta;
        logs[t] = t < s->length ? log_sums[t] : 0;  /* padding queries have q = do = 0, so P = 1 adds 0 */
    }
    load(v, stride, 0, s, (number *)values);
    load(k, stride, rotation, s, (number *)keys);
    as_rows((number *)keys, whole, width, width, slopes);
    for (int i = 0; i < width; i++)
        for (int d = 0; d < words(whole); d++) key_columns[i * words(whole) + d] = slopes[d * width + i];
    memset(of_keys, 0, sizeof *of_keys * 2 * whole * columns);
    for (int first = 0; first < whole; first += PANEL) {
        int end = first + PANEL;
        for (int key = 0; key < end; key += BLOCK) {
            int count = end - key < BLOCK ? end - key : BLOCK;  /* even: two neighbours share a word */
            int from = key < first + HALF ? 0 : HALF, size = PANEL - from;  /* queries before `from` see none of these */
            ALIGNED float scores[BLOCK * PANEL], grads[BLOCK * PANEL];
            ALIGNED number weights[BLOCK * PANEL], slope[BLOCK * PANEL];
            if (from) memset(slope, 0, sizeof slope);
            product(count, keys + key * depth, depth, query_columns + first * depth + from, PANEL, depth, size,
                    scores + from, PANEL, 0);
            product(count, values + key * depth, depth, grad_columns + first * depth + from, PANEL, depth, size,
                    grads + from, PANEL, 0);
            for (int r = 0; r < count; r++)
#pragma omp simd
                for (int i = from; i < PANEL; i++) {
                    float p = exponential(scores[r * PANEL + i] * scale - logs[first + i]);
                    p = key + r <= first + i ? p : 0;
                    weights[r * PANEL + i] = set(p);
                    slope[r * PANEL + i] = set(p * (grads[r * PANEL + i] - deltas[first + i]) * scale);
                }
            product(count, (word *)weights + words(from), words(PANEL), grad_rows + words(first + from) * columns, columns,
                    words(size), columns, of_values + key * columns, columns, 1);
            product(count, (word *)slope + words(from), words(PANEL), query_rows + words(first + from) * columns, columns,
                    words(size), columns, of_keys + key * columns, columns, 1);
            as_rows(slope, count, PANEL, PANEL, slopes + words(key) * PANEL);
        }
        for (int i = 0; i < width; i += BLOCK)
            product(width - i < BLOCK ? width - i : BLOCK, key_columns + i * words(whole), words(whole), slopes, PANEL,
                    words(end), PANEL, rotated_back + i * PANEL, PANEL, 0);
        for (int t = 0; t < PANEL; t++)
            for (int i = 0; i < width; i++) of_queries[(first + t) * columns + i] = rotated_back[i * PANEL + t];
    }
    store(of_queries, columns, rotation, s, grad_q, stride);
    store(of_keys, columns, rotation, s, grad_k, stride);
    store(of_values, columns, 0, s, grad_v, stride);
}

/* The words of scratch memory that a thread needs: the larger sum of the arrays in the two functions above. */
size_t attention_scratch(int length, int width)
{
    size_t whole = padded(length, PANEL), columns = padded(width, HEAD_COLUMNS);
    return whole * (6 * width + 6 * columns + PANEL + 2) + padded(width, BLOCK) * PANEL;
}

/* The end of the document that starts at `first`: the start of the next one, or the end of the sequence. */
static int end_of_document(const int64_t *starts, int first, int length)
{
    int end = first + 1;
    while (end < length && (!starts || starts[end] <= first)) end++;
    return end;
}

/* Writes out (B, T, H, K) and L (B, H, T) of qkv (B, T, 3, H, K). Given grad_out, reads them and writes the gradient of
 * qkv. rotation (T, K / 2, 2) and document_starts (B, T) may be null. */
void attention(int batch, int length, int heads, int width, const number *qkv, const float *rotation,
               const int64_t *document_starts, number *out, float *log_sums, const number *grad_out, number *grad, word *scratch,
               int threads)
{
    size_t row = (size_t)heads * width;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int head = 0; head < batch * heads; head++) {
        size_t sequence = (size_t)(head / heads) * length, column = (size_t)(head % heads) * width;
        word *own = scratch + omp_get_thread_num() * attention_scratch(length, width);
        for (int first = 0, end; first < length; first = end) {
            end = end_of_document(document_starts ? document_starts + sequence : 0, first, length);
            struct sizes s = {end - first, heads, width};
            const float *angles = rotation ? rotation + (size_t)first * width : 0;
            const number *q = qkv + 3 * (sequence + first) * row + column;
            size_t at = (sequence + first) * row + column;
            float *logs = log_sums + (size_t)head * length + first;
            if (grad_out) {
                number *to = grad + 3 * (sequence + first) * row + column;
                backward_head(q, q + row, q + 2 * row, 3 * row, angles, &s, out + at, grad_out + at, logs, to,
                              to + row, to + 2 * row, own);
            } else {
                forward_head(q, q + row, q + 2 * row, 3 * row, angles, &s, out + at, logs, own);
            }
        }
    }
}
