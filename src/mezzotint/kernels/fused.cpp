// What lies between two integer products, in one or two passes over channels-last floats; see fused.py.
//
// Plain C++ with a C interface, no headers of torch. Sums have a fixed order (rows in chunks, then chunks, then the
// channels of a group), none depends on the vector width or on the number of threads; products and sums are not
// contracted (-ffp-contract=off). So the same input gives the same bits on every processor.
#include <cmath>

#include "steps.h"

static const int64_t ROWS = 64;   // rows a chunk
static const int64_t BLOCK = 64;  // channels at a time

// Sums of x and x*x over the rows of a chunk, for `n` <= BLOCK channels. `added` is added to x first, if it is there.
static inline __attribute__((always_inline)) void sum_block(const float* x, const float* added, int64_t rows,
                                                            int64_t channels, int64_t n, float* sum, float* square) {
    float a[BLOCK] = {0}, b[BLOCK] = {0}, plus[BLOCK] = {0};
    if (added) std::memcpy(plus, added, n * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        const float* row = x + r * channels;
        for (int64_t c = 0; c < n; c++) {
            const float v = row[c] + plus[c];
            a[c] += v;
            b[c] += v * v;
        }
    }
    std::memcpy(sum, a, n * sizeof(float));
    std::memcpy(square, b, n * sizeof(float));
}

static void sum_rows(const float* x, const float* added, int64_t rows, int64_t channels, float* sum, float* square) {
    int64_t c = 0;
    for (; c + BLOCK <= channels; c += BLOCK)  // the constant lets the compiler keep the sums in registers
        sum_block(x + c, added ? added + c : nullptr, rows, channels, BLOCK, sum + c, square + c);
    if (c < channels)
        sum_block(x + c, added ? added + c : nullptr, rows, channels, channels - c, sum + c, square + c);
}

// factor[c], shift[c] with group_norm(x + added) = x * factor + shift, for one sample.
static void affine_of_groups(const float* partial, int64_t chunks, const float* added, const float* gamma,
                             const float* beta, int64_t rows, int64_t channels, int64_t groups, double eps,
                             float* factor, float* shift) {
    const int64_t width = channels / groups;
    for (int64_t g = 0; g < groups; g++) {
        double sum = 0.0, square = 0.0;
        for (int64_t k = 0; k < chunks; k++) {
            const float* a = partial + k * 2 * channels + g * width;
            for (int64_t c = 0; c < width; c++) {
                sum += a[c];
                square += a[channels + c];
            }
        }
        const double count = static_cast<double>(rows) * width, mean = sum / count;
        const double variance = square / count - mean * mean;
        const double inverse = 1.0 / std::sqrt((variance > 0.0 ? variance : 0.0) + eps);
        for (int64_t c = g * width; c < (g + 1) * width; c++) {
            const double f = inverse * (gamma ? gamma[c] : 1.0f);
            factor[c] = static_cast<float>(f);
            shift[c] = static_cast<float>(((added ? added[c] : 0.0f) - mean) * f + (beta ? beta[c] : 0.0f));
        }
    }
}

// `n` <= BLOCK values of one row: y = x * factor + shift, then SiLU if `silu`, then codes of a grid or floats.
static inline __attribute__((always_inline)) void finish_block(const float* x, const float* factor, const float* shift,
                                                               int64_t n, int silu, float scale, float zero_point,
                                                               float largest, uint8_t* codes, float* floats) {
    float y[BLOCK];
    for (int64_t c = 0; c < n; c++) y[c] = x[c] * factor[c] + shift[c];
    if (silu) {  // two loops: in one, gcc 12 leaves the exponential scalar, three times slower
        float e[BLOCK];
        for (int64_t c = 0; c < n; c++) e[c] = exponential(-y[c]);
        for (int64_t c = 0; c < n; c++) y[c] = y[c] / (1.0f + e[c]);
    }
    if (codes)
        for (int64_t c = 0; c < n; c++) codes[c] = code(y[c], scale, zero_point, largest);
    else
        std::memcpy(floats, y, n * sizeof(float));
}

static void finish_rows(const float* x, const float* factor, const float* shift, int64_t rows, int64_t channels,
                        int silu, float scale, float zero_point, float largest, uint8_t* codes, float* floats) {
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * channels;
        int64_t c = 0;
        for (; c + BLOCK <= channels; c += BLOCK)
            finish_block(x + at + c, factor + c, shift + c, BLOCK, silu, scale, zero_point, largest,
                         codes ? codes + at + c : nullptr, floats ? floats + at + c : nullptr);
        if (c < channels)
            finish_block(x + at + c, factor + c, shift + c, channels - c, silu, scale, zero_point, largest,
                         codes ? codes + at + c : nullptr, floats ? floats + at + c : nullptr);
    }
}

// Sum over i of (x[i] - minus)**power for power 1 or 2, in BLOCK / 4 lanes whose order is fixed.
template <int power>
static double sum_row(const float* x, int64_t n, float minus) {
    const int64_t lanes = BLOCK / 4;
    float sums[BLOCK / 4] = {0};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (int64_t l = 0; l < lanes; l++) {
            const float v = x[i + l] - minus;
            sums[l] += power == 1 ? v : v * v;
        }
    for (int64_t l = 0; i < n; i++, l++) {
        const float v = x[i] - minus;
        sums[l] += power == 1 ? v : v * v;
    }
    double sum = 0.0;
    for (int64_t l = 0; l < lanes; l++) sum += sums[l];
    return sum;
}

// 0.5 (1 + erf(g / sqrt(2))), to 8e-8: Abramowitz and Stegun, 7.1.26.
static inline float normal_distribution(float g) {
    const float z = (g < 0.0f ? -g : g) * 0.70710678118654752f;
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float behind = 0.5f * (p * t) * exponential(-z * z);
    return g < 0.0f ? behind : 1.0f - behind;
}

// Rows that one task takes.
static inline int64_t rows_per_task(int64_t width) { return width < 4096 ? 1 + 4096 / width : 1; }

extern "C" {

// x [batch, rows, channels]; added [batch, channels] or null; gamma, beta [channels] or null.
// work: float [batch * (chunks * 2 + 2) * channels], chunks = ceil(rows / 64). One of codes and floats is null.
void mezzotint_group_norm(const float* x, const float* added, const float* gamma, const float* beta, float* work,
                          int64_t batch, int64_t rows, int64_t channels, int64_t groups, double eps, int silu,
                          float scale, float zero_point, float largest, uint8_t* codes, float* floats) {
    const int64_t chunks = (rows + ROWS - 1) / ROWS, tasks = batch * chunks;
    float* affine = work + batch * chunks * 2 * channels;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            const int64_t b = i / chunks, first = (i % chunks) * ROWS;
            const int64_t n = rows - first < ROWS ? rows - first : ROWS;
            float* out = work + i * 2 * channels;
            sum_rows(x + (b * rows + first) * channels, added ? added + b * channels : nullptr, n, channels, out,
                     out + channels);
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batch; b++) {
            float* out = affine + b * 2 * channels;
            affine_of_groups(work + b * chunks * 2 * channels, chunks, added ? added + b * channels : nullptr, gamma,
                             beta, rows, channels, groups, eps, out, out + channels);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            const int64_t b = i / chunks, first = (i % chunks) * ROWS, offset = (b * rows + first) * channels;
            const int64_t n = rows - first < ROWS ? rows - first : ROWS;
            const float* f = affine + b * 2 * channels;
            finish_rows(x + offset, f, f + channels, n, channels, silu, scale, zero_point, largest,
                        codes ? codes + offset : nullptr, floats ? floats + offset : nullptr);
        }
    }
}

// Codes of x [rows, width], whose rows lie `stride` floats apart.
void mezzotint_codes(const float* x, int64_t rows, int64_t width, int64_t stride, float scale, float zero_point,
                     float largest, uint8_t* codes) {
    const int64_t per_task = rows_per_task(width), tasks = (rows + per_task - 1) / per_task;
#pragma omp parallel for schedule(static) if (tasks > 8)
    for (int64_t t = 0; t < tasks; t++) {
        const int64_t end = (t + 1) * per_task < rows ? (t + 1) * per_task : rows;
        for (int64_t r = t * per_task; r < end; r++) {
            const float* row = x + r * stride;
            uint8_t* out = codes + r * width;
            for (int64_t c = 0; c < width; c++) out[c] = code(row[c], scale, zero_point, largest);
        }
    }
}

// Codes of the layer norm of each row of x [rows, width]; gamma, beta [width] or null.
void mezzotint_layer_norm_codes(const float* x, const float* gamma, const float* beta, int64_t rows, int64_t width,
                                double eps, float scale, float zero_point, float largest, uint8_t* codes) {
    const int64_t per_task = rows_per_task(width), tasks = (rows + per_task - 1) / per_task;
#pragma omp parallel for schedule(static) if (tasks > 8)
    for (int64_t t = 0; t < tasks; t++) {
        const int64_t end = (t + 1) * per_task < rows ? (t + 1) * per_task : rows;
        for (int64_t r = t * per_task; r < end; r++) {
            const float* row = x + r * width;
            uint8_t* out = codes + r * width;
            const float mean = static_cast<float>(sum_row<1>(row, width, 0.0f) / width);
            const float inverse = static_cast<float>(1.0 / std::sqrt(sum_row<2>(row, width, mean) / width + eps));
            if (gamma && beta)
                for (int64_t c = 0; c < width; c++)
                    out[c] = code((row[c] - mean) * inverse * gamma[c] + beta[c], scale, zero_point, largest);
            else
                for (int64_t c = 0; c < width; c++)
                    out[c] = code((row[c] - mean) * inverse * (gamma ? gamma[c] : 1.0f) + (beta ? beta[c] : 0.0f), scale,
                                  zero_point, largest);
        }
    }
}

// Codes of value * gelu(gate) for rows [width values, width gates] of x.
void mezzotint_geglu_codes(const float* x, int64_t rows, int64_t width, float scale, float zero_point, float largest,
                           uint8_t* codes) {
    const int64_t per_task = rows_per_task(width), tasks = (rows + per_task - 1) / per_task;
#pragma omp parallel for schedule(static) if (tasks > 8)
    for (int64_t t = 0; t < tasks; t++) {
        const int64_t end = (t + 1) * per_task < rows ? (t + 1) * per_task : rows;
        for (int64_t r = t * per_task; r < end; r++) {
            const float *values = x + 2 * r * width, *gates = values + width;
            uint8_t* out = codes + r * width;
            for (int64_t c = 0; c < width; c++)
                out[c] = code(values[c] * (gates[c] * normal_distribution(gates[c])), scale, zero_point, largest);
        }
    }
}
}
