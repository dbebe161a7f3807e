// Part of kernels_impl.h: what a decoder does between its products. Included there, inside the
// namespace of one instruction set.

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  vf squares = {};
  int64_t k = 0;
  for (; k + L <= n; k += L) {
    const vf v = load<vf>(x + k);
    squares += v * v;
  }
  float sum = sum_of(squares);
  for (; k < n; ++k) sum += x[k] * x[k];
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (k = 0; k + L <= n; k += L) {
    const vf v = load<vf>(x + k) * inverse;
    store(y + k, weight ? v * load<vf>(weight + k) : v);
  }
  for (; k < n; ++k) y[k] = x[k] * inverse * (weight ? weight[k] : 1.0f);
}

inline vf gate_of(vf g, bool gelu) {
  // gelu(g) = g * sigmoid(2 u), u = sqrt(2 / pi) (g + 0.044715 g^3); silu(g) = g * sigmoid(g)
  const vf u = gelu ? 1.5957691216057308f * (g + 0.044715f * g * g * g) : g;
  return g / (1.0f + exp_of(-u));
}

void gated(const float* gate, const float* up, bool gelu, int64_t n, float* y) {
  int64_t k = 0;
  for (; k + L <= n; k += L) {
    store(y + k, gate_of(load<vf>(gate + k), gelu) * load<vf>(up + k));
  }
  if (k < n) {
    vf g = {};
    for (int64_t i = k; i < n; ++i) g[i - k] = gate[i];
    const vf a = gate_of(g, gelu);
    for (int64_t i = k; i < n; ++i) y[i] = a[i - k] * up[i];
  }
}

inline vf widen(const float* p) { return load<vf>(p); }

// scores (QB, n) = q keys^T * scale for keys t0 to t0 + n.
template <int QB, typename T>
inline void score(const float* q, int64_t ldq, const T* keys, int64_t n, int64_t D,
                  float scale, float* scores) {
  constexpr int TB = V::kAccumulators / QB < 4 ? V::kAccumulators / QB : 4;
  int64_t t = 0;
  for (; t + TB <= n; t += TB) {
    vf acc[QB][TB] = {};
    for (int64_t d = 0; d < D; d += L) {
      vf k[TB];
#pragma GCC unroll 4
      for (int j = 0; j < TB; ++j) k[j] = widen(keys + (t + j) * D + d);
#pragma GCC unroll 8
      for (int i = 0; i < QB; ++i) {
        const vf value = load<vf>(q + i * ldq + d);
#pragma GCC unroll 4
        for (int j = 0; j < TB; ++j) acc[i][j] += value * k[j];
      }
    }
    for (int i = 0; i < QB; ++i) {
      float* row = scores + i * kAttendBlock + t;
      if constexpr (TB == 4) {
        V::sum_four(acc[i], row);
        for (int j = 0; j < TB; ++j) row[j] *= scale;
      } else {
        for (int j = 0; j < TB; ++j) row[j] = sum_of(acc[i][j]) * scale;
      }
    }
  }
  for (; t < n; ++t) {
    for (int i = 0; i < QB; ++i) {
      vf acc = {};
      for (int64_t d = 0; d < D; d += L) acc += load<vf>(q + i * ldq + d) * widen(keys + t * D + d);
      scores[i * kAttendBlock + t] = sum_of(acc) * scale;
    }
  }
}

// out (QB, D) += p (QB, n) values.
template <int QB, typename T>
inline void mix(const float* p, const T* values, int64_t n, int64_t D, float* out) {
  constexpr int DB = V::kAccumulators / QB < 4 ? 2 : 4;  // divides a head's vectors
  for (int64_t d = 0; d < D; d += DB * L) {
    const int64_t wide = (D - d) / L < DB ? (D - d) / L : DB;
    if (wide == DB) {
      vf acc[QB][DB];
      for (int i = 0; i < QB; ++i) {
        for (int j = 0; j < DB; ++j) acc[i][j] = load<vf>(out + i * D + d + j * L);
      }
      for (int64_t t = 0; t < n; ++t) {
        vf row[DB];
#pragma GCC unroll 4
        for (int j = 0; j < DB; ++j) row[j] = widen(values + t * D + d + j * L);
#pragma GCC unroll 8
        for (int i = 0; i < QB; ++i) {
#pragma GCC unroll 4
          for (int j = 0; j < DB; ++j) acc[i][j] += p[i * kAttendBlock + t] * row[j];
        }
      }
      for (int i = 0; i < QB; ++i) {
        for (int j = 0; j < DB; ++j) store(out + i * D + d + j * L, acc[i][j]);
      }
      continue;
    }
    for (int64_t e = d; e < d + wide * L; e += L) {
      for (int i = 0; i < QB; ++i) {
        vf acc = load<vf>(out + i * D + e);
        for (int64_t t = 0; t < n; ++t) acc += p[i * kAttendBlock + t] * widen(values + t * D + e);
        store(out + i * D + e, acc);
      }
    }
  }
}

// QB queries; the softmax is kept up to date block by block of keys, so no row of scores is whole.
template <int QB, typename T>
void attend_block(const float* q, int64_t ldq, const T* keys, const T* values,
                  const int64_t* lo, const int64_t* hi, int64_t D, float scale, float* out,
                  int64_t ldo, float* scratch) {
  float* mixed = scratch;             // (QB, D)
  float* scores = mixed + QB * D;     // (QB, kAttendBlock)
  float top[QB], total[QB];
  int64_t first = lo[0], last = hi[0];
  for (int i = 0; i < QB; ++i) {
    top[i] = -__builtin_inff();
    total[i] = 0;
    first = lo[i] < first ? lo[i] : first;
    last = hi[i] > last ? hi[i] : last;
  }
  for (int64_t j = 0; j < QB * D; ++j) mixed[j] = 0;
  for (int64_t t0 = first; t0 < last; t0 += kAttendBlock) {
    const int64_t n = last - t0 < kAttendBlock ? last - t0 : kAttendBlock;
    const int64_t padded = (n + L - 1) / L * L;
    score<QB, T>(q, ldq, keys + t0 * D, n, D, scale, scores);
    for (int i = 0; i < QB; ++i) {
      float* row = scores + i * kAttendBlock;
      for (int64_t t = 0; t < padded; ++t) {
        if (t >= n || t0 + t < lo[i] || t0 + t >= hi[i]) row[t] = -__builtin_inff();
      }
      vf most = splat(top[i]);
      for (int64_t t = 0; t < padded; t += L) most = max_of(load<vf>(row + t), most);
      const float now = max_of(most);
      if (now == -__builtin_inff()) {  // no key of this block is seen
        for (int64_t t = 0; t < padded; ++t) row[t] = 0;
        continue;
      }
      const vf shift = splat(now);
      vf sum = {};
      for (int64_t t = 0; t < padded; t += L) {
        const vf e = exp_of(load<vf>(row + t) - shift);
        store(row + t, e);
        sum += e;
      }
      const float keep = top[i] == now ? 1.0f : exp_of(splat(top[i] - now))[0];
      total[i] = total[i] * keep + sum_of(sum);
      if (keep != 1.0f) {
        for (int64_t d = 0; d < D; d += L) {
          store(mixed + i * D + d, load<vf>(mixed + i * D + d) * keep);
        }
      }
      top[i] = now;
    }
    mix<QB, T>(scores, values + t0 * D, n, D, mixed);
  }
  for (int i = 0; i < QB; ++i) {
    const float inverse = 1.0f / total[i];
    for (int64_t d = 0; d < D; d += L) {
      store(out + i * ldo + d, load<vf>(mixed + i * D + d) * inverse);
    }
  }
}

// Keys and values in bfloat16 (uint16_t), or float.
template <typename T>
void attend(const float* q, int64_t ldq, const T* keys, const T* values,
            const int64_t* lo, const int64_t* hi, int64_t M, int64_t D, float scale, float* out,
            int64_t ldo, float* scratch) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4) {
    attend_block<4, T>(q + m * ldq, ldq, keys, values, lo + m, hi + m, D, scale, out + m * ldo, ldo,
                    scratch);
  }
  for (; m < M; ++m) {
    attend_block<1, T>(q + m * ldq, ldq, keys, values, lo + m, hi + m, D, scale, out + m * ldo, ldo,
                    scratch);
  }
}
