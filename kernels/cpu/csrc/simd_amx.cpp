// AVX-512 with AMX (Sapphire Rapids and newer): many tokens go through tiles, products of (16 tokens,
// 64 columns) with (64 columns, 16 rows of W) in one instruction; all else is as on AVX-512.
#include <immintrin.h>

#include "kernels.h"

// The self-test compiles this file once more, with the tiles' model.
#if defined(SOROQ_AMX_MODEL)
#define SOROQ_AMX_NAMESPACE amx_model
#define SOROQ_AMX_TABLE kAmxModel
#define SOROQ_AMX_NAME "avx512_amx_model"
#else
#define SOROQ_AMX_NAMESPACE amx
#define SOROQ_AMX_TABLE kAmx
#define SOROQ_AMX_NAME "avx512_amx"
#endif

namespace soroq {
namespace SOROQ_AMX_NAMESPACE {

#include "vectors_avx512.h"
#include "kernels_impl.h"

#include "amx_tiles.h"
#include "kernels_tiles.h"

constexpr int64_t kLeastTokens = 8;  // with fewer, tiles are too empty to pay

void panel_any(const PanelWeight& w, int64_t p, const RoundedX& x, int64_t m0, int64_t m1, float* y,
               void* scratch) {
  if (m1 - m0 < kLeastTokens) {
    panel_rounded(w, p, x, m0, m1, y, scratch);
  } else if (x.planes == 1) {
    panel_tiles<1>(w.view, w.panel(p), x, m0, m1, y, scratch);
  } else {
    panel_tiles<2>(w.view, w.panel(p), x, m0, m1, y, scratch);
  }
}

constexpr Kernels table() {
  Kernels all = kTable;
  all.name = SOROQ_AMX_NAME;
  all.panel_rounded = panel_any;
  return all;
}

}  // namespace SOROQ_AMX_NAMESPACE

extern const Kernels SOROQ_AMX_TABLE = SOROQ_AMX_NAMESPACE::table();

}  // namespace soroq
