// AVX2 and FMA (2013 and newer): 8 lanes; products of bytes go through 16 bits.
#include <immintrin.h>

#include "kernels.h"

namespace soroq {
namespace avx2 {

struct V {
  static constexpr const char* kName = "avx2";
  static constexpr int L = 8;
  static constexpr int kAccumulators = 12;
  static constexpr int kRows = 6;
  static constexpr int kDirect = 6;
  static constexpr bool kSignedDot = true;
  static constexpr bool kDotPairs = true;
  typedef int32_t vi __attribute__((vector_size(32)));

  // Sums of two products in 16 bits.
  static inline __m256i pairs(vi w, vi x) {
    return _mm256_maddubs_epi16(reinterpret_cast<__m256i>(w), reinterpret_cast<__m256i>(x));
  }
  static inline vi add(vi acc, __m256i pairs) {
    return acc + reinterpret_cast<vi>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static inline vi dot(vi acc, vi w, vi x) { return add(acc, pairs(w, x)); }
  // w is at most 15: four products are within 4 * 15 * 128 and fit 16 bits.
  static inline vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return add(acc, _mm256_add_epi16(pairs(w0, x0), pairs(w1, x1)));
  }
  // Two of 255 * 127 would not fit; of |w| * (x with the sign of w) they do, 2 * 128 * 127.
  static inline vi dot_full(vi acc, vi w, vi x) {
    const __m256i signs = reinterpret_cast<__m256i>(w);
    const __m256i value = _mm256_sign_epi8(reinterpret_cast<__m256i>(x), signs);
    return add(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(signs), value));
  }
  typedef uint32_t vu __attribute__((vector_size(32)));
  static inline vi bytes(const uint8_t* p) {
    return reinterpret_cast<vi>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static inline vu halves(const void* p) {
    return reinterpret_cast<vu>(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static inline void store_bytes(int8_t* p, vi v) {
    const __m256i words = _mm256_packs_epi32(reinterpret_cast<__m256i>(v), __m256i{});
    const __m256i four = _mm256_packs_epi16(words, __m256i{});
    const int32_t low = _mm256_extract_epi32(four, 0), high = _mm256_extract_epi32(four, 4);
    __builtin_memcpy(p, &low, 4);
    __builtin_memcpy(p + 4, &high, 4);
  }
  typedef float vf __attribute__((vector_size(32)));
  static inline float sum(vf v) {
    const __m256 all = reinterpret_cast<__m256>(v);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static inline vf quad_max(vf v) {
    const __m256 all = reinterpret_cast<__m256>(v);
    const __m256 two = _mm256_max_ps(all, _mm256_permute_ps(all, 0xB1));
    return reinterpret_cast<vf>(_mm256_max_ps(two, _mm256_permute_ps(two, 0x4E)));
  }
  static inline uint32_t bits(vi v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(v)));
  }
};

#include "kernels_impl.h"

}  // namespace avx2

extern const Kernels kAvx2 = avx2::kTable;

}  // namespace soroq
