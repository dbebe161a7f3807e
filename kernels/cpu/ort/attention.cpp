// CausalAttention: only the keys that a token may see are multiplied, on the decoder's own kernel.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "isa.h"
#include "operators.h"
#include "pool.h"

namespace soroq {

namespace {

constexpr int64_t kQueries = 32;  // of one head, a member's task
// Products of a token's scores up to which one thread does it all: a team takes longer to wake.
constexpr int64_t kAlone = 1 << 20;

class CausalAttention : public Operator {
 public:
  CausalAttention(const OrtApi& api, const NodeInfo& node)
      : Operator(api),
        heads_(node.integer("num_heads")),
        kv_heads_(node.integer("kv_num_heads")),
        window_(node.integer("local_window_size")),
        scale_(node.real("scale")) {
    if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_ != 0 || window_ < 0) {
      throw std::invalid_argument("num_heads must be a multiple of kv_num_heads, the window 0 or more");
    }
  }

  void run(const Call& call) const override {
    const std::vector<int64_t> shape = shape_of(api(), call.input(0));
    std::vector<int64_t> cache = shape_of(api(), call.input(3));
    if (shape.size() != 3 || cache.size() != 4) {
      throw std::invalid_argument("q must have 3 dimensions and a cache 4");
    }
    const int64_t B = shape[0], S = shape[1], P = cache[2], D = cache[3];
    const int64_t width = heads_ * D, kv_width = kv_heads_ * D;
    const std::vector<int64_t> kv_shape = {B, S, kv_width};
    if (D % 16 != 0 || shape[2] != width || cache[0] != B || cache[1] != kv_heads_ ||
        shape_of(api(), call.input(4)) != cache || shape_of(api(), call.input(1)) != kv_shape ||
        shape_of(api(), call.input(2)) != kv_shape ||
        count_of(shape_of(api(), call.input(5))) != B ||
        count_of(shape_of(api(), call.input(6))) != 1) {
      throw std::invalid_argument(
          "shapes must be q (B, S, heads D), k, v (B, S, kv_heads D), past (B, kv_heads, P, D), "
          "last (B), total (1), with D a multiple of 16");
    }
    const auto* q = data_of<float>(api(), call.input(0));
    const auto* last = data_of<int32_t>(api(), call.input(5));
    const int64_t total = *data_of<int32_t>(api(), call.input(6));
    const int64_t T = std::max(P, total);
    // A prompt begins at 0 in every row; rows that go on begin behind what they have.
    const auto before = [&](int64_t b) { return total == S ? 0 : last[b] + 1 - S; };
    for (int64_t b = 0; b < B; ++b) {
      if (before(b) < 0 || before(b) + S > T || (total != S && before(b) > P)) {
        throw std::invalid_argument("last and total don't fit the tokens and the cache");
      }
    }
    cache[2] = T;
    float* y = call.output(shape);
    const float* fresh[2] = {data_of<float>(api(), call.input(1)),
                             data_of<float>(api(), call.input(2))};
    const float* past[2] = {data_of<float>(api(), call.input(3)),
                            data_of<float>(api(), call.input(4))};
    float* present[2] = {call.output(cache, 1), call.output(cache, 2)};

    // One buffer may be both, and is written in place.
    const auto append = [&](int64_t i) {
      const int64_t part = i % 2, b = i / 2 / kv_heads_, h = i / 2 % kv_heads_, have = before(b);
      float* to = present[part] + (b * kv_heads_ + h) * T * D;
      if (past[part] != present[part]) {
        std::memcpy(to, past[part] + (b * kv_heads_ + h) * P * D, have * D * sizeof(float));
        std::fill(to + (have + S) * D, to + T * D, 0.0f);
      }
      for (int64_t s = 0; s < S; ++s) {
        std::memcpy(to + (have + s) * D, fresh[part] + (b * S + s) * kv_width + h * D,
                    D * sizeof(float));
      }
    };
    const int64_t blocks = (S + kQueries - 1) / kQueries;
    const auto attend = [&](int64_t i, float* scratch) {
      const int64_t m0 = (blocks - 1 - i / (B * heads_)) * kQueries;  // the longest first
      const int64_t b = i % (B * heads_) / heads_, head = i % heads_, n = std::min(kQueries, S - m0);
      int64_t lo[kQueries], hi[kQueries];
      for (int64_t m = 0; m < n; ++m) {
        hi[m] = before(b) + m0 + m + 1;
        lo[m] = window_ > 0 ? std::max<int64_t>(0, hi[m] - window_) : 0;
      }
      const int64_t at = (b * kv_heads_ + head / (heads_ / kv_heads_)) * T * D;
      const int64_t row = (b * S + m0) * width + head * D;
      kernels().attend_float(q + row, width, present[0] + at, present[1] + at, lo, hi, n, D, scale_,
                             y + row, width, scratch);
    };
    std::atomic<int64_t> next{0};
    const int64_t tasks = blocks * B * heads_, copies = 2 * B * kv_heads_;
    if (S <= kFewRows && heads_ * T * D <= kAlone) {
      for (int64_t i = 0; i < copies; ++i) append(i);
      std::vector<float> scratch(attend_floats(D));
      for (int64_t i = 0; i < tasks; ++i) attend(i, scratch.data());
      return;
    }
    soroq::run([&](const Member& me) {
      for (int64_t i = me.begin(copies); i < me.end(copies); ++i) append(i);
      me.barrier();
      std::vector<float> scratch(attend_floats(D));
      for (int64_t i = next++; i < tasks; i = next++) attend(i, scratch.data());
    });
  }

 private:
  const int64_t heads_, kv_heads_, window_;
  const float scale_;
};

}  // namespace

std::unique_ptr<Operator> make_attention(const OrtApi& api, const NodeInfo& node) {
  return std::make_unique<CausalAttention>(api, node);
}

}  // namespace soroq
