// 4 lanes of NEON for kernels_impl.h: all but the products. Included by simd_neon.cpp and
// simd_neon_i8mm.cpp, inside the namespace of each.

struct Lanes {
  static constexpr int L = 4;
  typedef int32_t vi __attribute__((vector_size(16)));
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
  static inline void sum_four(const vf* v, float* sums) {
    for (int i = 0; i < 4; ++i) sums[i] = sum(v[i]);
  }
  static inline vf quad_max(vf v) {
    return vf{} + vmaxvq_f32(reinterpret_cast<float32x4_t>(v));
  }
  static inline vf swap(vf v, int) { return v; }
  static inline uint32_t bits(vi v) {
    return (v[0] & 1) | (v[1] & 2) | (v[2] & 4) | (v[3] & 8);
  }
};
