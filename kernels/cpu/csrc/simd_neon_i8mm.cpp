// 64-bit Arm with the 8-bit matrix instructions (Cortex-A510, Neoverse V1, Apple M2 and newer): the
// dot product takes weights without a sign, as they are stored; many tokens go through products of
// (2 rows, 8 columns) with (8 columns, 2 tokens), twice the work of a dot product in one instruction.
#include <arm_neon.h>

#include "kernels.h"

namespace soroq {
namespace neon_i8mm {

struct V {
  static constexpr const char* kName = "neon_i8mm";
  static constexpr int L = 4;
  static constexpr int kAccumulators = 16;
  static constexpr int kRows = 4;
  static constexpr int kDirect = 8;
  static constexpr bool kSignedDot = false;
  static constexpr bool kDotPairs = false;
  typedef int32_t vi __attribute__((vector_size(16)));

  static inline vi dot(vi acc, vi w, vi x) {
    return reinterpret_cast<vi>(vusdotq_s32(reinterpret_cast<int32x4_t>(acc),
                                            reinterpret_cast<uint8x16_t>(w),
                                            reinterpret_cast<int8x16_t>(x)));
  }
  static inline vi dot_full(vi acc, vi w, vi x) { return dot(acc, w, x); }
  static inline vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return dot(dot(acc, w0, x0), w1, x1);
  }
  typedef uint32_t vu __attribute__((vector_size(16)));
  static inline vi bytes(const uint8_t* p) { return vi{p[0], p[1], p[2], p[3]}; }
  static inline vu halves(const void* p) {
    return reinterpret_cast<vu>(vmovl_u16(vld1_u16(static_cast<const uint16_t*>(p))));
  }
  static inline void store_bytes(int8_t* p, vi v) {
    const int16x4_t words = vmovn_s32(reinterpret_cast<int32x4_t>(v));
    const int8x8_t four = vmovn_s16(vcombine_s16(words, words));
    __builtin_memcpy(p, &four, 4);
  }
  typedef float vf __attribute__((vector_size(16)));
  static inline float sum(vf v) { return vaddvq_f32(reinterpret_cast<float32x4_t>(v)); }
  static inline vf quad_max(vf v) {
    return vf{} + vmaxvq_f32(reinterpret_cast<float32x4_t>(v));
  }
  static inline uint32_t bits(vi v) {
    return (v[0] & 1) | (v[1] & 2) | (v[2] & 4) | (v[3] & 8);
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
