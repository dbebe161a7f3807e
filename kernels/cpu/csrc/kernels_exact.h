// Part of kernels_impl.h: products with activations as they are. Included there, inside the namespace
// of one instruction set.

// What a chunk's scales and zero points are for the rows of vector v.
struct Grid {
  vf scale, zero;
};

inline Grid grid_of(const PanelView& w, const uint8_t* chunk, int v) {
  const vf centre = splat(static_cast<float>(1 << (w.bits - 1)));
  return {scales_of(w, chunk, v), w.symmetric ? centre : zeros_of(w, chunk, v)};
}

// Code j of the columns that share a vector: 8 for int4, 4 for int8, as float32.
template <int bits>
inline vf code_of(vu packed, int j) {
  if (bits == 8) return to_float(reinterpret_cast<vi>((packed >> (8 * j)) & 255));
  return to_float(reinterpret_cast<vi>((packed >> (j < 4 ? 8 * j : 8 * (j - 4) + 4)) & 15));
}

// Writes W of one chunk as float32 (chunk's columns, 64).
template <int bits>
void dequantize(const PanelView& w, const uint8_t* chunk, float* out) {
  constexpr int step = bits == 4 ? 8 : 4;
  Grid grid[NV];
  for (int v = 0; v < NV; ++v) grid[v] = grid_of(w, chunk, v);
  for (int64_t k = 0; k < w.columns; k += step, chunk += 4 * kPanel, out += step * kPanel) {
    for (int v = 0; v < NV; ++v) {
      const vu packed = load<vu>(chunk + v * L * 4);
#pragma GCC unroll 8
      for (int j = 0; j < step; ++j) {
        store(out + j * kPanel + v * L, (code_of<bits>(packed, j) - grid[v].zero) * grid[v].scale);
      }
    }
  }
}

template <>
void dequantize<16>(const PanelView& w, const uint8_t* chunk, float* out) {
  for (int64_t i = 0; i < w.columns * kPanel; i += L) store(out + i, widen(chunk + 2 * i));
}

// y (MB, 64) += x (MB, columns) times the buffer of `dequantize`.
template <int MB>
inline void block_dense(const float* dense, int64_t columns, const float* x, int64_t ldx,
                        int64_t m, float* y) {
  constexpr int NT = tile_of(MB);
  x += m * ldx;
  for (int v0 = 0; v0 < NV; v0 += NT) {
    vf acc[MB][NT];
    for (int i = 0; i < MB; ++i) {
      for (int v = 0; v < NT; ++v) acc[i][v] = load<vf>(y + i * kPanel + (v0 + v) * L);
    }
    for (int64_t k = 0; k < columns; ++k) {
      vf rows[NT];
#pragma GCC unroll 16
      for (int v = 0; v < NT; ++v) rows[v] = load<vf>(dense + k * kPanel + (v0 + v) * L);
#pragma GCC unroll 8
      for (int i = 0; i < MB; ++i) {
        const vf value = splat(x[i * ldx + k]);
#pragma GCC unroll 16
        for (int v = 0; v < NT; ++v) acc[i][v] += value * rows[v];
      }
    }
    for (int i = 0; i < MB; ++i) {
      for (int v = 0; v < NT; ++v) store(y + i * kPanel + (v0 + v) * L, acc[i][v]);
    }
  }
}

// A few tokens without a buffer: y (MB, 64) += x (MB, chunk's columns) W^T.
template <int MB, int bits>
void block_direct(const PanelView& w, const uint8_t* chunk, const float* x, int64_t ldx, float* y) {
  constexpr int NT = tile_of(MB) < 4 ? tile_of(MB) : 4;
  constexpr int step = bits == 4 ? 8 : 4;
  for (int v0 = 0; v0 < NV; v0 += NT) {
    vf acc[MB][NT] = {};
    float sum[MB] = {};
    const uint8_t* from = chunk + v0 * L * 4;
    for (int64_t k = 0; k < w.columns; k += step, from += 4 * kPanel) {
      for (int i = 0; i < MB; ++i) {
        for (int j = 0; j < step; ++j) sum[i] += x[i * ldx + k + j];
      }
#pragma GCC unroll 16
      for (int v = 0; v < NT; ++v) {
        const vu packed = load<vu>(from + v * L * 4);
        __builtin_prefetch(from + v * L * 4 + kAhead);
#pragma GCC unroll 8
        for (int j = 0; j < step; ++j) {
          const vf code = code_of<bits>(packed, j);
#pragma GCC unroll 8
          for (int i = 0; i < MB; ++i) acc[i][v] += code * x[i * ldx + k + j];
        }
      }
    }
    for (int v = 0; v < NT; ++v) {
      const Grid g = grid_of(w, chunk, v0 + v);
      for (int i = 0; i < MB; ++i) {
        float* to = y + i * kPanel + (v0 + v) * L;
        store(to, load<vf>(to) + (acc[i][v] - g.zero * sum[i]) * g.scale);
      }
    }
  }
}

// The same for bfloat16.
template <int MB>
void block_direct_bf16(const PanelView& w, const uint8_t* chunk, const float* x, int64_t ldx, float* y) {
  constexpr int NT = tile_of(MB) < 4 ? tile_of(MB) : 4;
  for (int v0 = 0; v0 < NV; v0 += NT) {
    vf acc[MB][NT] = {};
    const uint8_t* from = chunk + v0 * L * 2;
    for (int64_t k = 0; k < w.columns; ++k, from += 2 * kPanel) {
#pragma GCC unroll 16
      for (int v = 0; v < NT; ++v) {
        if (v * L % 32 == 0) __builtin_prefetch(from + v * L * 2 + kAhead);
        const vf row = widen(from + v * L * 2);
#pragma GCC unroll 8
        for (int i = 0; i < MB; ++i) acc[i][v] += row * x[i * ldx + k];
      }
    }
    for (int v = 0; v < NT; ++v) {
      for (int i = 0; i < MB; ++i) {
        float* to = y + i * kPanel + (v0 + v) * L;
        store(to, load<vf>(to) + acc[i][v]);
      }
    }
  }
}

template <int MB>
inline void block_exact(const PanelView& w, const uint8_t* chunk, const float* dense, const float* x,
                        int64_t ldx, int64_t m, float* y) {
  if (dense) {
    block_dense<MB>(dense, w.columns, x, ldx, m, y);
  } else if (w.bits == 4) {
    block_direct<MB, 4>(w, chunk, x + m * ldx, ldx, y);
  } else if (w.bits == 8) {
    block_direct<MB, 8>(w, chunk, x + m * ldx, ldx, y);
  } else {
    block_direct_bf16<MB>(w, chunk, x + m * ldx, ldx, y);
  }
}

void panel_exact(const PanelWeight& weight, int64_t p, const float* x, int64_t ldx, int64_t m0,
                 int64_t m1, float* y, void* scratch) {
  for (int64_t i = 0; i < (m1 - m0) * kPanel; ++i) y[i] = 0;
  const PanelView& w = weight.view;
  const uint8_t* chunk = weight.panel(p);
  float* dense = static_cast<float*>(scratch);
  float* padded = dense + kMaxChunk * kPanel;  // x of a chunk whose columns are not all real
  const bool direct = m1 - m0 <= kDirectExact;
  for (int64_t c = 0; c < w.n_chunks; ++c, chunk += w.chunk_bytes) {
    const float* from = x + weight.chunk_start(c);
    int64_t stride = ldx;
    const int64_t length = weight.chunk_length(c);
    if (length < w.columns) {
      for (int64_t m = m0; m < m1; ++m) {
        float* row = padded + (m - m0) * kMaxChunk;
        for (int64_t k = 0; k < w.columns; ++k) row[k] = k < length ? from[m * ldx + k] : 0.0f;
      }
      from = padded - m0 * kMaxChunk;
      stride = kMaxChunk;
    }
    if (!direct && w.bits == 4) dequantize<4>(w, chunk, dense);
    if (!direct && w.bits == 8) dequantize<8>(w, chunk, dense);
    if (!direct && w.bits == 16) dequantize<16>(w, chunk, dense);
    const float* rows = direct ? nullptr : dense;
    SOROQ_FOR_BLOCKS(m0, m1, V::kRows, block_exact, w, chunk, rows, from, stride, m, to);
  }
}
