// Products of many tokens by AMX. Included by simd_amx.cpp behind kernels_impl.h and amx_tiles.h,
// inside its namespace.
//
// Four columns of 16 rows of W, 64 bytes, are a row of a tile as the instruction wants it, and a
// panel has the next four 256 bytes on: int8 is loaded into tiles where it lies, int4 from the buffer
// of `unpack`. A chunk is one step of at most 64 columns or two equal ones, and the tokens are cut into
// blocks of equal height, the last one overlapping the one before: so one configuration does for
// a whole panel.

constexpr int64_t kTileRows = 16, kTileBytes = 64;
static_assert(kMaxChunk <= 2 * kTileBytes, "a half of a chunk must be a multiple of 4 columns");

// Tiles 0 to 3 are sums, 4 and 5 codes of tokens, 6 and 7 weights.
inline TileConfig tiles_for(int64_t tokens, int64_t step) {
  TileConfig config = {};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = static_cast<uint8_t>(t < 6 ? tokens : step / 4);
    config.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? step : kTileBytes);
  }
  return config;
}

// sums (tokens, planes, 64) of one block and one chunk; bytes: the chunk's codes of a byte each.
template <int planes>
inline void multiply_tiles(const uint8_t* bytes, int64_t columns, int64_t step, const int8_t* codes,
                           int32_t* sums) {
  constexpr int64_t down = 4 * kPanel;  // from a row of a tile of weights to the next
  constexpr int64_t sums_down = planes * 4 * kPanel;
  const int64_t codes_down = planes * columns;
  if (planes == 1) {
    SOROQ_TILE_ZERO(0);
    SOROQ_TILE_ZERO(1);
    SOROQ_TILE_ZERO(2);
    SOROQ_TILE_ZERO(3);
    for (int64_t k = 0; k < columns; k += step) {
      const uint8_t* w = bytes + k * kPanel;
      SOROQ_TILE_LOAD(4, codes + k, codes_down);
      SOROQ_TILE_LOAD(6, w, down);
      SOROQ_TILE_MULTIPLY(0, 4, 6);
      SOROQ_TILE_LOAD(7, w + kTileBytes, down);
      SOROQ_TILE_MULTIPLY(1, 4, 7);
      SOROQ_TILE_LOAD(6, w + 2 * kTileBytes, down);
      SOROQ_TILE_MULTIPLY(2, 4, 6);
      SOROQ_TILE_LOAD(7, w + 3 * kTileBytes, down);
      SOROQ_TILE_MULTIPLY(3, 4, 7);
    }
    SOROQ_TILE_STORE(0, sums, sums_down);
    SOROQ_TILE_STORE(1, sums + 16, sums_down);
    SOROQ_TILE_STORE(2, sums + 32, sums_down);
    SOROQ_TILE_STORE(3, sums + 48, sums_down);
    return;
  }
  for (int half = 0; half < 2; ++half, bytes += 2 * kTileBytes, sums += 32) {
    SOROQ_TILE_ZERO(0);
    SOROQ_TILE_ZERO(1);
    SOROQ_TILE_ZERO(2);
    SOROQ_TILE_ZERO(3);
    for (int64_t k = 0; k < columns; k += step) {
      const uint8_t* w = bytes + k * kPanel;
      SOROQ_TILE_LOAD(4, codes + k, codes_down);
      SOROQ_TILE_LOAD(6, w, down);
      SOROQ_TILE_MULTIPLY(0, 4, 6);
      SOROQ_TILE_LOAD(7, w + kTileBytes, down);
      SOROQ_TILE_MULTIPLY(1, 4, 7);
      SOROQ_TILE_LOAD(5, codes + columns + k, codes_down);
      SOROQ_TILE_MULTIPLY(2, 5, 6);
      SOROQ_TILE_MULTIPLY(3, 5, 7);
    }
    SOROQ_TILE_STORE(0, sums, sums_down);
    SOROQ_TILE_STORE(1, sums + 16, sums_down);
    SOROQ_TILE_STORE(2, sums + kPanel, sums_down);
    SOROQ_TILE_STORE(3, sums + kPanel + 16, sums_down);
  }
}

// Adds the scaled sums (tokens, planes, 64) to y (tokens, 64); the tokens' codes begin at `at`.
template <int planes, bool symmetric>
inline void add_sums(const PanelView& w, const uint8_t* chunk, const float* scales,
                     const int32_t* x_sums, const int32_t* sums, int64_t tokens, float* y) {
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const vf scale = scales_of(w, chunk, v);
    const vf zero = symmetric ? vf{} : zeros_of(w, chunk, v);
    for (int64_t m = 0; m < tokens; ++m) {
      const int32_t* from = sums + m * planes * kPanel + v * L;
      float* to = y + m * kPanel + v * L;
      vi whole = load<vi>(from);
      if (planes == 2) whole = (whole << 7) + load<vi>(from + kPanel);
      if (symmetric) whole -= splat_i(x_sums[m]) << (w.bits - 1);
      vf product = to_float(whole);
      if (!symmetric) product -= zero * static_cast<float>(x_sums[m]);
      store(to, load<vf>(to) + product * (scale * scales[m]));
    }
  }
}

// One plane: adds the tokens' quads apart to their sums (tokens, 64).
template <Codes kind>
inline void add_all_apart(const uint8_t* codes, const Apart* apart, int64_t tokens, int32_t* sums) {
  for (int64_t m = 0; m < tokens; ++m, sums += kPanel) {
    vi row[NV];
    __builtin_memcpy(row, sums, sizeof row);
    add_apart<NV, kind>(codes, apart[m], 0, row);
    __builtin_memcpy(sums, row, sizeof row);
  }
}

// panel_rounded for many tokens.
template <int planes>
void panel_tiles(const PanelView& w, const uint8_t* chunk, const RoundedX& x, int64_t m0, int64_t m1,
                 float* y, void* scratch) {
  const int64_t tokens = m1 - m0, blocks = (tokens + kTileRows - 1) / kTileRows;
  const int64_t height = (tokens + blocks - 1) / blocks;
  const int64_t step = w.columns > kTileBytes ? w.columns / 2 : w.columns;
  for (int64_t i = 0; i < tokens * kPanel; ++i) y[i] = 0;
  alignas(64) int32_t sums[kTileRows * planes * kPanel];
  const TileConfig config = tiles_for(height, step);
  SOROQ_TILE_CONFIGURE(&config);
  for (int64_t c = 0; c < w.n_chunks; ++c, chunk += w.chunk_bytes) {
    const uint8_t* bytes = chunk;
    if (w.bits == 4) {
      unpack(chunk, w.columns, static_cast<uint8_t*>(scratch));
      bytes = static_cast<uint8_t*>(scratch);
    } else {
      for (int64_t i = 0; i < w.chunk_bytes; i += 64) __builtin_prefetch(chunk + i + kAhead);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t done = b * height, first = done < tokens - height ? done : tokens - height;
      const int64_t skip = done - first, at = c * x.M + m0 + first;
      multiply_tiles<planes>(bytes, w.columns, step, x.codes + at * planes * w.columns, sums);
      int32_t* fresh = sums + skip * planes * kPanel;
      const int64_t start = at + skip, rest = height - skip;
      float* to = y + done * kPanel;
      if (planes == 1 && w.bits == 4) {
        add_all_apart<bytes_int4>(bytes, x.apart + start, rest, fresh);
      } else if (planes == 1) {
        add_all_apart<bytes_int8>(bytes, x.apart + start, rest, fresh);
      }
      if (w.symmetric) {
        add_sums<planes, true>(w, chunk, x.scales + start, x.sums + start, fresh, rest, to);
      } else {
        add_sums<planes, false>(w, chunk, x.scales + start, x.sums + start, fresh, rest, to);
      }
    }
  }
  SOROQ_TILE_RELEASE();
}
