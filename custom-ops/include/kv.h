// How a compressed row is kept: the widths of the full model, as kernels may assume them.
//
// The general rule, and the Rust twin of every constant here, is src/kv/packed.rs; a test compares
// them. All integers are little endian.
//
// Attention row, KV_ROW_BYTES:
//   0                      KV_NOPE e4m3 codes (s eeee mmm, bias 7, no infinity), channel by channel
//   KV_ROPE_AT             KV_ROPE bf16, the channels that carry the position
//   KV_SCALES_AT           KV_NOPE / KV_BLOCK scales; byte b is 2^(b - 127), 105 <= b <= 246
//   then zeros up to KV_ROW_BYTES
//   Channel c < KV_NOPE is e4m3(code[c]) * scale[c / KV_BLOCK].
//
// Indexer key, KEY_BYTES:
//   0                      KEY_WIDTH / 2 bytes of e2m1 codes (s ee m: 0 .5 1 1.5 2 3 4 6), the even
//                          channel in the low nibble
//   KEY_SCALES_AT          KEY_WIDTH / KEY_BLOCK scales, 1 <= b <= 252
//   Channel c is e2m1(code[c]) * scale[c / KEY_BLOCK].
//
// Scales are canonical, so that a row has one byte form on every device. Of the block's values y,
// as they were rounded:
//   attention row   2^ceil(log2(max(max|y|, 1e-4) / 448))
//   indexer key     2^ceil(log2(max(max|y|, 6 * 2^-126) / 6))
#pragma once

#define KV_NOPE 448
#define KV_ROPE 64
#define KV_BLOCK 64
#define KV_ROPE_AT 448
#define KV_SCALES_AT 576
#define KV_ROW_BYTES 584

#define KEY_WIDTH 128
#define KEY_BLOCK 32
#define KEY_SCALES_AT 64
#define KEY_BYTES 68

// Tokens that a page in memory covers: a page has KV_PAGE_TOKENS / ratio rows (at least one), one
// after the other, row r of a sequence at r mod that of page r / that.
#define KV_PAGE_TOKENS 1024
