/* Applies the merges of BPE to words, as tokenizer/bpe.py defines it: of all pairs of neighbours merge the one with the
 * lowest rank, the leftmost of several; repeat until no pair has a rank.
 *
 * A short word searches all its pairs for each merge. A long one keeps them in a heap, for n tokens in n log n.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SHORT = 48 };  /* bytes */

static const uint64_t FREE = UINT64_MAX, MULTIPLIER = 0x9E3779B97F4A7C15u;

typedef struct { uint64_t key; int64_t rank; } Cell;

/* A symbol stands for a token; one below 256 is a byte. The pair of rank r is lefts[r], rights[r]; it becomes
 * merged[r]. */
typedef struct {
    Cell *cells;          /* a hash table of 2^(64 - shift) slots: the ranks of pairs, with linear probing */
    int32_t *byte_ranks;  /* of left * 256 + right */
    const int32_t *lefts, *rights, *merged;
    int64_t shift, never; /* never: the number of ranks, and the rank of a pair that is not merged */
} Merges;

static inline Cell *cell_of(const Merges *m, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)left << 32 | (uint32_t)right;
    uint64_t at = (key ^ key >> 29) * MULTIPLIER >> m->shift;
    while (m->cells[at].key != key && m->cells[at].key != FREE) at = (at + 1) & (UINT64_MAX >> m->shift);
    return m->cells + at;
}

static inline int32_t rank_of(const Merges *m, int32_t left, int32_t right)
{
    return (int32_t)cell_of(m, left, right)->rank;
}

/* Fills the tables of ranks. Pairs are distinct. */
void prepare_merges(const Merges *m)
{
    for (uint64_t i = 0; i <= UINT64_MAX >> m->shift; i++) m->cells[i] = (Cell){FREE, m->never};
    for (int32_t rank = 0; rank < m->never; rank++)
        *cell_of(m, m->lefts[rank], m->rights[rank]) =
            (Cell){(uint64_t)m->lefts[rank] << 32 | (uint32_t)m->rights[rank], rank};
    for (int32_t pair = 0; pair < 256 * 256; pair++) m->byte_ranks[pair] = rank_of(m, pair >> 8, pair & 255);
}

/* Merges `symbols` in place and returns how many are left. */
static int merge_short(const Merges *m, int32_t *symbols, int size)
{
    int32_t ranks[SHORT];
    for (int i = 0; i + 1 < size; i++) ranks[i] = m->byte_ranks[symbols[i] << 8 | symbols[i + 1]];
    while (size > 1) {
        int32_t lowest = (int32_t)m->never;
        int at = 0;
        for (int i = 0; i + 1 < size; i++) lowest = ranks[i] < lowest ? ranks[i] : lowest;
        if (lowest == m->never) break;
        while (ranks[at] != lowest) at++;
        symbols[at] = m->merged[lowest];
        size--;
        memmove(symbols + at + 1, symbols + at + 2, (size_t)(size - at - 1) * sizeof *symbols);
        memmove(ranks + at, ranks + at + 1, (size_t)(size - at - 1) * sizeof *ranks);
        if (at > 0) ranks[at - 1] = rank_of(m, symbols[at - 1], symbols[at]);
        if (at + 1 < size) ranks[at] = rank_of(m, symbols[at], symbols[at + 1]);
    }
    return size;
}

/* An entry of the heap is rank * 2^32 + position: smaller for the lower rank, then for the position further left. */
static void push(uint64_t *heap, int64_t *count, int32_t rank, int64_t position)
{
    uint64_t entry = (uint64_t)rank << 32 | (uint64_t)position;
    int64_t i = (*count)++;
    for (; i > 0 && entry < heap[(i - 1) / 2]; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = entry;
}

static uint64_t pop(uint64_t *heap, int64_t *count)
{
    uint64_t first = heap[0], last = heap[--*count];
    int64_t i = 0, child;
    for (; (child = 2 * i + 1) < *count; i = child) {
        child += child + 1 < *count && heap[child + 1] < heap[child];
        if (heap[child] >= last) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return first;
}

typedef struct { int32_t before, after; } Link;

/* Merges `symbols` in place and returns how many are left. `links` has room for as many. `heap` has room for three times
 * as many: each pair enters at the start, and each merge makes two new pairs. */
static int64_t merge_long(const Merges *m, int32_t *symbols, Link *links, uint64_t *heap, int64_t size)
{
    int64_t count = 0, left = 0;
    for (int64_t i = 0; i < size; i++) {
        links[i] = (Link){(int32_t)(i - 1), (int32_t)(i + 1)};
        int32_t rank = i + 1 < size ? m->byte_ranks[symbols[i] << 8 | symbols[i + 1]] : (int32_t)m->never;
        if (rank != m->never) push(heap, &count, rank, i);
    }
    while (count > 0) {
        uint64_t entry = pop(heap, &count);
        int64_t at = entry & UINT32_MAX, right = links[at].after;
        int32_t rank = (int32_t)(entry >> 32);
        if (symbols[at] < 0 || right == size || rank_of(m, symbols[at], symbols[right]) != rank)
            continue;  /* one of the two has been merged since */
        symbols[at] = m->merged[rank];
        symbols[right] = -1;
        int64_t following = links[right].after, preceding = links[at].before;
        links[at].after = (int32_t)following;
        if (following < size) {
            links[following].before = (int32_t)at;
            if ((rank = rank_of(m, symbols[at], symbols[following])) != m->never) push(heap, &count, rank, at);
        }
        if (preceding >= 0 && (rank = rank_of(m, symbols[preceding], symbols[at])) != m->never)
            push(heap, &count, rank, preceding);
    }
    for (int64_t i = 0; i < size; i = links[i].after) symbols[left++] = symbols[i];
    return left;
}

/* Merges each of `count` words, which fill a text; `bounds` has the start of each and the end of the last one. `symbols`
 * has room for all bytes, and receives the joined symbols; `counts` receives how many each word has. Words are shorter
 * than 2^31 bytes. Returns the number of all symbols, or -1 if memory is short. */
int64_t merge_words(const Merges *m, const uint8_t *text, const int64_t *bounds, int64_t count, int32_t *symbols,
                    int64_t *counts)
{
    int64_t longest = 0, total = 0;
    for (int64_t n = 0; n < count; n++)
        if (bounds[n + 1] - bounds[n] > longest) longest = bounds[n + 1] - bounds[n];
    Link *links = NULL;
    uint64_t *heap = NULL;
    if (longest > SHORT) {
        links = malloc((size_t)longest * sizeof *links);
        heap = malloc(3 * (size_t)longest * sizeof *heap);
        if (!links || !heap) total = -1;
    }
    for (int64_t n = 0; n < count && total >= 0; n++) {
        int32_t *own = symbols + total;
        int64_t size = bounds[n + 1] - bounds[n];
        for (int64_t i = 0; i < size; i++) own[i] = text[bounds[n] + i];
        counts[n] = size <= SHORT ? merge_short(m, own, (int)size) : merge_long(m, own, links, heap, size);
        total += counts[n];
    }
    free(links);
    free(heap);
    return total;
}
