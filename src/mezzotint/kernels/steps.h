// Steps that fused.cpp and attention.cpp share. The same bits on every processor: no contraction, an own exponential.
#pragma once
#include <cstdint>
#include <cstring>

// e**x to about 2 ulp for |x| <= 86, saturating outside. Cody and Waite's reduction, Taylor's polynomial of degree 7.
// Adding 1.5 * 2**23 rounds to an integer, which is then in the low bits of the sum: the exponent of the result.
static inline float exponential(float x) {
    x = x < -86.0f ? -86.0f : x;
    x = x > 86.0f ? 86.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9841270e-4f;
    p = p * r + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t exponent, bits;
    std::memcpy(&exponent, &shifted, 4);
    std::memcpy(&bits, &p, 4);
    bits += static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23);
    std::memcpy(&p, &bits, 4);
    return p;
}

// The code of a value that is `steps` grid steps from zero.
static inline uint8_t code_of_steps(float steps, float zero_point, float largest) {
    float q = __builtin_rintf(steps) + zero_point;
    q = q > 0.0f ? q : 0.0f;  // this order: not a number gives 0
    q = q < largest ? q : largest;
    return static_cast<uint8_t>(static_cast<int32_t>(q));
}

static inline uint8_t code(float y, float scale, float zero_point, float largest) {
    return code_of_steps(y / scale, zero_point, largest);
}
