// 64-bit Arm with the 8-bit matrix instructions (Cortex-A510, Neoverse V1, Apple M2 and newer): the
// dot product takes weights without a sign, as they are stored; many tokens go through products of
// (2 rows, 8 columns) with (8 columns, 2 tokens), twice the work of a dot product in one instruction.
#include <arm_neon.h>

#include "kernels.h"

namespace soroq {
namespace neon_i8mm {

#include "vectors_neon.h"

struct V : Lanes {
  static constexpr const char* kName = "neon_i8mm";
  static constexpr int kAccumulators = 16;
  static constexpr int kRows = 4;
  static constexpr int kDirect = 8;
  static constexpr bool kSignedDot = false;
  static constexpr bool kDotPairs = false;

  static inline vi dot(vi acc, vi w, vi x) {
    return reinterpret_cast<vi>(vusdotq_s32(reinterpret_cast<int32x4_t>(acc),
                                            reinterpret_cast<uint8x16_t>(w),
                                            reinterpret_cast<int8x16_t>(x)));
  }
  static inline vi dot_full(vi acc, vi w, vi x) { return dot(acc, w, x); }
  static inline vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return dot(dot(acc, w0, x0), w1, x1);
  }
};

#include "kernels_impl.h"
#include "kernels_pairs.h"

// With fewer rows of codes, dot products straight from the panel need fewer instructions.
constexpr int64_t kDirectPairs = 4;

void panel_any(const PanelWeight& w, int64_t p, const RoundedX& x, int64_t m0, int64_t m1, float* y,
               void* scratch) {
  if ((m1 - m0) * x.planes > kDirectPairs) {
    panel_pairs(w, p, x, m0, m1, y, scratch);
  } else {
    panel_rounded(w, p, x, m0, m1, y, scratch);
  }
}

constexpr Kernels table() {
  Kernels all = kTable;
  all.panel_rounded = panel_any;
  return all;
}

}  // namespace neon_i8mm

extern const Kernels kNeonI8mm = neon_i8mm::table();

}  // namespace soroq
