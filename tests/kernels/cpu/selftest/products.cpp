// Products, rounding, norms, gates, attention and gathered rows against plain loops.
#include <algorithm>
#include <cstring>

#include "selftest.h"

namespace selftest {

namespace {

constexpr int64_t kTokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 17, 37, 64, 300};
constexpr Precision kPrecisions[] = {Precision::exact, Precision::int8, Precision::int16};
constexpr const char* kPrecisionNames[] = {"exact", "int8", "int16"};

std::string describe(const PanelShape& s) {
  return "N" + std::to_string(s.N) + "-K" + std::to_string(s.K) + "-G" + std::to_string(s.group) +
         "-b" + std::to_string(s.bits) + (s.symmetric ? "" : "z") + (s.bf16_scales ? "h" : "");
}

// What the integers of a chunk are multiples of: plain twin of round_row.
double step_of(const PanelShape& s, const float* x, int64_t c, Precision precision) {
  std::vector<float> quads(s.chunk() / 4, 0.0f);
  for (int64_t k = 0; k < s.chunk_length(c); ++k) {
    float& most = quads[k / 4];
    most = std::max(most, std::fabs(x[s.chunk_start(c) + k]));
  }
  std::sort(quads.rbegin(), quads.rend());
  const double top = quads[0];
  if (precision == Precision::int16) return top / (127 * 128);
  const double near = quads.size() > kApart ? quads[kApart] : 0;
  return std::max(near, top / 128) / 127;
}

// Moves values of x (K) off the middle between two integers, where float32 may round either way.
void unambiguous(const PanelShape& s, float* x) {
  for (int64_t c = 0; c < s.n_chunks(); ++c) {
    for (bool moved = true; moved;) {
      moved = false;
      const double fine = step_of(s, x, c, Precision::int16);
      const double coarse = step_of(s, x, c, Precision::int8);
      for (int64_t k = s.chunk_start(c); k < s.chunk_start(c) + s.chunk_length(c); ++k) {
        const auto distance = [&](double step) {
          const double value = std::fabs(x[k] / step);
          return std::fabs(value - std::floor(value) - 0.5);
        };
        while (distance(coarse) < (std::fabs(x[k] / coarse) > 127 ? 0.01 : 0.001) ||
               distance(fine) < 0.01) {
          x[k] *= 0.99f;
          moved = true;
        }
      }
    }
  }
}

// x as a precision sees it.
std::vector<double> rounded_twin(const PanelShape& s, const float* x, Precision precision) {
  std::vector<double> out(x, x + s.K);
  if (precision == Precision::exact || s.bits == 16) return out;
  for (int64_t c = 0; c < s.n_chunks(); ++c) {
    const double step = step_of(s, x, c, precision);
    for (int64_t k = s.chunk_start(c); k < s.chunk_start(c) + s.chunk_length(c); ++k) {
      out[k] = step > 0 ? std::nearbyint(x[k] / step) * step : 0;
    }
  }
  return out;
}

double act(double g, bool gelu) {
  const double u = gelu ? 1.5957691216057308 * (g + 0.044715 * g * g * g) : g;
  return g / (1 + std::exp(-u));
}

// One weight with many tokens, and what comes out for each precision.
class Problem {
 public:
  Problem(const PanelShape& shape, int64_t tokens, Random& random)
      : weight(shape, random), M(tokens), ldx(shape.K + 3) {
    x.assign(M * ldx, kNaN);  // what is read between the rows would be seen
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t k = 0; k < shape.K; ++k) {
        const int64_t kind = random.below(40);  // one value of forty is far off, one very far
        x[m * ldx + k] = random.real() * (kind == 0 ? 30.0f : kind == 1 ? 900.0f : 1.0f);
      }
      unambiguous(shape, &x[m * ldx]);
    }
    bias = random.reals(shape.N);
    x.resize(M * ldx - 3);
    for (int p = 0; p < 3; ++p) {
      want[p].resize(M * shape.N);
      bound.resize(M * shape.N);
      for (int64_t m = 0; m < M; ++m) {
        const std::vector<double> row = rounded_twin(shape, &x[m * ldx], kPrecisions[p]);
        for (int64_t n = 0; n < shape.N; ++n) {
          const double* w = &weight.plain[n * shape.K];
          double sum = 0, size = 0;
          for (int64_t k = 0; k < shape.K; ++k) {
            sum += w[k] * row[k];
            size += std::fabs(w[k] * row[k]);
          }
          want[p][m * shape.N + n] = sum;
          bound[m * shape.N + n] = size;
        }
      }
    }
  }

  // float32 sums of zero points and of codes cancel: their size counts, not only the result's.
  double tolerance(int64_t i) const {
    const double cancel = weight.w.bits == 8 ? 8e-5 : 2e-5;
    return 1e-5 + 1e-5 * bound[i] + cancel * std::sqrt(static_cast<double>(weight.w.K));
  }

  Weight weight;
  int64_t M, ldx;
  std::vector<float> x, bias;
  std::vector<double> want[3], bound;
};

// y = x W^T (+ bias + residual) into a wider y full of NaN.
void check_product(Report& report, const std::string& name, const Problem& p, int at, int64_t M,
                   Random& random) {
  const PanelShape& s = p.weight.w;
  const int64_t ldy = s.N + 5;
  const bool extra = random.below(2);
  std::vector<float> y(M * ldy, kNaN), residual = random.reals(M * ldy);
  Finish finish{y.data(), ldy};
  if (extra) {
    finish.bias = p.bias.data();
    finish.residual = residual.data();
  }
  matmul(p.weight.w, kPrecisions[at], p.x.data(), p.ldx, M, finish);
  int64_t wrong = 0;
  double worst = 0;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < ldy; ++n) {
      const float got = y[m * ldy + n];
      if (n >= s.N) {
        wrong += !std::isnan(got);
        continue;
      }
      double want = p.want[at][m * s.N + n];
      if (extra) want += static_cast<double>(p.bias[n]) + residual[m * ldy + n];
      const double error = std::fabs(got - want) / p.tolerance(m * s.N + n);
      wrong += !(error <= 1);
      worst = std::fmax(worst, error);
    }
  }
  report.check(wrong == 0, name + " " + kPrecisionNames[at] + " M" + std::to_string(M) + ": " +
                               std::to_string(wrong) + " wrong, error " + std::to_string(worst) +
                               " of the tolerance");
}

void check_gated(Report& report, const std::string& name, const Problem& p, int at, int64_t M,
                 bool gelu) {
  const PanelShape& s = p.weight.w;
  const int64_t rows = s.N / 2 - 9, ldy = rows;
  std::vector<float> y(M * ldy, kNaN);
  Finish finish{y.data(), ldy};
  finish.gate = gelu ? Finish::gelu : Finish::silu;
  finish.gated_rows = rows;
  matmul(p.weight.w, kPrecisions[at], p.x.data(), p.ldx, M, finish);
  int64_t wrong = 0;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t i = m * s.N + n / 64 * 128 + n % 64, j = i + 64;
      const double gate = act(p.want[at][i], gelu), up = p.want[at][j];
      const double room = 1.2 * p.tolerance(i) * std::fabs(up) + p.tolerance(j) * std::fabs(gate);
      wrong += !(std::fabs(y[m * ldy + n] - gate * up) <= 1e-5 + 1e-5 * std::fabs(gate * up) + room);
    }
  }
  report.check(wrong == 0, name + " gated " + kPrecisionNames[at] + " M" + std::to_string(M) +
                               (gelu ? " gelu: " : " silu: ") + std::to_string(wrong) + " wrong");
}

// A token with a value that is not finite has no finite output; its neighbours don't notice.
void check_not_finite(Report& report, const std::string& name, const Problem& p, int at,
                      Random& random) {
  const PanelShape& s = p.weight.w;
  for (const float bad : {kNaN, std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const int64_t M : {int64_t{1}, int64_t{3}, int64_t{13}}) {
      std::vector<float> x = p.x, y(M * s.N, 0.0f), clean(M * s.N, kNaN);
      const int64_t which = random.below(M);
      matmul(p.weight.w, kPrecisions[at], x.data(), p.ldx, M, Finish{clean.data(), s.N});
      x[which * p.ldx + random.below(s.K)] = bad;
      matmul(p.weight.w, kPrecisions[at], x.data(), p.ldx, M, Finish{y.data(), s.N});
      bool ok = true;
      for (int64_t i = 0; i < M * s.N; ++i) {
        ok = ok && (i / s.N == which ? !std::isfinite(y[i]) : y[i] == clean[i]);
      }
      report.check(ok, name + " " + kPrecisionNames[at] + " M" + std::to_string(M) + " with " +
                           std::to_string(bad));
    }
  }
}

void check_round_row(Report& report, const std::string& name, const Problem& p, int planes) {
  const PanelShape& s = p.weight.w;
  const int64_t M = 3, n = s.n_chunks();
  std::vector<int8_t> codes(n * M * planes * s.chunk(), 99);
  std::vector<float> scales(n * M, kNaN);
  std::vector<int32_t> sums(n * M, -1);
  std::vector<Apart> apart(n * M, Apart{{-1, -1}, {-1, -1}});
  const RoundedX out{codes.data(), scales.data(), sums.data(), apart.data(), M, planes};
  for (int64_t m = 0; m < M; ++m) kernels().round_row(s, &p.x[m * p.ldx], m, out);
  bool ok = true;
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t m = 0; m < M; ++m) {
      const float* x = &p.x[m * p.ldx];
      const double step = step_of(s, x, c, planes == 2 ? Precision::int16 : Precision::int8);
      const int8_t* row = &codes[(c * M + m) * planes * s.chunk()];
      std::vector<int8_t> far(s.chunk(), 0);
      for (int i = 0; planes == 1 && i < kApart; ++i) {
        const Apart& a = apart[c * M + m];
        if (a.codes[i]) std::memcpy(&far[4 * a.quad[i]], &a.codes[i], 4);
      }
      double sum = 0;
      for (int64_t k = 0; k < s.chunk(); ++k) {
        const double value =
            planes == 2 ? 128.0 * row[k] + row[s.chunk() + k] : row[k] + 128.0 * far[k];
        double want = 0;
        if (k < s.chunk_length(c) && step > 0) want = std::nearbyint(x[s.chunk_start(c) + k] / step);
        ok = ok && value == want;
        sum += value;
      }
      ok = ok && sums[c * M + m] == sum;
      ok = ok && close(scales[c * M + m], step, 1e-6 * step);
    }
  }
  report.check(ok, name + " round_row, planes " + std::to_string(planes));
}

// One panel's product for tokens m0 to m1 is that of the same tokens among all, and nothing else is
// written.
void check_some_tokens(Report& report, const std::string& name, const Problem& p, int planes) {
  const PanelShape& s = p.weight.w;
  const int64_t M = 40, n = s.n_chunks();
  std::vector<int8_t> codes(n * M * planes * s.chunk());
  std::vector<float> scales(n * M), all(M * kPanel);
  std::vector<int32_t> sums(n * M);
  std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, kScratchBytes), std::free);
  std::vector<Apart> apart(n * M);
  const RoundedX x{codes.data(), scales.data(), sums.data(), apart.data(), M, planes};
  for (int64_t m = 0; m < M; ++m) kernels().round_row(s, &p.x[m * p.ldx], m, x);
  kernels().panel_rounded(p.weight.w, 0, x, 0, M, all.data(), scratch.get());
  for (const int64_t tokens : {1, 3, 9, 17}) {
    for (const int64_t m0 : {int64_t{0}, int64_t{5}, M - tokens}) {
      std::vector<float> y((tokens + 2) * kPanel, 7.5f);
      kernels().panel_rounded(p.weight.w, 0, x, m0, m0 + tokens, &y[kPanel], scratch.get());
      bool ok = true;
      for (int64_t i = 0; i < kPanel; ++i) ok = ok && y[i] == 7.5f && y.end()[i - kPanel] == 7.5f;
      for (int64_t i = 0; i < tokens * kPanel; ++i) {
        const double want = all[m0 * kPanel + i];
        ok = ok && close(y[kPanel + i], want, 1e-5 * std::sqrt(static_cast<double>(s.K)) +
                                                  1e-5 * std::fabs(want));
      }
      report.check(ok, name + " planes " + std::to_string(planes) + ", " + std::to_string(tokens) +
                           " tokens from " + std::to_string(m0));
    }
  }
}

void check_gather_and_unpack(Report& report, const std::string& name, const Weight& weight) {
  const PanelShape& s = weight.w;
  bool ok = true;
  for (int64_t n = 0; n < s.N; ++n) {
    std::vector<float> row(s.K, kNaN);
    gather_row(weight.w, n, row.data());
    for (int64_t k = 0; k < s.K; ++k) {
      const double want = weight.plain[n * s.K + k];
      ok = ok && close(row[k], want, 1e-6 * std::fabs(want));
    }
  }
  report.check(ok, name + " gather_row");
  if (s.bits == 16) return;
  std::vector<int8_t> codes(s.N * s.K, 99), zeros(weight.zeros.size(), 0);
  std::vector<uint8_t> scales(weight.scales.size(), 99);
  unpack_panels(weight.w, 0, s.N, codes.data(), scales.data(), zeros.data());
  report.check(codes == weight.codes && scales == weight.scales && zeros == weight.zeros,
               name + " pack, then unpack");
}

void check_rows(Report& report, const std::string& isa, Random& random) {
  for (const int64_t n : {1, 5, 16, 63, 640, 1153}) {
    const std::vector<float> x = random.reals(n), weight = random.reals(n);
    for (const bool weighted : {false, true}) {
      std::vector<float> y(n, kNaN);
      kernels().rms_norm(x.data(), weighted ? weight.data() : nullptr, 1e-6f, n, y.data());
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * v;
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6f);
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) {
        const double want = x[i] * inverse * (weighted ? weight[i] : 1.0);
        ok = ok && close(y[i], want, 1e-7 + 2e-6 * std::fabs(want));
      }
      report.check(ok, isa + " rms_norm n" + std::to_string(n));
    }
    for (const bool gelu : {false, true}) {
      std::vector<float> gate = random.reals(n), y(n, kNaN);
      for (float& g : gate) g *= 12;
      kernels().gated(gate.data(), x.data(), gelu, n, y.data());
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) {
        const double want = act(gate[i], gelu) * x[i];
        ok = ok && close(y[i], want, 1e-6 + 4e-6 * std::fabs(want));
      }
      gate[n / 2] = kNaN;
      kernels().gated(gate.data(), x.data(), gelu, n, y.data());
      report.check(ok && std::isnan(y[n / 2]), isa + " gated n" + std::to_string(n));
    }
  }
}

void check_attend(Report& report, const std::string& isa, int64_t M, int64_t D, int64_t T,
                  int64_t window, bool poisoned, Random& random) {
  const int64_t ldq = D + 16, ldo = D + 3;
  std::vector<float> q = random.reals(M * ldq), out(M * ldo, kNaN), scratch(attend_floats(D), kNaN);
  std::vector<uint16_t> keys(T * D), values(T * D);
  for (uint16_t& v : keys) v = to_bf16(3 * random.real());
  for (uint16_t& v : values) v = to_bf16(random.real());
  if (poisoned) keys[T / 2 * D] = 0x7FC0;
  std::vector<int64_t> lo(M), hi(M);
  for (int64_t m = 0; m < M; ++m) {
    hi[m] = T - M + m + 1;
    lo[m] = window > 0 ? std::max<int64_t>(0, hi[m] - window) : 0;
  }
  const float scale = 0.7f;
  kernels().attend(q.data(), ldq, keys.data(), values.data(), lo.data(), hi.data(), M, D, scale,
                   out.data(), ldo, scratch.data());
  bool ok = true;
  for (int64_t m = 0; m < M; ++m) {
    std::vector<double> p(T), want(D);
    double top = -1e300, total = 0;
    for (int64_t t = lo[m]; t < hi[m]; ++t) {
      for (int64_t d = 0; d < D; ++d) p[t] += q[m * ldq + d] * from_bf16(keys[t * D + d]);
      p[t] *= scale;
      top = std::max(top, p[t]);
    }
    for (int64_t t = lo[m]; t < hi[m]; ++t) total += p[t] = std::exp(p[t] - top);
    for (int64_t t = lo[m]; t < hi[m]; ++t) {
      for (int64_t d = 0; d < D; ++d) want[d] += p[t] / total * from_bf16(values[t * D + d]);
    }
    for (int64_t d = 0; d < D; ++d) ok = ok && close(out[m * ldo + d], want[d], 5e-5);
    for (int64_t d = D; d < ldo; ++d) ok = ok && std::isnan(out[m * ldo + d]);
  }
  report.check(ok, isa + " attend M" + std::to_string(M) + " D" + std::to_string(D) + " T" +
                       std::to_string(T) + " window " + std::to_string(window) +
                       (poisoned ? " with a NaN" : ""));
}

}  // namespace

void test_kernels(Report& report, bool quick) {
  struct Kind {
    int bits;
    bool symmetric, bf16_scales;
  };
  const Kind kinds[] = {{4, true, true}, {4, false, false}, {8, true, false}, {8, false, true},
                        {16, true, true}};
  struct Size {
    int64_t N, K, group;  // group 0: the whole row
  };
  const std::vector<Size> sizes =
      quick ? std::vector<Size>{{65, 131, 32}, {7, 100, 100}, {128, 257, 0}}
            : std::vector<Size>{{65, 131, 32}, {1, 1, 1},     {63, 192, 64}, {130, 300, 128},
                                {7, 301, 100}, {128, 257, 0}, {64, 7, 7},    {256, 128, 128}};
  uint64_t seed = 1;
  for (const Size& size : sizes) {
    for (const Kind& kind : kinds) {
      Random random(seed++);
      const PanelShape shape{size.N,    size.K,         kind.bits, size.group ? size.group : size.K,
                             kind.symmetric, kind.bf16_scales};
      const int64_t most = quick ? 64 : 300;
      const Problem problem(shape, most, random);
      check_gather_and_unpack(report, describe(shape), problem.weight);
      for (const std::string& isa : isas()) {
        select_isa(isa);
        const std::string name = isa + " " + describe(shape);
        for (int at = 0; at < 3; ++at) {
          if (shape.bits == 16 && at > 0) continue;
          if (at > 0) {
            check_round_row(report, name, problem, at);
            check_some_tokens(report, name, problem, at);
          }
          for (const int64_t M : kTokens) {
            if (M > most) continue;
            check_product(report, name, problem, at, M, random);
            if (size.N % 128 == 0) check_gated(report, name, problem, at, M, random.below(2));
          }
          check_not_finite(report, name, problem, at, random);
        }
      }
    }
  }
  for (const std::string& isa : isas()) {
    select_isa(isa);
    Random random(seed++);
    check_rows(report, isa, random);
    for (const int64_t D : {16, 48, 64, 80, 256}) {
      for (const int64_t M : {1, 4, 6, 9}) {
        for (const int64_t T : {9, 128, 301}) {
          for (const int64_t window : {0, 1, 17, 200}) {
            if (quick && (T == 301 || D == 256)) continue;
            check_attend(report, isa, M, D, T, window, false, random);
          }
          check_attend(report, isa, M, D, T, 0, true, random);
        }
      }
    }
  }
}

}  // namespace selftest
