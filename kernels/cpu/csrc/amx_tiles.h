// The tile instructions that kernels_tiles.h uses: the compiler's, or with SOROQ_AMX_MODEL a model of
// them in plain C++, for processors without AMX. Included inside a namespace.
//
//   SOROQ_TILE_CONFIGURE(config)         LDTILECFG: shapes of the tiles, all zero
//   SOROQ_TILE_ZERO(t)                   TILEZERO
//   SOROQ_TILE_LOAD(t, from, stride)     TILELOADD: a row every `stride` bytes
//   SOROQ_TILE_STORE(t, to, stride)      TILESTORED
//   SOROQ_TILE_MULTIPLY(to, a, b)        TDPBSUD: to (M, N) int32 += a (M, 4 K) signed * b (K, N, 4)
//                                        unsigned
//   SOROQ_TILE_RELEASE()                 TILERELEASE: the state that a switch of threads needn't save
//
// Tiles are named by plain digits: the compiler's macros paste them into assembly.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volumes 1 (chapter 18) and 2.

// The operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

#if !defined(SOROQ_AMX_MODEL)

// gcc 12 doesn't know that tiles are loaded from memory, nor that LDTILECFG reads more than 8 bytes:
// without the empty asm it may leave out what was written there.
#define SOROQ_TILE_SEES(p) asm volatile("" : : "r"(p) : "memory")
#define SOROQ_TILE_CONFIGURE(config) \
  do {                               \
    SOROQ_TILE_SEES(config);         \
    _tile_loadconfig(config);        \
  } while (0)
#define SOROQ_TILE_ZERO(t) _tile_zero(t)
#define SOROQ_TILE_LOAD(t, from, stride) \
  do {                                   \
    SOROQ_TILE_SEES(from);               \
    _tile_loadd(t, from, stride);        \
  } while (0)
#define SOROQ_TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define SOROQ_TILE_MULTIPLY(to, a, b) _tile_dpbsud(to, a, b)
#define SOROQ_TILE_RELEASE() _tile_release()

#else

struct TileState {
  bool configured;
  int rows[8], row_bytes[8];
  uint8_t data[8][16][64];
};

static thread_local TileState tile_state;

// What the processor answers with a fault ends the process here.
inline void tile_require(bool ok) {
  if (!ok) __builtin_trap();
}

inline void tile_configure(const TileConfig* config) {
  TileState& s = tile_state;
  tile_require(config->palette == 1 && config->start_row == 0);
  for (int i = 0; i < 14; ++i) tile_require(config->reserved[i] == 0);
  for (int t = 0; t < 16; ++t) {
    const int rows = config->rows[t], bytes = config->row_bytes[t];
    tile_require(t < 8 ? rows <= 16 && bytes <= 64 && (rows == 0) == (bytes == 0)
                       : rows == 0 && bytes == 0);
    if (t == 8) break;
    s.rows[t] = rows;
    s.row_bytes[t] = bytes;
  }
  __builtin_memset(s.data, 0, sizeof s.data);
  s.configured = true;
}

// Tile t, which must have a shape.
inline uint8_t (*tile_data(int t))[64] {
  tile_require(tile_state.configured && t >= 0 && t < 8 && tile_state.rows[t] > 0);
  return tile_state.data[t];
}

inline void tile_zero(int t) { __builtin_memset(tile_data(t), 0, 16 * 64); }

inline void tile_load(int t, const void* from, int64_t stride) {
  tile_zero(t);  // rows and bytes beyond the shape become zero
  for (int r = 0; r < tile_state.rows[t]; ++r) {
    __builtin_memcpy(tile_data(t)[r], static_cast<const uint8_t*>(from) + r * stride,
                     static_cast<size_t>(tile_state.row_bytes[t]));
  }
}

inline void tile_store(int t, void* to, int64_t stride) {
  for (int r = 0; r < tile_state.rows[t]; ++r) {
    __builtin_memcpy(static_cast<uint8_t*>(to) + r * stride, tile_data(t)[r],
                     static_cast<size_t>(tile_state.row_bytes[t]));
  }
}

inline void tile_multiply(int to, int a, int b) {
  const TileState& s = tile_state;
  uint8_t (*sums)[64] = tile_data(to);
  const uint8_t (*left)[64] = tile_data(a), (*right)[64] = tile_data(b);
  tile_require(to != a && to != b && a != b);
  tile_require(s.row_bytes[to] % 4 == 0 && s.row_bytes[a] % 4 == 0 && s.row_bytes[b] % 4 == 0);
  tile_require(s.rows[to] == s.rows[a] && s.row_bytes[a] / 4 == s.rows[b] &&
               s.row_bytes[to] == s.row_bytes[b]);
  for (int m = 0; m < s.rows[to]; ++m) {
    for (int k = 0; k < s.row_bytes[a] / 4; ++k) {
      for (int n = 0; n < s.row_bytes[to] / 4; ++n) {
        int32_t sum;
        __builtin_memcpy(&sum, &sums[m][4 * n], 4);
        for (int j = 0; j < 4; ++j) {
          sum += static_cast<int8_t>(left[m][4 * k + j]) * static_cast<int>(right[k][4 * n + j]);
        }
        __builtin_memcpy(&sums[m][4 * n], &sum, 4);
      }
    }
  }
}

#define SOROQ_TILE_CONFIGURE(config) tile_configure(config)
#define SOROQ_TILE_ZERO(t) tile_zero(t)
#define SOROQ_TILE_LOAD(t, from, stride) tile_load(t, from, stride)
#define SOROQ_TILE_STORE(t, to, stride) tile_store(t, to, stride)
#define SOROQ_TILE_MULTIPLY(to, a, b) tile_multiply(to, a, b)
#define SOROQ_TILE_RELEASE() (tile_state.configured = false)

#endif
