// AVX2 and FMA (2013 and newer): 8 lanes; products of bytes go through 16 bits.
#include <immintrin.h>

#include "kernels.h"

namespace soroq {
namespace avx2 {

#include "vectors_avx2.h"

struct V : Lanes {
  static constexpr const char* kName = "avx2";
  static constexpr int kAccumulators = 12;
  static constexpr int kRows = 6;
  static constexpr int kDirect = 6;
  static constexpr bool kSignedDot = true;
  static constexpr bool kDotPairs = true;

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
};

#include "kernels_impl.h"

}  // namespace avx2

extern const Kernels kAvx2 = avx2::kTable;

}  // namespace soroq
