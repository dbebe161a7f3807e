// int4 for any CPU: what the compiler makes of plain loops.
#include "int4.h"

#include <algorithm>
#include <vector>

namespace soroq {

bool pack_int4(const int8_t* codes, uint32_t* words, int64_t N, int64_t K) {
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k0 = 0; k0 < K; k0 += kCodesPerWord) {
      uint32_t word = 0;
      const int64_t k1 = std::min(k0 + kCodesPerWord, K);
      for (int64_t k = k0; k < k1; ++k) {
        const int code = codes[n * K + k];
        if (code < -8 || code > 7) return false;
        word |= static_cast<uint32_t>(code + 8) << (4 * (k - k0));
      }
      *words++ = word;
    }
  }
  return true;
}

void unpack_int4(const uint32_t* words, int8_t* codes, int64_t N, int64_t K) {
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k0 = 0; k0 < K; k0 += kCodesPerWord) {
      const uint32_t word = *words++;
      const int64_t k1 = std::min(k0 + kCodesPerWord, K);
      for (int64_t k = k0; k < k1; ++k) {
        codes[n * K + k] = static_cast<int8_t>(static_cast<int>(word >> (4 * (k - k0)) & 15u) - 8);
      }
    }
  }
}

namespace {

// Writes one dequantized row, w (K).
void dequantize_row(const uint32_t* words, const float* scales, const int8_t* zeros, float* w,
                    int64_t K, int64_t group_size) {
  for (int64_t k0 = 0; k0 < K; k0 += kCodesPerWord) {
    const uint32_t word = words[k0 / kCodesPerWord];
    for (int i = 0; i < kCodesPerWord; ++i) {
      w[k0 + i] = static_cast<float>(static_cast<int>(word >> (4 * i) & 15u) - 8);
    }
  }
  for (int64_t g = 0; g < K / group_size; ++g) {
    const float scale = scales[g];
    const float zero = zeros ? static_cast<float>(zeros[g]) : 0.0f;
    float* group = w + g * group_size;
    for (int64_t k = 0; k < group_size; ++k) group[k] = (group[k] - zero) * scale;
  }
}

// The pragma lets the compiler reorder this one sum, so that it becomes vector code. It stays
// the same for every number of threads: a row belongs to one thread.
float dot(const float* a, const float* b, int64_t K) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < K; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

void matmul_w4_scalar(const float* x, const uint32_t* qweight, const float* scales,
                      const int8_t* zeros, float* y, int64_t M, int64_t N, int64_t K,
                      int64_t group_size, int n_threads) {
  const int64_t n_groups = K / group_size;
  const int64_t n_words = int4_words(K);
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
  {
    std::vector<float> w(K);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; ++n) {
      dequantize_row(qweight + n * n_words, scales + n * n_groups,
                     zeros ? zeros + n * n_groups : nullptr, w.data(), K, group_size);
      for (int64_t m = 0; m < M; ++m) y[m * N + n] = dot(x + m * K, w.data(), K);
    }
  }
  (void)n_threads;  // unused without OpenMP
}

}  // namespace soroq
