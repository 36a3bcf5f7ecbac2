// The roundings of the trained graph, exact to the bit.

// `2^⌈log2 x⌉` of a positive normal number.
inline float power_of_two_at_least(float x) {
    uint bits = as_type<uint>(x);
    return as_type<float>(((bits >> 23) + ((bits & 0x7fffffu) != 0u ? 1u : 0u)) << 23);
}

// Nearest E4M3 number, ties to even; `x` within ±448.
inline float round_e4m3(float x) {
    if (fabs(x) < 1.0f / 64.0f) return rint(x * 512.0f) / 512.0f;
    uint bits = as_type<uint>(x);
    return as_type<float>((bits + 0x7ffffu + (bits >> 20 & 1u)) & 0xfff00000u);
}

// Nearest of ±{0, ½, 1, 1½, 2, 3, 4, 6}, ties to the even code.
inline float round_e2m1(float x) {
    float a = fabs(x);
    float rounded = a < 2.0f ? rint(a * 2.0f) / 2.0f : a < 4.0f ? rint(a) : a <= 5.0f ? 4.0f : 6.0f;
    return copysign(isnan(x) ? x : rounded, x);
}

// Nearest BF16 number, ties to even.
inline float round_bf16(float x) {
    uint bits = as_type<uint>(x);
    return isnan(x) ? x : as_type<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// The code of a number that E4M3 has.
inline uint e4m3_code(float x) {
    uint bits = as_type<uint>(x), magnitude = bits & 0x7fffffffu;
    uint code = fabs(x) < 1.0f / 64.0f ? uint(fabs(x) * 512.0f) : (magnitude >> 20) - (120u << 3);
    return code | (bits >> 24 & 0x80u);
}

// The code of a number that E2M1 has.
inline uint e2m1_code(float x) {
    float a = fabs(x);
    uint code = a <= 2.0f ? uint(2.0f * a) : a == 3.0f ? 5u : a == 4.0f ? 6u : 7u;
    return code | (as_type<uint>(x) >> 28 & 8u);
}

// The scale of a block whose largest magnitude is `most`.
inline float fp8_scale(float most) { return power_of_two_at_least(max(most, 1e-4f) / 448.0f); }
inline float fp4_scale(float most) {
    return power_of_two_at_least(max(most, 6.0f * 1.17549435e-38f) / 6.0f);
}

// A SIMD-group rounds a block of up to 64 values through FP8, in any address space.
template <typename P>
void round_fp8_block(P at, uint block, uint lane) {
    bool has_a = lane < block, has_b = lane + 32u < block;
    float a = has_a ? at[lane] : 0.0f, b = has_b ? at[lane + 32u] : 0.0f;
    float scale = fp8_scale(simd_max(max(fabs(a), fabs(b))));
    if (has_a) at[lane] = round_e4m3(clamp(a / scale, -448.0f, 448.0f)) * scale;
    if (has_b) at[lane + 32u] = round_e4m3(clamp(b / scale, -448.0f, 448.0f)) * scale;
}

// A lane's value of a block of up to 32 through FP4; zero where the block has ended.
inline float round_fp4(float v) {
    float scale = fp4_scale(simd_max(fabs(v)));
    return round_e2m1(v / scale) * scale;
}
