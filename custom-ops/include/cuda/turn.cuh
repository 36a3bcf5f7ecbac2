// Rotary embedding of pairs of channels.
#pragma once
#include "memory.cuh"

// A pair turns from (a, b) to (a·cos − b·sin, a·sin + b·cos).
struct Turn {
    float cosine, sine;
};

DEVICE Turn no_turn() { return {1.0f, 0.0f}; }

// The product is rounded to f32, the sine taken in f64: as in the reference.
DEVICE Turn turn_of(uint32_t position, float frequency) {
    const double angle = double(float(position) * frequency);
    return {float(cos(angle)), float(sin(angle))};
}

DEVICE Turn back(Turn turn) { return {turn.cosine, -turn.sine}; }

DEVICE float2 turned(float a, float b, Turn turn) {
    return make_float2(a * turn.cosine - b * turn.sine, a * turn.sine + b * turn.cosine);
}

// That of lane `from`.
DEVICE Turn shuffle_turn(Turn turn, uint32_t from) {
    return {shuffle(turn.cosine, from), shuffle(turn.sine, from)};
}
