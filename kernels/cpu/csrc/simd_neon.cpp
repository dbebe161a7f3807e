// 64-bit Arm with the dot product instructions (Cortex-A76, Apple M1 and newer): 4 lanes.
#include <arm_neon.h>

#include "kernels.h"

namespace soroq {
namespace neon {

#include "vectors_neon.h"

struct V : Lanes {
  static constexpr const char* kName = "neon";
  static constexpr int kAccumulators = 16;
  static constexpr int kRows = 4;
  static constexpr int kDirect = 8;
  static constexpr bool kSignedDot = true;
  static constexpr bool kDotPairs = false;

  static inline vi dot(vi acc, vi w, vi x) {
    return reinterpret_cast<vi>(vdotq_s32(reinterpret_cast<int32x4_t>(acc),
                                          reinterpret_cast<int8x16_t>(w),
                                          reinterpret_cast<int8x16_t>(x)));
  }
  static inline vi dot_full(vi acc, vi w, vi x) { return dot(acc, w, x); }
  static inline vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return dot(dot(acc, w0, x0), w1, x1);
  }
};

#include "kernels_impl.h"

}  // namespace neon

extern const Kernels kNeon = neon::kTable;

}  // namespace soroq
