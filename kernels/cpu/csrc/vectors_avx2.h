// 8 lanes of AVX2 for kernels_impl.h: all but the products. Included by simd_avx2.cpp and
// simd_avxvnni.cpp, inside the namespace of each.

struct Lanes {
  static constexpr int L = 8;
  typedef int32_t vi __attribute__((vector_size(32)));
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
  // The sums of four vectors at once: half the steps of four sums.
  static inline void sum_four(const vf* v, float* sums) {
    const __m256 a = reinterpret_cast<__m256>(v[0]), b = reinterpret_cast<__m256>(v[1]);
    const __m256 c = reinterpret_cast<__m256>(v[2]), d = reinterpret_cast<__m256>(v[3]);
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const __m256d ab2 = _mm256_castps_pd(ab), cd2 = _mm256_castps_pd(cd);
    const __m256 all = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ab2, cd2)),
                                 _mm256_castpd_ps(_mm256_unpackhi_pd(ab2, cd2)));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  static inline vf quad_max(vf v) {
    const __m256 all = reinterpret_cast<__m256>(v);
    const __m256 two = _mm256_max_ps(all, _mm256_permute_ps(all, 0xB1));
    return reinterpret_cast<vf>(_mm256_max_ps(two, _mm256_permute_ps(two, 0x4E)));
  }
  static inline vf swap(vf v, int) {
    const __m256 all = reinterpret_cast<__m256>(v);
    return reinterpret_cast<vf>(_mm256_permute2f128_ps(all, all, 1));
  }
  static inline uint32_t bits(vi v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(v)));
  }
};
