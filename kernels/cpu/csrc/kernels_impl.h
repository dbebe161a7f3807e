// The kernels, once for all instruction sets: included by each simd_*.cpp inside a namespace of its
// own, behind a struct V that says how wide a vector is and how it multiplies bytes:
//
//   V::L                 32-bit lanes of a vector (64 is a multiple)
//   V::kAccumulators     how many sums a block may hold in registers
//   V::kRows             most tokens of a block
//   V::kDirect           up to so many tokens int4 is unpacked anew for each block: above, once
//   V::kSignedDot        whether `dot` takes both sides as signed bytes
//   V::dot(acc, w, x)    acc + the sums of four products each; w holds values up to 15
//   V::dot_full(...)     the same for any w
//   V::dot_two(acc, w0, x0, w1, x1)  two of `dot`
//   V::kDotPairs         whether that is cheaper than one after the other
//   V::bytes(p), V::halves(p)  L unsigned integers of 8 or 16 bits as lanes
//   V::store_bytes(p, v) the lowest 8 bits of each lane
//   V::sum(v)            of all lanes of a float vector
//   V::quad_max(v)       in each lane, the greatest of the four lanes that share 16 bytes with it
//   V::swap(v, n)        runs of n lanes (4 or more) change places with their neighbours
//   V::bits(v)           a bit for each lane, from masks of all ones or zeros
//
// Nothing here may be an inline function of the standard library: the linker keeps one copy of such
// a function, perhaps the one made for a processor that this one isn't.

#if defined(__aarch64__)
#define SOROQ_ANY "+w"
#elif defined(__AVX512F__)
#define SOROQ_ANY "+v"
#else
#define SOROQ_ANY "+x"
#endif

typedef float vf __attribute__((vector_size(4 * V::L)));
typedef int32_t vi __attribute__((vector_size(4 * V::L)));
typedef uint32_t vu __attribute__((vector_size(4 * V::L)));

constexpr int L = V::L;
constexpr int NV = kPanel / L;   // vectors of a panel's 64 rows
constexpr int kAhead = 8192;     // bytes that a product asks for before it needs them
constexpr int kDirectExact = 4;  // up to so many tokens nothing goes through a buffer

// Vectors of rows in a block with MB tokens.
constexpr int tile_of(int MB) {
  int n = NV;
  while (n > 1 && n * MB > V::kAccumulators) n /= 2;
  return n;
}

template <typename T>
inline T load(const void* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
inline void store(void* p, T v) {
  __builtin_memcpy(p, &v, sizeof v);
}

inline vf splat(float x) { return x - vf{}; }
inline vi splat_i(int32_t x) { return x - vi{}; }
inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
inline vf max_of(vf a, vf b) { return a > b ? a : b; }
inline vf min_of(vf a, vf b) { return a < b ? a : b; }

// bfloat16 as float32.
inline vf widen(const void* p) { return reinterpret_cast<vf>(V::halves(p) << 16); }

inline float sum_of(vf v) { return V::sum(v); }

inline float max_of(vf v) {
  float m = v[0];
  for (int i = 1; i < L; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// exp within 2 ulp; below -87 it is 0, of NaN it is NaN.
inline vf exp_of(vf x) {
  const vf low = splat(-87.0f), high = splat(88.0f);
  const vi none = x < low;
  x = min_of(high, max_of(low, x));  // in this order NaN stays
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf n = (x * 1.44269504089f + magic) - magic;
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
  const vf y = p * reinterpret_cast<vf>(exponent);
  return none ? vf{} : y;
}

#include "kernels_round.h"

// Bytes 4r + j, j = 0..3: columns k..k+3 of row r. `full`: codes of 8 bits.
template <bool full>
inline vi multiply(vi acc, vi w, int32_t x) {
  const vi xs = splat_i(x);
  return full ? V::dot_full(acc, w, xs) : V::dot(acc, w, xs);
}

// What is subtracted from a stored zero point, since `dot` saw signed codes.
constexpr float kShift8 = V::kSignedDot ? 128.0f : 0.0f;

inline vi signed_codes(vi w) {
  return V::kSignedDot ? w ^ static_cast<int32_t>(0x80808080u) : w;
}

// The scales of a chunk for the rows of vector v, and its zero points.
inline vf scales_of(const PanelView& w, const uint8_t* chunk, int v) {
  const uint8_t* scales = chunk + w.code_bytes;
  return w.bf16_scales ? widen(scales + 2 * v * L) : load<vf>(scales + 4 * v * L);
}

inline vf zeros_of(const PanelView& w, const uint8_t* chunk, int v) {
  return to_float(V::bytes(chunk + w.code_bytes + w.scale_bytes + v * L));
}

// What a block's sums begin with: the symmetric zero point's part; of two planes in the second.
template <int MB, int NT, int planes>
inline void begin_sums(const PanelView& w, const int32_t* sums, vi (&acc)[MB][NT]) {
  const bool centred = !w.symmetric || (w.bits == 8 && V::kSignedDot);
#pragma GCC unroll 8
  for (int i = 0; i < MB; ++i) {
    vi begin = {};
    if (i % planes == planes - 1 && !centred) begin = -(splat_i(sums[i / planes]) << (w.bits - 1));
#pragma GCC unroll 16
    for (int v = 0; v < NT; ++v) acc[i][v] = begin;
  }
}

// Where a chunk's codes are read again: packed in the chunk, or of a byte each.
enum Codes { packed_int4, bytes_int4, bytes_int8 };

// Four codes of the rows of vectors from `from` on; shift: 4 for the upper halves of packed ones.
template <Codes kind>
inline vi quad_codes(const uint8_t* from, int shift) {
  if (kind == packed_int4) return reinterpret_cast<vi>(load<vu>(from) >> shift) & 0x0F0F0F0F;
  return kind == bytes_int8 ? signed_codes(load<vi>(from)) : load<vi>(from);
}

// Adds what a token's quads apart make to the sums of NT vectors of rows from v0 on.
template <int NT, Codes kind>
inline void add_apart(const uint8_t* codes, const Apart& apart, int v0, vi* sums) {
  const uint8_t* from[kApart];
  int shift[kApart];
  vi x[kApart];
  for (int i = 0; i < kApart; ++i) {
    const int64_t quad = apart.quad[i];
    from[i] = codes + (kind == packed_int4 ? quad / 2 : quad) * 4 * kPanel + v0 * L * 4;
    shift[i] = static_cast<int>(quad % 2 * 4);
    x[i] = splat_i(apart.codes[i]);
  }
#pragma GCC unroll 16
  for (int v = 0; v < NT; ++v) {
    const vi w0 = quad_codes<kind>(from[0] + v * L * 4, shift[0]);
    const vi w1 = quad_codes<kind>(from[1] + v * L * 4, shift[1]);
    vi sum = {};
    if (kind == bytes_int8) {
      sum = V::dot_full(V::dot_full(sum, w0, x[0]), w1, x[1]);
    } else {
      sum = V::dot_two(sum, w0, x[0], w1, x[1]);
    }
    sums[v] += sum << 7;
  }
}

// Adds the scaled sums of one block to y (MB / planes, 64), from vector v0 of its rows on; `scales`
// and `sums`: the tokens'.
template <int MB, int NT, int planes, bool symmetric>
inline void add_scaled(const PanelView& w, const uint8_t* chunk, const float* scales,
                       const int32_t* sums, const vi (&acc)[MB][NT], int v0, float* y) {
  const float shift = w.bits == 8 ? kShift8 : 0.0f;
  float each[MB / planes];
  for (int m = 0; m < MB / planes; ++m) each[m] = scales[m];
#pragma GCC unroll 16
  for (int v = 0; v < NT; ++v) {
    const vf scale = scales_of(w, chunk, v0 + v);
    const vf zero = symmetric ? vf{} : zeros_of(w, chunk, v0 + v) - shift;
#pragma GCC unroll 8
    for (int m = 0; m < MB / planes; ++m) {
      float* to = y + m * kPanel + (v0 + v) * L;
      vi whole = acc[m * planes][v];
      if (planes == 2) whole = (whole << 7) + acc[m * planes + 1][v];
      vf product = to_float(whole);
      if (!symmetric) product -= zero * static_cast<float>(sums[m]);
      store(to, load<vf>(to) + product * (scale * each[m]));
    }
  }
}

// What is done with a block's sums: codes are what `kind` says, the tokens' begin at `at`.
template <int MB, int NT, int planes, Codes kind>
inline void finish_block(const PanelView& w, const uint8_t* chunk, const uint8_t* codes,
                         const RoundedX& x, int64_t at, vi (&acc)[MB][NT], int v0, float* y) {
  if (planes == 1 && x.apart) {
#pragma GCC unroll 8
    for (int m = 0; m < MB; ++m) add_apart<NT, kind>(codes, x.apart[at + m], v0, acc[m]);
  }
  if (w.symmetric) {
    add_scaled<MB, NT, planes, true>(w, chunk, x.scales + at, x.sums + at, acc, v0, y);
  } else {
    add_scaled<MB, NT, planes, false>(w, chunk, x.scales + at, x.sums + at, acc, v0, y);
  }
}

// int4 straight from memory.
template <int MB, int planes>
void block_int4(const PanelView& w, const uint8_t* chunk, const RoundedX& x, int64_t c,
                int64_t m, float* y) {
  constexpr int NT = tile_of(MB);
  const int64_t columns = w.columns, at = c * x.M + m;
  const int8_t* codes = x.codes + at * planes * columns;
  for (int v0 = 0; v0 < NV; v0 += NT) {
    vi low[MB][NT], high[MB][NT] = {};
    begin_sums<MB, NT, planes>(w, x.sums + at, low);
    const uint8_t* from = chunk + v0 * L * 4;
    for (int64_t k = 0; k < columns; k += 8, from += 4 * kPanel) {
#pragma GCC unroll 16
      for (int v = 0; v < NT; ++v) {
        const vi pair = load<vi>(from + v * L * 4);
        if (v * L % 16 == 0) __builtin_prefetch(from + v * L * 4 + kAhead);
        const vi lower = pair & 0x0F0F0F0F;
        const vi upper = reinterpret_cast<vi>(reinterpret_cast<vu>(pair) >> 4) & 0x0F0F0F0F;
#pragma GCC unroll 8
        for (int i = 0; i < MB; ++i) {
          const int8_t* q = codes + i * columns + k;
          if (V::kDotPairs) {
            low[i][v] = V::dot_two(low[i][v], lower, splat_i(load<int32_t>(q)), upper,
                                   splat_i(load<int32_t>(q + 4)));
            continue;
          }
          low[i][v] = multiply<false>(low[i][v], lower, load<int32_t>(q));
          vi& second = MB * NT * 2 <= V::kAccumulators ? high[i][v] : low[i][v];
          second = multiply<false>(second, upper, load<int32_t>(q + 4));
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MB; ++i) {
#pragma GCC unroll 16
      for (int v = 0; v < NT; ++v) low[i][v] += high[i][v];
    }
    finish_block<MB, NT, planes, packed_int4>(w, chunk, chunk, x, at, low, v0, y);
  }
}

// Codes of one byte each: int8 from memory, or int4 from the buffer that `unpack` fills.
template <int MB, int planes, bool full>
void block_bytes(const PanelView& w, const uint8_t* chunk, const uint8_t* bytes,
                 const RoundedX& x, int64_t c, int64_t m, float* y) {
  constexpr int NT = tile_of(MB);
  const int64_t columns = w.columns, at = c * x.M + m;
  const int8_t* codes = x.codes + at * planes * columns;
  for (int v0 = 0; v0 < NV; v0 += NT) {
    vi acc[MB][NT];
    begin_sums<MB, NT, planes>(w, x.sums + at, acc);
    const uint8_t* from = bytes + v0 * L * 4;
    if (V::kDotPairs && !full) {
      for (int64_t k = 0; k < columns; k += 8, from += 8 * kPanel) {
        vi w0[NT], w1[NT];
#pragma GCC unroll 16
        for (int v = 0; v < NT; ++v) {
          w0[v] = load<vi>(from + v * L * 4);
          w1[v] = load<vi>(from + 4 * kPanel + v * L * 4);
        }
#pragma GCC unroll 8
        for (int i = 0; i < MB; ++i) {
          const int8_t* q = codes + i * columns + k;
          const vi x0 = splat_i(load<int32_t>(q)), x1 = splat_i(load<int32_t>(q + 4));
#pragma GCC unroll 16
          for (int v = 0; v < NT; ++v) acc[i][v] = V::dot_two(acc[i][v], w0[v], x0, w1[v], x1);
        }
      }
      finish_block<MB, NT, planes, full ? bytes_int8 : bytes_int4>(w, chunk, bytes, x, at, acc, v0, y);
      continue;
    }
    for (int64_t k = 0; k < columns; k += 4, from += 4 * kPanel) {
      vi rows[NT];
#pragma GCC unroll 16
      for (int v = 0; v < NT; ++v) {
        rows[v] = load<vi>(from + v * L * 4);
        if (full) rows[v] = signed_codes(rows[v]);
        if (full && MB <= 2) __builtin_prefetch(from + v * L * 4 + kAhead);
      }
#pragma GCC unroll 8
      for (int i = 0; i < MB; ++i) {
        const int32_t q = load<int32_t>(codes + i * columns + k);
#pragma GCC unroll 16
        for (int v = 0; v < NT; ++v) acc[i][v] = multiply<full>(acc[i][v], rows[v], q);
      }
    }
    finish_block<MB, NT, planes, full ? bytes_int8 : bytes_int4>(w, chunk, bytes, x, at, acc, v0, y);
  }
}

void unpack(const uint8_t* chunk, int64_t columns, uint8_t* bytes) {
  for (int64_t k = 0; k < columns; k += 8, chunk += 4 * kPanel, bytes += 8 * kPanel) {
    for (int v = 0; v < NV; ++v) {
      const vi pair = load<vi>(chunk + v * L * 4);
      if (v * L % 16 == 0) __builtin_prefetch(chunk + v * L * 4 + kAhead);
      store(bytes + v * L * 4, pair & 0x0F0F0F0F);
      store(bytes + 4 * kPanel + v * L * 4,
            reinterpret_cast<vi>(reinterpret_cast<vu>(pair) >> 4) & 0x0F0F0F0F);
    }
  }
}

// MB: rows of codes, `planes` for each token.
template <int MB, int planes>
inline void block_any(const PanelView& w, const uint8_t* chunk, const uint8_t* bytes,
                      const RoundedX& x, int64_t c, int64_t m, float* y) {
  if (bytes == nullptr) {
    block_int4<MB, planes>(w, chunk, x, c, m, y);
  } else if (w.bits == 4) {
    block_bytes<MB, planes, false>(w, chunk, bytes, x, c, m, y);
  } else {
    block_bytes<MB, planes, true>(w, chunk, bytes, x, c, m, y);
  }
}

template <int tokens>
inline void block_rounded(const PanelView& w, const uint8_t* chunk, const uint8_t* bytes,
                          const RoundedX& x, int64_t c, int64_t m, float* y) {
  if (x.planes == 1) {
    block_any<tokens, 1>(w, chunk, bytes, x, c, m, y);
  } else {
    block_any<2 * (tokens > 3 ? 3 : tokens), 2>(w, chunk, bytes, x, c, m, y);
  }
}

// Calls block<rows>(...) for the rows m0 to m1 in blocks as even as can be.
#define SOROQ_FOR_BLOCKS(m0, m1, most, block, ...)                                      \
  do {                                                                                  \
    const int64_t rows_ = (m1) - (m0), blocks_ = (rows_ + (most) - 1) / (most);         \
    for (int64_t b_ = 0; b_ < blocks_; ++b_) {                                          \
      const int64_t m = (m0) + rows_ * b_ / blocks_, n_ = (m0) + rows_ * (b_ + 1) / blocks_ - m; \
      float* to = y + (m - (m0)) * kPanel;                                              \
      switch (n_) {                                                                     \
        case 1: block<1>(__VA_ARGS__); break;                                           \
        case 2: block<2>(__VA_ARGS__); break;                                           \
        case 3: block<3>(__VA_ARGS__); break;                                           \
        case 4: block<4>(__VA_ARGS__); break;                                           \
        case 5: block<5>(__VA_ARGS__); break;                                           \
        default: block<6>(__VA_ARGS__); break;                                          \
      }                                                                                 \
    }                                                                                   \
  } while (0)

void panel_rounded(const PanelWeight& weight, int64_t p, const RoundedX& x, int64_t m0, int64_t m1,
                float* y, void* scratch) {
  for (int64_t i = 0; i < (m1 - m0) * kPanel; ++i) y[i] = 0;
  const PanelView& w = weight.view;
  const uint8_t* chunk = weight.panel(p);
  for (int64_t c = 0; c < w.n_chunks; ++c, chunk += w.chunk_bytes) {
    const uint8_t* bytes = w.bits == 8 ? chunk : nullptr;
    if (w.bits == 4 && (m1 - m0) * x.planes > V::kDirect) {
      unpack(chunk, w.columns, static_cast<uint8_t*>(scratch));
      bytes = static_cast<uint8_t*>(scratch);
    }
    SOROQ_FOR_BLOCKS(m0, m1, V::kRows / x.planes, block_rounded, w, chunk, bytes, x, c, m, to);
  }
}

#include "kernels_exact.h"
#include "kernels_attention.h"

bool any_above(const float* v, int64_t n, float limit) {
  vi within = splat_i(-1);
  int64_t i = 0;
  for (; i + L <= n; i += L) within &= load<vf>(v + i) <= limit;  // false for NaN
  bool above = false;
  for (int lane = 0; lane < L; ++lane) above |= within[lane] == 0;
  for (; i < n; ++i) above |= !(v[i] <= limit);
  return above;
}

uint64_t read_lines(const uint8_t* data, int64_t n) {
  vi sums[4] = {};
  for (int64_t i = 0; i < n; ++i, data += 64) {
    __builtin_prefetch(data + kAhead);
    for (int v = 0; v < 64 / (4 * L); ++v) sums[v % 4] ^= load<vi>(data + v * L * 4);
  }
  const vi all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint64_t out = 0;
  for (int i = 0; i < L; ++i) out += static_cast<uint32_t>(all[i]);
  return out;
}

constexpr int kChains = V::kAccumulators < 12 ? V::kAccumulators : 12;

// The asm makes the compiler believe that each sum is used and changed every time.
int64_t peak_int8(int64_t rounds) {
  vi acc[kChains] = {};
  vi w = splat_i(0x01020304), x = splat_i(0x01010101);
  asm volatile("" : SOROQ_ANY(w), SOROQ_ANY(x));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      acc[i] = V::dot(acc[i], w, x);
      asm volatile("" : SOROQ_ANY(acc[i]));
    }
  }
  return rounds * kChains * L * 8;
}

int64_t peak_fma(int64_t rounds) {
  vf acc[kChains] = {};
  vf w = splat(0.5f), x = splat(0.25f);
  asm volatile("" : SOROQ_ANY(w), SOROQ_ANY(x));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      acc[i] += w * x;
      asm volatile("" : SOROQ_ANY(acc[i]));
    }
  }
  return rounds * kChains * L * 2;
}

constexpr Kernels kTable = {V::kName, round_row, panel_rounded, panel_exact, rms_norm,
                            gated, attend<uint16_t>, attend<float>, any_above, read_lines, peak_int8, peak_fma};
