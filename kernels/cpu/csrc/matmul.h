// Products with weights in panels, shared by the members of a team.
#pragma once

#include "kernels.h"
#include "pool.h"

namespace soroq {

// What activations are multiplied as: float32, or integers of 8 or 15 bits (one plane or two).
enum class Precision { exact, int8, int16 };

// Memory of one thread that grows and is kept: `get` hands out the same bytes again, on a 64-byte
// boundary, so that a kernel allocates nothing once it has seen its largest problem.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();
  void* get(int64_t bytes);
  template <typename T>
  T* take(int64_t n) {
    return static_cast<T*>(get(n * static_cast<int64_t>(sizeof(T))));
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

inline int planes_of(Precision precision) { return precision == Precision::int16 ? 2 : 1; }

// Bytes of the rounded form of M tokens for a weight, and its parts within that memory.
int64_t rounded_bytes(const PanelShape& shape, int64_t M, Precision precision);
RoundedX rounded_in(const PanelShape& shape, int64_t M, Precision precision, void* memory);

// What happens to a product before it is stored.
struct Finish {
  float* y;        // (M, ldy)
  int64_t ldy;
  const float* bias = nullptr;      // (N)
  const float* residual = nullptr;  // (M, ldy), added
  enum Gate { none, gelu, silu } gate = none;  // panels 2i and 2i + 1 are act(2i) * (2i + 1)
  int64_t gated_rows = 0;           // columns of y when gated
};

// This member's part of y = finish(x W^T). `rounded` is read unless precision is exact or the weights
// have 16 bits; then x (M, ldx) is.
void multiply(const Member& me, const PanelWeight& w, Precision precision, const RoundedX& rounded,
              const float* x, int64_t ldx, int64_t M, const Finish& finish);

// Writes zeros here and there to the panels that this member reads in `multiply` (of up to kTaskRows
// tokens), before anything else is written: a machine with several memories then takes their pages from
// the one beside the processor where the member runs. gated: panels go in pairs.
void touch_panels(const Member& me, const PanelShape& shape, bool gated, uint8_t* data);

// The whole product with a team of its own.
void matmul(const PanelWeight& w, Precision precision, const float* x, int64_t ldx, int64_t M,
            const Finish& finish);

// Whether a product with these weights rounds its activations.
inline bool rounds(const PanelWeight& w, Precision precision) {
  return precision != Precision::exact && w.bits != 16;
}

}  // namespace soroq
