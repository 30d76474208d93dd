// softmax(q k^T) v on codes, tile by tile, so that the scores never leave the cache; see attention.py.
//
// A tile is ROWS queries of one head against all its keys: int32 scores, row by row e**(score - largest) and uint8
// probabilities, then their product with v. Products of codes are exact sums of integers, whichever instruction does
// them; sums of the exponentials run in LANES lanes whose order is fixed.
#include <cstdlib>
#include <new>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "steps.h"

static const int64_t ROWS = 8;    // queries a tile
static const int64_t LANES = 16;  // int32 in a vector register
static const int64_t WIDE = 2;    // vectors of keys, or of channels of v, at a time

// DEPTH neighbouring bytes of the axis that is summed travel together: `dot` adds their products to LANES sums.
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
static const int64_t DEPTH = 4;
typedef __m512i Sums;
static inline Sums load_sums(const int32_t* at) { return _mm512_loadu_si512(at); }
static inline void store_sums(int32_t* at, Sums sums) { _mm512_storeu_si512(at, sums); }
static inline Sums dot(Sums sums, const uint8_t* row, const int8_t* packed) {
    int32_t four;
    std::memcpy(&four, row, 4);
    return _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(four), _mm512_loadu_si512(packed));
}
#elif defined(__AVX2__)
static const int64_t DEPTH = 2;
struct Sums { __m256i low, high; };
static inline __m256i load_half(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
static inline Sums load_sums(const int32_t* at) { return {load_half(at), load_half(at + 8)}; }
static inline void store_sums(int32_t* at, Sums sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), sums.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + 8), sums.high);
}
static inline Sums dot(Sums sums, const uint8_t* row, const int8_t* packed) {  // no saturating u8 x s8 product
    const __m256i two = _mm256_set1_epi32(row[0] | row[1] << 16), both = load_half(packed);
    const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(both));
    const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(both, 1));
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(two, low));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(two, high));
    return sums;
}
#else
static const int64_t DEPTH = 2;
struct Sums { int32_t of[LANES]; };
static inline Sums load_sums(const int32_t* at) {
    Sums sums;
    std::memcpy(sums.of, at, sizeof(sums.of));
    return sums;
}
static inline void store_sums(int32_t* at, Sums sums) { std::memcpy(at, sums.of, sizeof(sums.of)); }
static inline Sums dot(Sums sums, const uint8_t* row, const int8_t* packed) {
    for (int64_t i = 0; i < LANES; i++) sums.of[i] += row[0] * packed[2 * i] + row[1] * packed[2 * i + 1];
    return sums;
}
#endif

static inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Sizes of one attention, and what follows from them. M keys of d channels, each padded to whole vectors.
struct Shape {
    int64_t batch, heads, queries, keys, channels;
    int64_t key_span() const { return up(keys, WIDE * LANES); }        // keys as lanes
    int64_t key_depth() const { return up(keys, DEPTH); }              // keys as the axis that is summed
    int64_t channel_span() const { return up(channels, WIDE * LANES); }
    int64_t channel_depth() const { return up(channels, DEPTH); }
    int64_t width() const { return heads * channels; }                 // of a row of q, k, v and the output
    int64_t k_bytes() const { return key_span() * channel_depth(); }
    int64_t v_bytes() const { return channel_span() * key_depth(); }
    int64_t sums_bytes() const { return (key_span() + channel_span()) * 4; }
    int64_t head_bytes() const { return up(k_bytes() + v_bytes() + sums_bytes(), 64); }
};

// One head's keys and values, less 128 and so signed, in vectors of LANES x DEPTH bytes; what lies outside is 0.
struct Head {
    int8_t *k, *v;
    int32_t *k_start, *v_start;  // where the sums over channels, over keys start, for zero points and that 128
    Head(char* at, const Shape& s) {
        k_start = reinterpret_cast<int32_t*>(at);
        v_start = k_start + s.key_span();
        k = reinterpret_cast<int8_t*>(v_start + s.channel_span());
        v = k + s.k_bytes();
    }
};

// sum_c (q - qz)(k - kz) = sum_c q k' - qz sum_c k' + (what is the same for a whole row, and softmax does not see)
// sum_m (p - pz)(v - vz) = sum_m p v' - pz sum_m v' + (128 - vz)(sum_m p - M pz)
static void pack_head(const uint8_t* k, const uint8_t* v, const Shape& s, int32_t q_zero, int32_t p_zero, Head head) {
    std::memset(head.k_start, 0, s.sums_bytes());
    std::memset(head.k, 0, s.k_bytes() + s.v_bytes());
    for (int64_t m = 0; m < s.keys; m++) {
        int8_t* out = head.k + m / LANES * LANES * s.channel_depth() + m % LANES * DEPTH;
        int32_t sum = 0;
        for (int64_t c = 0; c < s.channels; c++) {
            const int8_t value = static_cast<int8_t>(k[m * s.width() + c] ^ 128);
            out[c / DEPTH * DEPTH * LANES + c % DEPTH] = value;
            sum += value;
        }
        head.k_start[m] = -q_zero * sum;
        int8_t* behind = head.v + m / DEPTH * DEPTH * LANES + m % DEPTH;
        for (int64_t c = 0; c < s.channels; c++) {
            const int8_t value = static_cast<int8_t>(v[m * s.width() + c] ^ 128);
            behind[c / LANES * LANES * s.key_depth() + c % LANES * DEPTH] = value;
            head.v_start[c] -= p_zero * value;
        }
    }
}

// out[r][span] = start[span] + rows[r][depth] . packed, for ROWS rows. `rows` lie `stride` bytes apart.
static void product(const uint8_t* rows, int64_t stride, int64_t depth, const int8_t* packed, const int32_t* start,
                    int64_t span, int32_t* out, int64_t out_stride) {
    for (int64_t j = 0; j < span; j += WIDE * LANES) {
        Sums sums[ROWS][WIDE];
        for (int64_t r = 0; r < ROWS; r++)
            for (int64_t w = 0; w < WIDE; w++) sums[r][w] = load_sums(start + j + w * LANES);
        for (int64_t c = 0; c < depth; c += DEPTH)
            for (int64_t w = 0; w < WIDE; w++) {
                const int8_t* vector = packed + (j + w * LANES) * depth + c * LANES;
                for (int64_t r = 0; r < ROWS; r++) sums[r][w] = dot(sums[r][w], rows + r * stride + c, vector);
            }
        for (int64_t r = 0; r < ROWS; r++)
            for (int64_t w = 0; w < WIDE; w++) store_sums(out + r * out_stride + j + w * LANES, sums[r][w]);
    }
}

// e**((score - most) * factor) in place of each of `n` scores, a multiple of LANES, added to `lanes`.
static void exponentials(const int32_t* scores, int64_t n, int32_t most, float factor, float* e, float* lanes) {
    float sums[LANES];
    std::memcpy(sums, lanes, sizeof(sums));
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t l = 0; l < LANES; l++) {
            const float y = exponential(static_cast<float>(scores[i + l] - most) * factor);
            sums[l] += y;
            e[i + l] = y;
        }
    std::memcpy(lanes, sums, sizeof(sums));
}

// Codes of softmax(scores * factor), n of them; returns their sum. `e`, like `scores`, is a multiple of LANES long.
static int32_t probabilities(int32_t* scores, int64_t n, float factor, float scale, float zero_point, float largest,
                             float* e, uint8_t* codes) {
    int32_t most = scores[0], total = 0;
    for (int64_t i = 1; i < n; i++) most = scores[i] > most ? scores[i] : most;
    float lanes[LANES] = {0};
    const int64_t whole = n / LANES * LANES;
    exponentials(scores, whole, most, factor, e, lanes);
    if (whole < n) {
        float last[LANES] = {0};
        for (int64_t i = n; i < whole + LANES; i++) scores[i] = most;
        exponentials(scores + whole, LANES, most, factor, e + whole, last);
        for (int64_t l = 0; l < n - whole; l++) lanes[l] += last[l];
    }
    double sum = 0.0;
    for (int64_t l = 0; l < LANES; l++) sum += lanes[l];
    const float steps = static_cast<float>(1.0 / (sum * scale));
    for (int64_t i = 0; i < n; i++) codes[i] = code_of_steps(e[i] * steps, zero_point, largest);
    for (int64_t i = 0; i < n; i++) total += codes[i];
    return total;
}

struct Grid { float scale, zero_point, largest; };

// What one thread works in: scores of a tile, exponentials of a row, codes of its probabilities and of its queries, its output.
struct Scratch {
    int32_t *scores, *sums;
    float* e;
    uint8_t *codes, *rows;
    char* whole;
    explicit Scratch(const Shape& s) {
        const int64_t scores_bytes = (ROWS + 1) * s.key_span() * 4, sums_bytes = ROWS * s.channel_span() * 4;
        const int64_t codes_bytes = ROWS * s.key_depth(), rows_bytes = ROWS * s.channel_depth();
        const int64_t bytes = up(scores_bytes + sums_bytes + codes_bytes + rows_bytes, 64);
        whole = static_cast<char*>(std::aligned_alloc(64, bytes));
        if (!whole) throw std::bad_alloc();
        scores = reinterpret_cast<int32_t*>(whole);
        e = reinterpret_cast<float*>(scores + ROWS * s.key_span());
        sums = scores + (ROWS + 1) * s.key_span();
        codes = reinterpret_cast<uint8_t*>(sums + ROWS * s.channel_span());
        rows = codes + ROWS * s.key_depth();
        std::memset(codes, 0, codes_bytes + rows_bytes);  // the padding stays 0
    }
    ~Scratch() { std::free(whole); }
};

// `n` <= ROWS queries of one head.
static void tile(const uint8_t* q, int64_t n, const Shape& s, const Head& head, float factor, Grid grid, int32_t v_zero,
                 float multiplier, Scratch& own, float* out) {
    const int64_t depth = s.channel_depth(), keys = s.key_depth();
    for (int64_t r = 0; r < n; r++) std::memcpy(own.rows + r * depth, q + r * s.width(), s.channels);
    product(own.rows, depth, depth, head.k, head.k_start, s.key_span(), own.scores, s.key_span());
    int32_t rest[ROWS];
    for (int64_t r = 0; r < n; r++) {
        const int32_t total = probabilities(own.scores + r * s.key_span(), s.keys, factor, grid.scale, grid.zero_point,
                                            grid.largest, own.e, own.codes + r * keys);
        rest[r] = (128 - v_zero) * (total - static_cast<int32_t>(s.keys) * static_cast<int32_t>(grid.zero_point));
    }
    product(own.codes, keys, keys, head.v, head.v_start, s.channel_span(), own.sums, s.channel_span());
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < s.channels; c++)
            out[r * s.width() + c] = static_cast<float>(own.sums[r * s.channel_span() + c] + rest[r]) * multiplier;
}

extern "C" {

// Bytes of `work` that mezzotint_attention needs.
int64_t mezzotint_attention_work(int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t channels) {
    return batch * heads * Shape{batch, heads, queries, keys, channels}.head_bytes();
}

// q [batch, queries, heads, channels], k, v [batch, keys, heads, channels] -> out as q. work: 64-byte aligned.
// factor turns differences of integer scores into those of logits; scale, zero_point, largest: grid of probabilities.
void mezzotint_attention(const uint8_t* q, const uint8_t* k, const uint8_t* v, char* work, int64_t batch, int64_t heads,
                         int64_t queries, int64_t keys, int64_t channels, int64_t q_zero, int64_t v_zero, float factor,
                         float scale, float zero_point, float largest, float multiplier, float* out) {
    const Shape s{batch, heads, queries, keys, channels};
    const int64_t tiles = (queries + ROWS - 1) / ROWS;
#pragma omp parallel
    {
        Scratch own(s);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * heads; i++) {
            const int64_t at = i / heads * keys * s.width() + i % heads * channels;
            pack_head(k + at, v + at, s, static_cast<int32_t>(q_zero), static_cast<int32_t>(zero_point),
                      Head(work + i * s.head_bytes(), s));
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch * heads * tiles; t++) {
            const int64_t i = t / tiles, first = t % tiles * ROWS, n = queries - first < ROWS ? queries - first : ROWS;
            const int64_t at = (i / heads * queries + first) * s.width() + i % heads * channels;
            tile(q + at, n, s, Head(work + i * s.head_bytes(), s), factor, {scale, zero_point, largest},
                 static_cast<int32_t>(v_zero), multiplier, own, out + at);
        }
    }
}
}
