// Rotary position embedding of the last channels, in place.

struct Rope {
    uint heads;      // of one token
    uint dim;        // of a head
    uint pairs;      // that turn
    float sign;      // -1 turns back
    float frequencies[64];
};

// One thread a pair of a token: all heads share its angle. Sine and cosine are the precise ones: a
// position of a million turns an angle of a million radians.
kernel void rope(constant Rope& p [[buffer(0)]], device const uint* positions [[buffer(1)]],
                 device float* x [[buffer(2)]], THREAD_POSITION) {
    uint pair = group.x * 32u + lane, token = group.y;
    if (pair >= p.pairs) return;
    float angle = float(positions[token]) * p.frequencies[pair];
    float cosine = precise::cos(angle), sine = p.sign * precise::sin(angle);
    device float* at = x + ulong(token) * p.heads * p.dim + (p.dim - 2u * p.pairs) + 2u * pair;
    for (uint head = group.z; head < p.heads; head += groups.z) {
        device float* two = at + head * p.dim;
        float a = two[0], b = two[1];
        two[0] = a * cosine - b * sine;
        two[1] = a * sine + b * cosine;
    }
}
KERNEL(rope)
