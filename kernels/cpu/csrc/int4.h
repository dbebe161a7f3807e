// int4 codes in 32-bit words, the `pack-quantized` layout of compressed-tensors:
// along K, eight codes a word, the first in the lowest four bits, each stored as code + 8.
// Rows start on a new word; the unused high bits of a row's last word are 0.
// Knows neither Python nor torch. The same in plain torch: soroq/core/packing.py.
#pragma once

#include <cstdint>

namespace soroq {

constexpr int64_t kCodesPerWord = 8;

// ceil(K / 8): words that a row of K codes takes.
inline int64_t int4_words(int64_t K) { return (K + kCodesPerWord - 1) / kCodesPerWord; }

// Packs codes (N, K) into words (N, int4_words(K)). Returns false, with words partly written, at
// the first code outside -8..7.
bool pack_int4(const int8_t* codes, uint32_t* words, int64_t N, int64_t K);

// Inverts pack_int4.
void unpack_int4(const uint32_t* words, int8_t* codes, int64_t N, int64_t K);

// y (M, N) = x (M, K) * W^T with W = (codes - zeros) * scales; scales and zeros (N, K / group_size),
// zeros null for symmetric weights; K a multiple of 8 and of group_size. Accumulates in float32.
void matmul_w4_scalar(const float* x, const uint32_t* qweight, const float* scales,
                      const int8_t* zeros, float* y, int64_t M, int64_t N, int64_t K,
                      int64_t group_size, int n_threads);

}  // namespace soroq
