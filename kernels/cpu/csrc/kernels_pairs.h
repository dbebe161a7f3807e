// Products of many tokens by the 8-bit matrix instruction of 64-bit Arm. Included by simd_neon_i8mm.cpp
// behind kernels_impl.h, inside its namespace.
//
// usmmla adds to [r0 t0, r0 t1, r1 t0, r1 t1] the products of two rows of W with two tokens over 8
// columns, each operand two runs of 8 bytes. Panels hold 4 columns of 4 rows in 16 bytes, and tokens
// lie apart, so both go through buffers once a chunk: weights as pairs of rows, in the panel's order;
// codes of tokens as pairs of tokens, the planes one behind the other.

constexpr int kRowPairs = 4;    // pairs of rows in a block: 8 rows, two vectors of sums
constexpr int kTokenPairs = 4;  // most pairs of codes in a block: 16 sums, 8 operands, of 32 registers
constexpr int kPairVectors = 2 * kRowPairs / L;
constexpr int64_t kStepBytes = 8 * kPanel;  // 8 columns of the weights' buffer

// Stores 8 columns of 4 rows, given the first 4 columns and the other 4.
inline void put_row_pairs(uint8_t* to, vi first, vi second) {
  const int32x4_t a = reinterpret_cast<int32x4_t>(first), b = reinterpret_cast<int32x4_t>(second);
  store(to, vzip1q_s32(a, b));
  store(to + 16, vzip2q_s32(a, b));
}

// Weights of a chunk as pairs of rows: (columns / 8, 32, 2, 8).
template <int bits>
void pair_rows(const uint8_t* chunk, int64_t columns, uint8_t* pairs) {
  for (int64_t k = 0; k < columns; k += 8, chunk += bits * kPanel, pairs += kStepBytes) {
#pragma GCC unroll 16
    for (int i = 0; i < 4 * kPanel; i += 16) {
      if (i % (256 / bits) == 0) __builtin_prefetch(chunk + bits / 4 * i + kAhead);
      const vi first = load<vi>(chunk + i);
      if (bits == 4) {
        const vi upper = reinterpret_cast<vi>(reinterpret_cast<vu>(first) >> 4) & 0x0F0F0F0F;
        put_row_pairs(pairs + 2 * i, first & 0x0F0F0F0F, upper);
      } else {
        put_row_pairs(pairs + 2 * i, first, load<vi>(chunk + 4 * kPanel + i));
      }
    }
  }
}

// Codes (tokens, planes, columns) as pairs of tokens: (pairs, planes, columns / 8, 2, 8). A last
// token without another is paired with itself.
void pair_tokens(const int8_t* codes, int64_t tokens, int planes, int64_t columns, int8_t* pairs) {
  const int64_t row = planes * columns;
  for (int64_t t = 0; t < tokens; t += 2, codes += 2 * row, pairs += 2 * row) {
    const int8_t* other = t + 1 < tokens ? codes + row : codes;
    int64_t k = 0;
#pragma GCC unroll 4
    for (; k + 16 <= row; k += 16) {
      const int64x2_t a = load<int64x2_t>(codes + k), b = load<int64x2_t>(other + k);
      store(pairs + 2 * k, vzip1q_s64(a, b));
      store(pairs + 2 * k + 16, vzip2q_s64(a, b));
    }
    if (k < row) vst1q_s8(pairs + 2 * k, vcombine_s8(vld1_s8(codes + k), vld1_s8(other + k)));
  }
}

// What both rows of a pair begin with: the symmetric zero point's part, in the last plane.
inline int32x4_t begin_pair(const PanelView& w, const int32_t* sums, bool alone, bool last_plane) {
  if (!w.symmetric || !last_plane) return vdupq_n_s32(0);
  const int32x2_t two = alone ? vdup_n_s32(sums[0]) : vld1_s32(sums);
  return vcombine_s32(two, two) * -(1 << (w.bits - 1));
}

// P pairs of codes, `planes` for each pair of tokens; odd: the last pair is one token.
template <int P, int planes>
void block_pairs(const PanelView& w, const uint8_t* chunk, const uint8_t* rows, const int8_t* codes,
                 const RoundedX& x, int64_t at, bool odd, float* y) {
  constexpr int MB = 2 * P;
  const int64_t columns = w.columns;
  int32x4_t start[P];
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) {
    const int pair = i / planes;
    const bool alone = odd && pair == P / planes - 1;
    start[i] = begin_pair(w, x.sums + at + 2 * pair, alone, i % planes == planes - 1);
  }
  for (int v0 = 0; v0 < NV; v0 += kPairVectors) {
    int32x4_t acc[P][kRowPairs];
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kRowPairs; ++r) acc[i][r] = start[i];
    }
    const uint8_t* from = rows + v0 * 2 * 16;
    for (int64_t k = 0; k < columns; k += 8, from += kStepBytes) {
      uint8x16_t a[kRowPairs];
#pragma GCC unroll 8
      for (int r = 0; r < kRowPairs; ++r) a[r] = vld1q_u8(from + 16 * r);
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const int8x16_t b = vld1q_s8(codes + 2 * (i * columns + k));
#pragma GCC unroll 8
        for (int r = 0; r < kRowPairs; ++r) acc[i][r] = vusmmlaq_s32(acc[i][r], a[r], b);
      }
    }
    vi whole[MB][kPairVectors];  // row of codes: token, then plane
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      const int code = i / planes * 2 * planes + i % planes;
#pragma GCC unroll 8
      for (int v = 0; v < kPairVectors; ++v) {
        const int32x4_t p = acc[i][2 * v], q = acc[i][2 * v + 1];
        whole[code][v] = reinterpret_cast<vi>(vuzp1q_s32(p, q));
        whole[code + planes][v] = reinterpret_cast<vi>(vuzp2q_s32(p, q));
      }
    }
    const auto add = [&](auto& part) {
      constexpr int n = sizeof part / sizeof part[0];
      if (w.bits == 4) {
        finish_block<n, kPairVectors, planes, packed_int4>(w, chunk, chunk, x, at, part, v0, y);
      } else {
        finish_block<n, kPairVectors, planes, bytes_int8>(w, chunk, chunk, x, at, part, v0, y);
      }
    };
    if (odd) {
      vi fewer[MB - planes][kPairVectors];
      __builtin_memcpy(fewer, whole, sizeof fewer);
      add(fewer);
    } else {
      add(whole);
    }
  }
}

template <int planes>
void panel_pairs_of(const PanelView& w, const uint8_t* chunk, const RoundedX& x, int64_t m0,
                    int64_t m1, float* y, void* scratch) {
  constexpr int most = kTokenPairs / planes;  // pairs of tokens in a block
  const int64_t tokens = m1 - m0, pairs = (tokens + 1) / 2, blocks = (pairs + most - 1) / most;
  auto* rows = static_cast<uint8_t*>(scratch);
  auto* codes = reinterpret_cast<int8_t*>(rows + kMaxChunk * kPanel);
  for (int64_t c = 0; c < w.n_chunks; ++c, chunk += w.chunk_bytes) {
    const int64_t at = c * x.M + m0, row = planes * w.columns;
    if (w.bits == 4) {
      pair_rows<4>(chunk, w.columns, rows);
    } else {
      pair_rows<8>(chunk, w.columns, rows);
    }
    pair_tokens(x.codes + at * row, tokens, planes, w.columns, codes);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = pairs * b / blocks, n = pairs * (b + 1) / blocks - first;
      const auto block = [&](auto* run) {
        run(w, chunk, rows, codes + 2 * first * row, x, at + 2 * first,
            b == blocks - 1 && tokens % 2 == 1, y + 2 * first * kPanel);
      };
      if (n == most) {
        block(block_pairs<kTokenPairs, planes>);
      } else if (n == 1) {
        block(block_pairs<planes, planes>);
      } else if (planes == 1 && n == 2) {
        block(block_pairs<2, 1>);
      } else {
        block(block_pairs<3, 1>);
      }
    }
  }
}

// panel_rounded for many tokens.
void panel_pairs(const PanelWeight& w, int64_t p, const RoundedX& x, int64_t m0, int64_t m1, float* y,
                 void* scratch) {
  for (int64_t i = 0; i < (m1 - m0) * kPanel; ++i) y[i] = 0;
  if (x.planes == 1) {
    panel_pairs_of<1>(w.view, w.panel(p), x, m0, m1, y, scratch);
  } else {
    panel_pairs_of<2>(w.view, w.panel(p), x, m0, m1, y, scratch);
  }
}
