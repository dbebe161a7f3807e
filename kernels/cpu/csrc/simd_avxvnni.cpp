// AVX2 with AVX-VNNI (Alder Lake, Zen 5 and newer): 8 lanes.
#include <immintrin.h>

#include "kernels.h"

namespace soroq {
namespace avxvnni {

#include "vectors_avx2.h"

struct V : Lanes {
  static constexpr const char* kName = "avxvnni";
  static constexpr int kAccumulators = 12;
  static constexpr int kRows = 6;
  static constexpr int kDirect = 3;
  static constexpr bool kSignedDot = false;
  static constexpr bool kDotPairs = false;

  static inline vi dot(vi acc, vi w, vi x) {
    return reinterpret_cast<vi>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(acc),
                                                        reinterpret_cast<__m256i>(w),
                                                        reinterpret_cast<__m256i>(x)));
  }
  static inline vi dot_full(vi acc, vi w, vi x) { return dot(acc, w, x); }
  static inline vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return dot(dot(acc, w0, x0), w1, x1);
  }
};

#include "kernels_impl.h"

}  // namespace avxvnni

extern const Kernels kAvxVnni = avxvnni::kTable;

}  // namespace soroq
