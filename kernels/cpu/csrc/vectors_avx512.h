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
  // The sums of four vectors at once: half the steps of four sums.
  static inline void sum_four(const vf* v, float* sums) {
    const __m512 a = reinterpret_cast<__m512>(v[0]), b = reinterpret_cast<__m512>(v[1]);
    const __m512 c = reinterpret_cast<__m512>(v[2]), d = reinterpret_cast<__m512>(v[3]);
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static inline vf quad_max(vf v) {
    const __m512 all = reinterpret_cast<__m512>(v);
    const __m512 two = _mm512_max_ps(all, _mm512_permute_ps(all, 0xB1));
    return reinterpret_cast<vf>(_mm512_max_ps(two, _mm512_permute_ps(two, 0x4E)));
  }
  static inline vf swap(vf v, int distance) {
    const __m512 all = reinterpret_cast<__m512>(v);
    return reinterpret_cast<vf>(distance == 8 ? _mm512_shuffle_f32x4(all, all, 0x4E)
                                              : _mm512_shuffle_f32x4(all, all, 0xB1));
  }
  static inline uint32_t bits(vi v) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v));
  }
};
