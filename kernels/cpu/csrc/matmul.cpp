#include "matmul.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "isa.h"

namespace soroq {

namespace {

// Up to so many tokens every member rounds all of x for itself, which is cheaper than waiting.
constexpr int64_t kOwnRows = 4;

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

thread_local Arena tile_arena, scratch_arena, own_arena;
Arena shared_arena;  // of the one team that works

void store_tile(const float* tile, int64_t p, int64_t m0, int64_t m1, int64_t N,
                const Finish& f) {
  const int64_t n0 = p * kPanel, n = std::min(kPanel, N - n0);
  for (int64_t m = m0; m < m1; ++m, tile += kPanel) {
    float* to = f.y + m * f.ldy + n0;
    std::copy_n(tile, n, to);
    if (f.bias) {
      for (int64_t i = 0; i < n; ++i) to[i] += f.bias[n0 + i];
    }
    if (f.residual) {
      const float* residual = f.residual + m * f.ldy + n0;
      for (int64_t i = 0; i < n; ++i) to[i] += residual[i];
    }
  }
}

}  // namespace

Arena::~Arena() { std::free(memory_); }

void* Arena::get(int64_t bytes) {
  if (bytes > size_) {
    std::free(memory_);
    size_ = aligned(bytes + bytes / 4);
    memory_ = std::aligned_alloc(64, size_);
    if (memory_ == nullptr) {
      size_ = 0;
      throw std::bad_alloc();
    }
  }
  return memory_;
}

int64_t rounded_bytes(const PanelShape& s, int64_t M, Precision precision) {
  const int64_t codes = s.n_chunks() * s.chunk() * M * planes_of(precision);
  const int64_t each = s.n_chunks() * M, apart = precision == Precision::int8 ? sizeof(Apart) : 0;
  return aligned(codes) + 2 * aligned(each * 4) + aligned(each * apart);
}

RoundedX rounded_in(const PanelShape& s, int64_t M, Precision precision, void* memory) {
  char* at = static_cast<char*>(memory);
  RoundedX x;
  x.M = M;
  x.planes = planes_of(precision);
  x.codes = reinterpret_cast<int8_t*>(at);
  at += aligned(s.n_chunks() * s.chunk() * M * x.planes);
  x.scales = reinterpret_cast<float*>(at);
  at += aligned(s.n_chunks() * M * 4);
  x.sums = reinterpret_cast<int32_t*>(at);
  at += aligned(s.n_chunks() * M * 4);
  x.apart = x.planes == 1 ? reinterpret_cast<Apart*>(at) : nullptr;
  return x;
}

void multiply(const Member& me, const PanelWeight& w, Precision precision, const RoundedX& rounded,
              const float* x, int64_t ldx, int64_t M, const Finish& f) {
  const Kernels& k = kernels();
  const bool is_gated = f.gate != Finish::none;
  const int64_t step = is_gated ? 2 : 1;
  const int64_t columns = w.n_panels() / step;
  const int64_t row_parts = (M + kTaskRows - 1) / kTaskRows;
  const int64_t tasks = columns * row_parts;
  const int64_t rows = std::min(M, kTaskRows);
  float* tile = tile_arena.take<float>(rows * kPanel * 2);
  void* scratch = scratch_arena.get(kScratchBytes);
  const auto panel = [&](int64_t p, int64_t m0, int64_t m1, float* to) {
    if (rounds(w, precision)) {
      k.panel_rounded(w, p, rounded, m0, m1, to, scratch);
    } else {
      k.panel_exact(w, p, x, ldx, m0, m1, to, scratch);
    }
  };
  for (int64_t t = me.begin(tasks); t < me.end(tasks); ++t) {
    const int64_t column = t % columns, part = t / columns;
    const int64_t m0 = M * part / row_parts, m1 = M * (part + 1) / row_parts;
    panel(column * step, m0, m1, tile);
    if (!is_gated) {
      store_tile(tile, column, m0, m1, w.N, f);
      continue;
    }
    float* up = tile + (m1 - m0) * kPanel;
    panel(column * step + 1, m0, m1, up);
    k.gated(tile, up, f.gate == Finish::gelu, (m1 - m0) * kPanel, tile);
    store_tile(tile, column, m0, m1, f.gated_rows, f);
  }
}

void touch_panels(const Member& me, const PanelShape& s, bool gated, uint8_t* data) {
  constexpr int64_t page = 4096;  // the smallest that there is
  const int64_t step = gated ? 2 : 1, columns = s.n_panels() / step;
  const int64_t begin = me.begin(columns) * step * s.panel_bytes();
  const int64_t end = me.end(columns) * step * s.panel_bytes();
  for (int64_t at = begin; at < end; at += page) data[at] = 0;
  if (begin < end) data[end - 1] = 0;
}

void matmul(const PanelWeight& w, Precision precision, const float* x, int64_t ldx, int64_t M,
            const Finish& finish) {
  if (M == 0 || w.N == 0) return;
  const bool rounding = rounds(w, precision);
  const bool alone = M <= kOwnRows;
  RoundedX shared = {};
  run([&](const Member& me) {
    RoundedX rounded = {};
    if (rounding && alone) {
      rounded = rounded_in(w, M, precision, own_arena.get(rounded_bytes(w, M, precision)));
      for (int64_t m = 0; m < M; ++m) kernels().round_row(w, x + m * ldx, m, rounded);
    } else if (rounding) {
      if (me.index == 0) {
        shared = rounded_in(w, M, precision, shared_arena.get(rounded_bytes(w, M, precision)));
      }
      me.barrier();
      rounded = shared;
      for (int64_t m = me.begin(M); m < me.end(M); ++m) {
        kernels().round_row(w, x + m * ldx, m, rounded);
      }
      me.barrier();
    }
    multiply(me, w, precision, rounded, x, ldx, M, finish);
  });
}

}  // namespace soroq
