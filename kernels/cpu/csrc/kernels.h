// What one instruction set offers. All members are plain functions on plain arrays: they are
// compiled once for each instruction set (simd_*.cpp) and must not share code through the linker.
#pragma once

#include <cstdint>

#include "panels.h"

namespace soroq {

// Activations rounded to integers per token and chunk: x[m][k] ~ value * scale. Two planes: values up
// to 127 * 128 + 64, value = 128 * first + second. One plane: values up to 127, but for those of up to
// two quads (four columns, what a dot product takes), whose value is the plane's + 128 * the apart's:
// without them, one value far off would leave few steps for all others of its chunk.
//
// codes (n_chunks, M, planes, chunk); scales, sums (of the values) and apart (n_chunks, M). apart is null
// with two planes, or when the scale of one reaches all values. A chunk with a value that is not finite has the scale NaN.
constexpr int kApart = 2;

struct Apart {
  int32_t quad[kApart];   // column / 4
  int32_t codes[kApart];  // four of int8; 0: there is none
};

struct RoundedX {
  int8_t* codes;
  float* scales;
  int32_t* sums;
  Apart* apart;
  int64_t M;
  int planes;
};

struct Kernels {
  const char* name;

  // Rounds row x (K) as token m of `out`, in the chunks of `shape`.
  void (*round_row)(const PanelShape& shape, const float* x, int64_t m, const RoundedX& out);

  // y (m1 - m0, 64) = x W^T for panel p and tokens m0 to m1; x rounded. scratch: kScratchBytes.
  void (*panel_rounded)(const PanelWeight& w, int64_t p, const RoundedX& x, int64_t m0, int64_t m1,
                        float* y, void* scratch);

  // The same with x (M, K) as it is, row stride ldx.
  void (*panel_exact)(const PanelWeight& w, int64_t p, const float* x, int64_t ldx, int64_t m0,
                      int64_t m1, float* y, void* scratch);

  // y = x / rms(x) * weight over n values; weight null: 1.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);

  // y = act(gate) * up over n values; gelu in its tanh form, else silu.
  void (*gated)(const float* gate, const float* up, bool gelu, int64_t n, float* y);

  // Attention of M queries of one head on a cache: q (M, ldq), keys and values bfloat16 (T, D), D a
  // multiple of 16, rows lo[m] to hi[m] (at least one) for query m, out (M, ldo).
  // scratch: attend_floats(D).
  void (*attend)(const float* q, int64_t ldq, const uint16_t* keys, const uint16_t* values,
                 const int64_t* lo, const int64_t* hi, int64_t M, int64_t D, float scale,
                 float* out, int64_t ldo, float* scratch);

  // The same with keys and values in float32.
  void (*attend_float)(const float* q, int64_t ldq, const float* keys, const float* values,
                       const int64_t* lo, const int64_t* hi, int64_t M, int64_t D, float scale,
                       float* out, int64_t ldo, float* scratch);

  // Whether one of n values is above the limit, or NaN.
  bool (*any_above)(const float* v, int64_t n, float limit);

  // Ceilings: reads n lines of 64 bytes; multiplies in registers, returning the operations done.
  uint64_t (*read_lines)(const uint8_t* data, int64_t n);
  int64_t (*peak_int8)(int64_t rounds);
  int64_t (*peak_fma)(int64_t rounds);
};

// A chunk as float32 and its part of x: what a panel kernel may need.
constexpr int64_t kTaskRows = 256;  // most tokens that a panel kernel is given at once
constexpr int64_t kScratchBytes = kMaxChunk * (kPanel + kTaskRows) * 4;

// Floats of scratch that `attend` needs for heads of D values.
constexpr int64_t kAttendRows = 4;     // queries at once
constexpr int64_t kAttendBlock = 128;  // keys at once
constexpr int64_t attend_floats(int64_t D) { return kAttendRows * (D + kAttendBlock); }

}  // namespace soroq
