/* Makes the merges of BPE training, as bpe.merge_pairs in tokenizer/ defines them: merge the most frequent pair of
 * neighbouring tokens everywhere, of several the greater pair of byte strings; repeat.
 *
 * All words are in one sequence, with a boundary before and after each. A token is linked to its neighbours. The places
 * of a pair are recorded when the pair first appears, in ascending order. They are never removed, so at some of them the
 * pair may no longer exist. A pair (a, b) appears in the merge that makes the newer of a and b, and later becomes only
 * rarer. So a heap need not be updated: a pair that has become rarer is put back when it comes to the top.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BOUNDARY = -1, MERGED = -2, NONE = -1, FREE = -1, AHEAD = 12 };

typedef struct { int32_t token, before, after; uint32_t word; } Position;  /* with its neighbours, and its word */
typedef struct { int32_t place, next; } Node;                             /* one of a pair's places */
typedef struct { int32_t left, right, first, last; int64_t count; } Pair; /* its first and last node; left = FREE: none */
typedef struct { int32_t left, right; int64_t count; } Entry;             /* of the heap, with the count at that time */
typedef struct { char *at; int64_t count, room, size; } Array;            /* grows; `size` is that of an element */

typedef struct {
    Position *positions;
    int64_t *weights;                /* how often each word occurs */
    Pair *pairs;                     /* a hash table of 2^(64 - shift) slots, at most half of them occupied */
    int64_t shift, pair_count;
    Array nodes, heap, fresh;        /* fresh: the pairs that this merge has made */
    Array bytes, ends;               /* bytes: of all tokens, joined; ends: of each in `bytes` */
    int32_t free_nodes;              /* a chain of nodes that may be used again */
    int failed;                      /* memory was short */
} Training;

/* Returns a new last element, or null if memory is short. */
static void *append(Training *t, Array *array, int64_t how_many)
{
    if (array->count + how_many > array->room) {
        int64_t room = 2 * (array->count + how_many);
        char *at = realloc(array->at, (size_t)(room * array->size));
        if (!at) {
            t->failed = 1;
            return NULL;
        }
        array->at = at, array->room = room;
    }
    array->count += how_many;
    return array->at + (array->count - how_many) * array->size;
}

/* Returns the slot of a pair: the one that holds it, or the free one where it belongs. */
static inline Pair *slot_of(const Training *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)left << 32 | (uint32_t)right, hashed = (key ^ key >> 29) * 0x9E3779B97F4A7C15u;
    for (uint64_t at = hashed >> t->shift;; at = (at + 1) & (UINT64_MAX >> t->shift)) {
        Pair *pair = t->pairs + at;
        if (pair->left == FREE || (pair->left == left && pair->right == right)) return pair;
    }
}

/* Doubles the table, and leaves out the pairs that are gone. */
static void grow_pairs(Training *t)
{
    size_t old_size = (size_t)(UINT64_MAX >> t->shift) + 1, size = 2 * old_size;
    Pair *old = t->pairs, *pairs = malloc(size * sizeof *pairs);
    if (!pairs) {
        t->failed = 1;
        return;
    }
    for (size_t i = 0; i < size; i++) pairs[i].left = FREE;
    t->pairs = pairs, t->pair_count = 0;
    t->shift--;
    for (size_t i = 0; i < old_size; i++)
        if (old[i].left != FREE && old[i].count > 0) *slot_of(t, old[i].left, old[i].right) = old[i], t->pair_count++;
    free(old);
}

static inline void remove_weight(Training *t, int32_t left, int32_t right, int64_t weight)
{
    Pair *pair = slot_of(t, left, right);
    if (pair->left != FREE) pair->count -= weight;
}

/* Adds a place of a pair; the pair may be new. */
static inline void add_place(Training *t, int32_t left, int32_t right, int32_t place, int64_t weight)
{
    Pair *pair = slot_of(t, left, right);
    if (pair->left == FREE) {
        Entry *fresh = append(t, &t->fresh, 1);
        if (!fresh) return;
        *fresh = (Entry){left, right, 0};
        *pair = (Pair){left, right, NONE, NONE, 0};
        if (2 * ++t->pair_count > (int64_t)(UINT64_MAX >> t->shift)) {
            pair->count = 1;  /* so that it is kept */
            grow_pairs(t);
            pair = slot_of(t, left, right);
            pair->count = 0;
        }
    }
    int32_t node = t->free_nodes;
    if (node != NONE) {
        t->free_nodes = ((Node *)t->nodes.at)[node].next;
    } else {
        if (!append(t, &t->nodes, 1)) return;
        node = (int32_t)(t->nodes.count - 1);
    }
    Node *nodes = (Node *)t->nodes.at;
    nodes[node] = (Node){place, NONE};
    if (pair->last == NONE) pair->first = node;
    else nodes[pair->last].next = node;
    pair->last = node;
    pair->count += weight;
}

/* Returns the bytes of a token, and writes their number. */
static inline const char *bytes_of(const Training *t, int32_t token, int64_t *size)
{
    const int64_t *ends = (const int64_t *)t->ends.at;
    int64_t start = token ? ends[token - 1] : 0;
    *size = ends[token] - start;
    return t->bytes.at + start;
}

static int compare_tokens(const Training *t, int32_t a, int32_t b)
{
    int64_t a_size, b_size;
    const char *a_bytes = bytes_of(t, a, &a_size), *b_bytes = bytes_of(t, b, &b_size);
    int order = memcmp(a_bytes, b_bytes, (size_t)(a_size < b_size ? a_size : b_size));
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

/* Whether `a` is merged before `b`. */
static inline int is_first(const Training *t, Entry a, Entry b)
{
    if (a.count != b.count) return a.count > b.count;
    int order = compare_tokens(t, a.left, b.left);
    return (order ? order : compare_tokens(t, a.right, b.right)) > 0;
}

/* Puts a pair into the heap with its present count. */
static void push(Training *t, Entry entry)
{
    const Pair *pair = slot_of(t, entry.left, entry.right);
    entry.count = pair->left == FREE ? 0 : pair->count;
    if (entry.count <= 0 || !append(t, &t->heap, 1)) return;
    Entry *heap = (Entry *)t->heap.at;
    int64_t i = t->heap.count - 1;
    for (; i > 0 && is_first(t, entry, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = entry;
}

static Entry pop(Training *t)
{
    Entry *heap = (Entry *)t->heap.at, first = heap[0], last = heap[--t->heap.count];
    int64_t count = t->heap.count, i = 0, child;
    for (; (child = 2 * i + 1) < count; i = child) {
        child += child + 1 < count && is_first(t, heap[child + 1], heap[child]);
        if (!is_first(t, heap[child], last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return first;
}

/* Adds a token: the bytes of `left` and those of `right`. */
static void add_token(Training *t, int32_t left, int32_t right)
{
    int64_t left_size, right_size;
    bytes_of(t, left, &left_size), bytes_of(t, right, &right_size);
    char *to = append(t, &t->bytes, left_size + right_size);  /* this may move the bytes */
    int64_t *end = append(t, &t->ends, 1);
    if (!to || !end) return;
    memcpy(to, bytes_of(t, left, &left_size), (size_t)left_size);
    memcpy(to + left_size, bytes_of(t, right, &right_size), (size_t)right_size);
    *end = t->bytes.count;
}

static void push_fresh(Training *t)
{
    for (int64_t i = 0; i < t->fresh.count; i++) push(t, ((Entry *)t->fresh.at)[i]);
    t->fresh.count = 0;
}

/* Merges a pair at all its places. In a a a, the second place is skipped, since its left token is merged already. */
static void merge(Training *t, Pair pair, int32_t new)
{
    Position *positions = t->positions;
    int32_t ahead = pair.first, node = pair.first;  /* positions are fetched from memory AHEAD places before their use */
    for (int64_t step = -AHEAD; node != NONE && !t->failed; step++) {
        if (ahead != NONE) {
            __builtin_prefetch(positions + ((Node *)t->nodes.at)[ahead].place, 1);
            ahead = ((Node *)t->nodes.at)[ahead].next;
        }
        if (step < 0) continue;
        int32_t place = ((Node *)t->nodes.at)[node].place;
        node = ((Node *)t->nodes.at)[node].next;
        Position *left = positions + place, *right = positions + left->after;
        if (left->token != pair.left || right->token != pair.right) continue;
        int32_t preceding = left->before, before = positions[preceding].token, after = positions[right->after].token;
        int64_t weight = t->weights[left->word];
        left->token = new, right->token = MERGED;
        left->after = right->after, positions[right->after].before = place;
        if (before != BOUNDARY) {
            remove_weight(t, before, pair.left, weight);
            add_place(t, before, new, preceding, weight);
        }
        if (after != BOUNDARY) {
            remove_weight(t, pair.right, after, weight);
            add_place(t, new, after, place, weight);
        }
    }
    push_fresh(t);
}

void free_training(Training *t)
{
    if (!t) return;
    void *parts[] = {t->positions, t->weights, t->pairs, t->nodes.at, t->heap.at, t->fresh.at, t->bytes.at, t->ends.at};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
    free(t);
}

/* Begins with joined words of two bytes or more, and how often each occurs. Returns null if memory is short. The sum of
 * all sizes is below 2^29, so nodes, at most one for each byte and two for each place of a merge, are fewer than
 * 2^31. The sum of sizes times weights is below 2^63. */
Training *new_training(const uint8_t *text, const int64_t *sizes, const int64_t *weights, int64_t count)
{
    int64_t length = 1;  /* with boundaries */
    for (int64_t n = 0; n < count; n++) length += sizes[n] + 1;
    Training *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->positions = malloc((size_t)length * sizeof *t->positions);
    t->weights = malloc((size_t)(count + 1) * sizeof *weights);
    t->pairs = malloc(2 * sizeof *t->pairs);
    t->failed = !t->positions || !t->weights || !t->pairs;
    t->nodes.size = sizeof(Node), t->heap.size = t->fresh.size = sizeof(Entry);
    t->bytes.size = 1, t->ends.size = sizeof(int64_t);
    t->shift = 63, t->free_nodes = NONE;
    for (int64_t byte = 0; byte < 256 && !t->failed; byte++) {
        char *to = append(t, &t->bytes, 1);
        int64_t *end = append(t, &t->ends, 1);
        if (to && end) *to = (char)byte, *end = byte + 1;
    }
    if (!t->failed) {
        memcpy(t->weights, weights, (size_t)count * sizeof *weights);
        t->pairs[0].left = t->pairs[1].left = FREE;
        Position *positions = t->positions;
        int32_t at = 0;
        for (int64_t n = 0; n <= count; n++)
            for (int64_t i = -1; i < (n < count ? sizes[n] : 0); i++, at++)
                positions[at] = (Position){i < 0 ? BOUNDARY : *text++, at - 1, at + 1, (uint32_t)n};
        for (at = 1; at + 1 < length && !t->failed; at++)
            if (positions[at].token >= 0 && positions[at + 1].token >= 0)
                add_place(t, positions[at].token, positions[at + 1].token, at, weights[positions[at].word]);
        push_fresh(t);
    }
    if (!t->failed) return t;
    free_training(t);
    return NULL;
}

/* Makes the next merge and writes its two tokens. Returns 1, 0 if no pair is left, or -1 if memory is short. */
int next_merge(Training *t, int32_t *left, int32_t *right)
{
    while (t->heap.count > 0) {
        Entry best = pop(t);
        Pair *pair = slot_of(t, best.left, best.right), merged = *pair;
        if (merged.left == FREE || merged.count < best.count) {
            push(t, best);
            continue;
        }
        *left = merged.left, *right = merged.right;
        pair->count = 0, pair->first = pair->last = NONE;
        add_token(t, merged.left, merged.right);
        if (!t->failed) merge(t, merged, (int32_t)(t->ends.count - 1));
        if (t->failed) return -1;
        ((Node *)t->nodes.at)[merged.last].next = t->free_nodes;
        t->free_nodes = merged.first;
        return 1;
    }
    return 0;
}
