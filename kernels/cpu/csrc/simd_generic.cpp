// Plain C++ on vectors of four: any processor; the twin that the others are tested against.
#include "kernels.h"

namespace soroq {
namespace generic {

struct V {
  static constexpr const char* kName = "generic";
  static constexpr int L = 4;
  static constexpr int kAccumulators = 8;
  static constexpr int kRows = 4;
  static constexpr int kDirect = 4;
  static constexpr bool kSignedDot = false;
  static constexpr bool kDotPairs = false;
  typedef int32_t vi __attribute__((vector_size(16)));

  static vi dot_full(vi acc, vi w, vi x) {
    for (int j = 0; j < 4; ++j) {
      const vi code = (w >> (8 * j)) & 255;
      const vi value = (x << (24 - 8 * j)) >> 24;
      acc += code * value;
    }
    return acc;
  }
  static vi dot(vi acc, vi w, vi x) { return dot_full(acc, w, x); }
  static vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return dot(dot(acc, w0, x0), w1, x1);
  }
  typedef uint32_t vu __attribute__((vector_size(16)));
  static vi bytes(const uint8_t* p) { return vi{p[0], p[1], p[2], p[3]}; }
  static vu halves(const void* p) {
    uint16_t h[4];
    __builtin_memcpy(h, p, 8);
    return vu{h[0], h[1], h[2], h[3]};
  }
  static void store_bytes(int8_t* p, vi v) {
    for (int i = 0; i < 4; ++i) p[i] = static_cast<int8_t>(v[i]);
  }
  typedef float vf __attribute__((vector_size(16)));
  static float sum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static void sum_four(const vf* v, float* sums) {
    for (int i = 0; i < 4; ++i) sums[i] = sum(v[i]);
  }
  static vf quad_max(vf v) {
    float most = v[0];
    for (int i = 1; i < 4; ++i) most = v[i] > most ? v[i] : most;
    return vf{} + most;
  }
  static vf swap(vf v, int) { return v; }
  static uint32_t bits(vi v) { return (v[0] & 1) | (v[1] & 2) | (v[2] & 4) | (v[3] & 8); }
};

#include "kernels_impl.h"

}  // namespace generic

extern const Kernels kGeneric = generic::kTable;

}  // namespace soroq
