// 16 lanes of AVX-512 for kernels_impl.h. Included by simd_avx512.cpp and simd_amx.cpp, inside the
// namespace of each.

struct V {
  static constexpr const char* kName = "avx512";
  static constexpr int L = 16;
  static constexpr int kAccumulators = 24;
  static constexpr int kRows = 6;
  static constexpr int kDirect = 32;
  static constexpr bool kSignedDot = false;
  static constexpr bool kDotPairs = false;
  typedef int32_t vi __attribute__((vector_size(64)));

  static inline vi dot(vi acc, vi w, vi x) {
    return reinterpret_cast<vi>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc),
                                                    reinterpret_cast<__m512i>(w),
                                                    reinterpret_cast<__m512i>(x)));
  }
  static inline vi dot_full(vi acc, vi w, vi x) { return dot(acc, w, x); }
  static inline vi dot_two(vi acc, vi w0, vi x0, vi w1, vi x1) {
    return dot(dot(acc, w0, x0), w1, x1);
  }
  typedef uint32_t vu __attribute__((vector_size(64)));
  static inline vi bytes(const uint8_t* p) {
    return reinterpret_cast<vi>(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static inline vu halves(const void* p) {
    return reinterpret_cast<vu>(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static inline void store_bytes(int8_t* p, vi v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
  }
  typedef float vf __attribute__((vector_size(64)));
  static inline float sum(vf v) { return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v)); }
  static inline vf quad_max(vf v) {
    const __m512 all = reinterpret_cast<__m512>(v);
    const __m512 two = _mm512_max_ps(all, _mm512_permute_ps(all, 0xB1));
    return reinterpret_cast<vf>(_mm512_max_ps(two, _mm512_permute_ps(two, 0x4E)));
  }
  static inline uint32_t bits(vi v) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v));
  }
};
