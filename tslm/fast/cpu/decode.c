/* The forward pass of tslm/model/transformer.py for generation: the logits of the next token of each sequence.
 *
 * One call takes N tokens, each with its sequence and its position. In a decoding step these are the newest tokens of
 * all sequences; for a prompt they are all its tokens. Keys and values are stored in a static cache, and a token attends
 * to the slots of its sequence up to its own position. Per layer
 *
 *     n = RMSNorm(x),   x += W_o attention(RoPE(W_q n), RoPE(W_k n), W_v n)
 *     n = RMSNorm(x),   x += W_2 (SiLU(W_1 n) ∘ W_3 n)
 *
 * With one sequence a step takes as long as reading every weight once, so the weights are stored in the order in which
 * they are read. With many sequences it takes as long as the multiplications, so a weight in a register serves up to
 * BLOCK tokens. Residual stream, sums and softmax are float32. A token's result depends on neither its neighbours nor
 * the number of threads, because each sum adds the same numbers in the same order.
 *
 * Shapes: N tokens, D d_model, H heads, K head dimension, F d_ff, V vocab_size, C slots of the cache.
 * A panel is PANEL columns of a matrix product, words (depth, PANEL); depth counts words along the summed dimension.
 */
#include "simd.h"

struct layer {                                   /* decoder.py has the same two structures */
    const float *ln1, *ln2;                      /* gains (D) */
    const word *qkv, *output, *gate_up, *down;   /* panels of (3D, D), (D, D), (2F, D), (D, F) */
};

struct model {
    int32_t d_model, num_layers, num_heads, d_ff, vocab_size, batch, capacity, threads;  /* capacity: C, whole panels */
    float eps;
    const float *embeddings, *rotation, *ln_final;  /* (V, D), cosines and sines (context, K/2, 2), (D) */
    const word *head;                               /* panels of (V, D) */
    const struct layer *layers;
    word *keys;            /* (layers, batch, H, C / LANES, K / PER_WORD, LANES): LANES slots of a head are adjacent */
    word *values;          /* (layers, batch, H, C / PER_WORD, K padded) */
    float *x, *wide;       /* scratch for N tokens: residual stream (N, D padded), results (N, max(3D, 2F) padded) */
    word *input;           /* the left factor of the next product: (N, words of max(D, F)) */
};

static inline void put(word *to, int part, float x)
{
    number rounded = set(x);
    memcpy((char *)to + sizeof rounded * part, &rounded, sizeof rounded);
}

static void to_words(const float *from, int size, word *to)
{
#ifdef BFLOAT16
    for (int i = 0; i < size / 2; i++) to[i] = rounded(from[2 * i]) | rounded(from[2 * i + 1]) << 16;
    if (size % 2) to[size / 2] = rounded(from[size - 1]);
#else
    memcpy(to, from, sizeof(float) * size);
#endif
}

/* y (N, columns) = or += x (N, depth) · Wᵀ, a panel at a time. Shared: every thread calls the function, does a part, and
 * returns when all parts are done; the same holds for all functions below that say so. */
static void linear(const word *x, int depth, int tokens, const word *weight, int columns, float *y, int add)
{
    size_t stride = padded(columns, PANEL);
#pragma omp for schedule(static)
    for (int column = 0; column < columns; column += PANEL)
        for (int row = 0; row < tokens; row += BLOCK)
            multiply_rows(tokens - row, PANEL / LANES, weight + (size_t)column * depth, PANEL, LANES, depth,
                          x + (size_t)row * depth, depth, y + row * stride + column, stride, add);
}

/* input = RMSNorm(x) = x / √(mean(x²) + eps) ∘ gain for the rows of x in `rows`, or the first N if it is null; shared. */
static void normalise(const struct model *m, const float *gain, int tokens, const int32_t *rows)
{
    int size = m->d_model;
#pragma omp for schedule(static)
    for (int row = 0; row < tokens; row++) {
        const float *x = m->x + (size_t)(rows ? rows[row] : row) * padded(size, PANEL);
        float rate = inverse_rms(x, size, m->eps), normal[size];
        for (int i = 0; i < size; i++) normal[i] = x[i] * rate * gain[i];
        to_words(normal, size, m->input + (size_t)row * words(size));
    }
}

/* Prefetches `size` words into the second-level cache. */
static inline void fetch(const word *from, size_t size)
{
    for (size_t i = 0; i < size; i += LANES) __builtin_prefetch(from + i, 0, 2);
}

/* out = softmax(q Kᵀ / √K) V over the first `slots` slots of one head, as words. The scores of PANEL slots are one
 * product, with their keys as its panel; the weighted sum of their values is another, with the values as its panel.
 * Meanwhile the next head's slots are prefetched, because the slots of many sequences exceed the processor's cache. */
static void attend(const word *keys, const word *next_keys, const word *values, const word *next_values, int capacity,
                   int slots, const float *query, int size, word *out)
{
    int columns = padded(size, HEAD_COLUMNS);
    float scores[capacity], sums[columns], total = 0, scale = 1 / sqrtf((float)size);
    word q[size], weights[capacity];
    to_words(query, size, q);
    size_t together = (size_t)LANES * words(size), rows = PANEL / PER_WORD;  /* words of LANES keys, rows of values */
    for (int slot = 0; slot < slots; slot += PANEL, keys += PANEL / LANES * together) {
        fetch(next_keys + (size_t)slot * words(size), PANEL / LANES * together);
        multiply(1, PANEL / LANES, keys, LANES, together, words(size), q, 0, scores + slot, 0, 0);
    }
    float largest = largest_of(scores, slots);
#pragma omp simd reduction(+ : total)
    for (int slot = 0; slot < slots; slot++) total += scores[slot] = exponential((scores[slot] - largest) * scale);
    to_words(scores, slots, weights);
    for (int slot = 0; slot < slots; slot += PANEL, values += rows * columns, next_values += rows * columns) {
        int depth = words(slots - slot < PANEL ? slots - slot : PANEL);
        fetch(next_values, rows * columns);
        for (int column = 0; column < columns; column += HEAD_COLUMNS)
            multiply(1, HEAD_COLUMNS / LANES, values + column, columns, LANES, depth, weights + slot / PER_WORD, 0,
                     sums + column, 0, slot > 0);
    }
    for (int i = 0; i < size; i++) sums[i] /= total;
    to_words(sums, size, out);
}

/* input = attention of N tokens whose queries, keys and values are in `wide`. All new keys and values are stored in the
 * cache before any token attends; shared. */
static void attention(const struct model *m, int layer, int tokens, const int32_t *sequences, const int32_t *positions)
{
    int heads = m->num_heads, size = m->d_model / heads, columns = padded(size, HEAD_COLUMNS), capacity = m->capacity;
    size_t stride = padded(3 * m->d_model, PANEL), first = (size_t)layer * m->batch * heads;
    size_t key_words = (size_t)words(size) * capacity, value_words = (size_t)capacity / PER_WORD * columns;
#pragma omp for schedule(static) collapse(2)
    for (int row = 0; row < tokens; row++)
        for (int head = 0; head < heads; head++) {
            int slot = positions[row];
            size_t part = first + (size_t)sequences[row] * heads + head;
            word *keys = m->keys + part * key_words + (size_t)(slot / LANES) * LANES * words(size) + slot % LANES;
            word *values = m->values + part * value_words + (size_t)(slot / PER_WORD) * columns;
            const float *key = m->wide + row * stride + m->d_model + head * size, *value = key + m->d_model;
            float rotated[size];
            rotate(key, m->rotation + (size_t)slot * size, size, 1, rotated);
            for (int i = 0; i < size; i++) put(keys + i / PER_WORD * LANES, i % PER_WORD, rotated[i]);
            for (int i = 0; i < size; i++) put(values + i, slot % PER_WORD, value[i]);
        }
#pragma omp for schedule(static) collapse(2)
    for (int row = 0; row < tokens; row++)
        for (int head = 0; head < heads; head++) {
            size_t part = first + (size_t)sequences[row] * heads + head;
            const word *keys = m->keys + part * key_words, *values = m->values + part * value_words;
            float query[size];
            rotate(m->wide + row * stride + head * size, m->rotation + (size_t)positions[row] * size, size, 1, query);
            attend(keys, keys + key_words, values, values + value_words, capacity, positions[row] + 1, query, size,
                   m->input + ((size_t)row * heads + head) * words(size));
        }
}

/* input = SiLU(gate) ∘ up with SiLU(g) = g sigmoid(g), gate and up (N, F) side by side in `wide`; shared. */
static void activate(const struct model *m, int tokens)
{
    int size = m->d_ff;
    size_t stride = padded(2 * size, PANEL);
#pragma omp for schedule(static) collapse(2)
    for (int row = 0; row < tokens; row++)
        for (int start = 0; start < size; start += PANEL) {
            const float *gate = m->wide + row * stride + start, *up = gate + size;
            int count = size - start < PANEL ? size - start : PANEL;
            float product[PANEL];
            for (int i = 0; i < count; i++) product[i] = gate[i] * sigmoid(gate[i]) * up[i];
            to_words(product, count, m->input + (size_t)row * words(size) + start / PER_WORD);
        }
}

/* Logits (outputs, V padded) after the tokens of the rows in `last`. */
void forward(const struct model *m, int tokens, const int32_t *ids, const int32_t *sequences, const int32_t *positions,
             int outputs, const int32_t *last, float *logits)
{
    int size = m->d_model;
#pragma omp parallel num_threads(m->threads)
    {
#pragma omp for schedule(static)
        for (int row = 0; row < tokens; row++)
            memcpy(m->x + (size_t)row * padded(size, PANEL), m->embeddings + (size_t)ids[row] * size,
                   sizeof(float) * size);
        for (int i = 0; i < m->num_layers; i++) {
            const struct layer *layer = m->layers + i;
            normalise(m, layer->ln1, tokens, 0);
            linear(m->input, words(size), tokens, layer->qkv, 3 * size, m->wide, 0);
            attention(m, i, tokens, sequences, positions);
            linear(m->input, words(size), tokens, layer->output, size, m->x, 1);
            normalise(m, layer->ln2, tokens, 0);
            linear(m->input, words(size), tokens, layer->gate_up, 2 * m->d_ff, m->wide, 0);
            activate(m, tokens);
            linear(m->input, words(m->d_ff), tokens, layer->down, size, m->x, 1);
        }
        normalise(m, m->ln_final, outputs, last);
        linear(m->input, words(size), outputs, m->head, m->vocab_size, logits, 0);
    }
}

/* Writes a weight (rows, size) as the columns from `first` on of a product's panels, in small pieces, so that reads and
 * writes stay near each other. */
void pack(const float *weight, int rows, int size, int first, word *panels, int threads)
{
    enum { PIECE = 16 };
    int depth = words(size);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int panel = first / PANEL; panel <= (first + rows - 1) / PANEL; panel++)
        for (int start = 0; start < depth; start += PIECE)
            for (int lane = 0; lane < PANEL; lane++) {
                int row = panel * PANEL + lane - first, count = depth - start < PIECE ? depth - start : PIECE;
                if (row < 0 || row >= rows) continue;
                int numbers = size - start * PER_WORD < count * PER_WORD ? size - start * PER_WORD : count * PER_WORD;
                word piece[PIECE], *to = panels + ((size_t)panel * depth + start) * PANEL + lane;
                to_words(weight + (size_t)row * size + start * PER_WORD, numbers, piece);
                for (int d = 0; d < count; d++) to[(size_t)d * PANEL] = piece[d];
            }
}
