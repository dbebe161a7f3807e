#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"

namespace soroq {

namespace {

constexpr int64_t kMaxRows = 512;  // tokens that go through the blocks together
constexpr int64_t kOwnRows = 4;    // up to here every member does the work between products itself
constexpr int64_t kQueryRows = 64; // queries of one head in one task

// What one member needs for itself.
thread_local struct {
  Arena x, h, rounded, attend;
} local;

uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 64);  // NaN
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

const float* or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

bool same_chunks(const PanelWeight& a, const PanelWeight& b) {
  return a.K == b.K && a.group == b.group && a.bits != 16 && b.bits != 16;
}

struct Candidate {
  float score;
  int64_t id;
  // Best first, NaN before all numbers, equal scores by id. An order even of NaN: std::sort leaves
  // its array if there is none.
  bool operator<(const Candidate& other) const {
    const bool nan = std::isnan(score), other_nan = std::isnan(other.score);
    if (nan || other_nan) return nan != other_nan ? nan : id < other.id;
    return score != other.score ? score > other.score : id < other.id;
  }
};

}  // namespace

// What all members write and read.
struct Decoder::Buffers {
  std::vector<float> qkv, attended, y, ffn, x, h, logits;
  Arena rounded;
  std::vector<std::vector<Candidate>> best;  // of each member's part of the vocabulary
};


Decoder::Decoder(const DecoderConfig& config, std::vector<DecoderBlock> blocks,
                 std::vector<Rotary> rotaries, std::vector<float> final_norm,
                 const PanelWeight& embedding, const PanelWeight& head)
    : config_(config),
      blocks_(std::move(blocks)),
      rotaries_(std::move(rotaries)),
      final_norm_(std::move(final_norm)),
      embedding_(embedding),
      head_(head),
      shared_(std::make_unique<Buffers>()) {
  const int64_t size = static_cast<int64_t>(blocks_.size()) * config.kv_heads * config.context *
                       config.head_dim;
  keys_.resize(size);
  values_.resize(size);
}

Decoder::~Decoder() = default;

void Decoder::rewind(int64_t n) { length_ = std::max<int64_t>(0, std::min(n, length_)); }

void Decoder::step(const int64_t* ids, int64_t n, float* logits, bool all, int64_t* best,
                   float* scores, int64_t k) {
  Buffers& s = *shared_;
  const int64_t rows = std::min(n, kMaxRows);
  const int64_t width = (config_.heads + 2 * config_.kv_heads) * config_.head_dim;
  const auto grow = [](std::vector<float>& v, int64_t size) {
    if (static_cast<int64_t>(v.size()) < size) v.resize(size);
  };
  grow(s.qkv, rows * width);
  grow(s.attended, rows * config_.heads * config_.head_dim);
  grow(s.y, rows * config_.hidden);
  grow(s.ffn, rows * config_.ffn);
  grow(s.x, rows * config_.hidden);
  grow(s.h, rows * config_.hidden);
  if (k > 0 || (logits && !all)) grow(s.logits, config_.vocabulary);
  int64_t room = 0;  // for the largest rounded input of any product
  for (const DecoderBlock& b : blocks_) {
    for (const PanelWeight* w : {&b.q, &b.k, &b.v, &b.o, &b.gate_up, &b.down}) {
      room = std::max(room, rounded_bytes(*w, rows, Precision::int16));
    }
  }
  s.rounded.get(std::max(room, rounded_bytes(head_, rows, Precision::int16)));
  for (int64_t done = 0; done < n;) {
    const int64_t M = std::min(kMaxRows, n - done);
    const bool behind = done + M == n && (k > 0 || (logits && !all));
    float* to = logits && all ? logits + done * config_.vocabulary : nullptr;
    run([&](const Member& me) {
      if (me.index == 0) s.best.resize(me.count);
      me.barrier();
      run_rows(me, ids + done, M, to, behind, k);
    });
    done += M;
    length_ += M;
  }
  if (logits && !all) std::copy_n(s.logits.data(), config_.vocabulary, logits);
  if (k > 0) {
    std::vector<Candidate> merged;
    for (const auto& part : s.best) merged.insert(merged.end(), part.begin(), part.end());
    std::sort(merged.begin(), merged.end());
    for (int64_t i = 0; i < k; ++i) {
      best[i] = merged[i].id;
      scores[i] = merged[i].score;
    }
  }
}

// Norm and rotation of one head's values at a position; `to` may not be `from`.
void Decoder::prepare_head(const float* from, const std::vector<float>& norm, const Rotary& rotary,
                           int64_t position, float* to) const {
  const int64_t D = config_.head_dim, half = D / 2;
  if (norm.empty()) {
    std::copy_n(from, D, to);
  } else {
    kernels().rms_norm(from, norm.data(), config_.eps, D, to);
  }
  const float* cosines = rotary.cosines.data() + position * half;
  const float* sines = rotary.sines.data() + position * half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = to[i], b = to[half + i];
    to[i] = a * cosines[i] - b * sines[i];
    to[half + i] = b * cosines[i] + a * sines[i];
  }
}

// Writes the new tokens' keys and values to the cache.
void Decoder::keep(const Member& me, const DecoderBlock& block, int64_t layer, int64_t M) {
  const int64_t D = config_.head_dim;
  const int64_t width = (config_.heads + 2 * config_.kv_heads) * D;
  const int64_t tasks = M * config_.kv_heads;
  std::vector<float>& qkv = shared_->qkv;
  float* head = local.attend.take<float>(D);
  for (int64_t t = me.begin(tasks); t < me.end(tasks); ++t) {
    const int64_t m = t / config_.kv_heads, kv = t % config_.kv_heads;
    const int64_t position = length_ + m;
    const float* k = qkv.data() + m * width + (config_.heads + kv) * D;
    const float* v = k + config_.kv_heads * D;
    const int64_t at = ((layer * config_.kv_heads + kv) * config_.context + position) * D;
    prepare_head(k, block.k_norm, rotaries_[block.rotary], position, head);
    for (int64_t i = 0; i < D; ++i) keys_[at + i] = narrow(head[i]);
    for (int64_t i = 0; i < D; ++i) values_[at + i] = narrow(v[i]);
  }
}

void Decoder::attend(const Member& me, const DecoderBlock& block, int64_t layer, int64_t M) {
  const int64_t D = config_.head_dim, heads = config_.heads;
  const int64_t width = (heads + 2 * config_.kv_heads) * D;
  const int64_t parts = (M + kQueryRows - 1) / kQueryRows;
  float* queries = local.attend.take<float>(kQueryRows * D + attend_floats(D));
  float* scratch = queries + kQueryRows * D;
  int64_t lo[kQueryRows], hi[kQueryRows];
  for (int64_t t = me.begin(parts * heads); t < me.end(parts * heads); ++t) {
    // Later queries see more keys: neighbours in time go to different members.
    const int64_t part = t % parts, head = t / parts;
    const int64_t m0 = part * kQueryRows, m1 = std::min(M, m0 + kQueryRows);
    for (int64_t m = m0; m < m1; ++m) {
      const int64_t position = length_ + m;
      prepare_head(shared_->qkv.data() + m * width + head * D, block.q_norm,
                   rotaries_[block.rotary], position, queries + (m - m0) * D);
      hi[m - m0] = position + 1;
      lo[m - m0] = block.window > 0 ? std::max<int64_t>(0, position + 1 - block.window) : 0;
    }
    const int64_t kv = head / (heads / config_.kv_heads);
    const int64_t at = (layer * config_.kv_heads + kv) * config_.context * D;
    kernels().attend(queries, D, keys_.data() + at, values_.data() + at, lo, hi, m1 - m0, D,
                     config_.attention_scale, shared_->attended.data() + m0 * heads * D + head * D,
                     heads * D, scratch);
  }
}

void Decoder::run_rows(const Member& me, const int64_t* ids, int64_t M, float* logits,
                       bool behind, int64_t k) {
  const Kernels& simd = kernels();
  Buffers& s = *shared_;
  const int64_t H = config_.hidden, D = config_.head_dim;
  const int64_t q_width = config_.heads * D, kv_width = config_.kv_heads * D;
  const int64_t width = q_width + 2 * kv_width;
  // Few tokens: every member keeps all of x for itself and nobody waits between products for it.
  const bool own = M <= kOwnRows;
  const int64_t m0 = own ? 0 : me.begin(M), m1 = own ? M : me.end(M);
  float* x = own ? local.x.take<float>(M * H) : s.x.data();
  float* h = own ? local.h.take<float>(M * H) : s.h.data();
  const auto wait = [&] {
    if (!own) me.barrier();
  };
  Precision precision = M <= DecoderConfig::kFew ? config_.few_precision : config_.precision;
  const auto round = [&](const PanelWeight& w, const float* from) {
    RoundedX out = {};
    if (!rounds(w, precision)) return out;
    const int64_t bytes = rounded_bytes(w, M, precision);
    out = rounded_in(w, M, precision, own ? local.rounded.get(bytes) : s.rounded.get(bytes));
    for (int64_t m = m0; m < m1; ++m) simd.round_row(w, from + m * w.K, m, out);
    return out;
  };
  const auto add_y = [&](const std::vector<float>& norm) {
    for (int64_t m = m0; m < m1; ++m) {
      const float* from = s.y.data() + m * H;
      if (!norm.empty()) {
        simd.rms_norm(from, norm.data(), config_.eps, H, h + m * H);
        from = h + m * H;
      }
      for (int64_t i = 0; i < H; ++i) x[m * H + i] += from[i];
    }
  };
  const auto normalize = [&](const std::vector<float>& norm) {
    for (int64_t m = m0; m < m1; ++m) {
      simd.rms_norm(x + m * H, or_null(norm), config_.eps, H, h + m * H);
    }
  };

  for (int64_t m = m0; m < m1; ++m) {
    gather_row(embedding_, ids[m], x + m * H);
    for (int64_t i = 0; i < H; ++i) x[m * H + i] *= config_.embed_scale;
  }
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const DecoderBlock& b = blocks_[layer];
    normalize(b.input_norm);
    RoundedX rounded = round(b.q, h);
    wait();
    const PanelWeight* parts[3] = {&b.q, &b.k, &b.v};
    const std::vector<float>* biases[3] = {&b.q_bias, &b.k_bias, &b.v_bias};
    float* to = s.qkv.data();
    for (int i = 0; i < 3; ++i) {
      if (i > 0 && !same_chunks(*parts[i], *parts[i - 1])) {
        wait();  // others may still read the last rounding
        rounded = round(*parts[i], h);
        wait();
      }
      multiply(me, *parts[i], precision, rounded, h, parts[i]->K, M, Finish{to, width, or_null(*biases[i])});
      to += parts[i]->N;
    }
    me.barrier();
    keep(me, b, layer, M);
    me.barrier();
    attend(me, b, layer, M);
    me.barrier();
    rounded = round(b.o, s.attended.data());
    wait();
    multiply(me, b.o, precision, rounded, s.attended.data(), b.o.K, M, Finish{s.y.data(), H});
    me.barrier();
    add_y(b.after_attention_norm);
    normalize(b.before_ffn_norm);
    rounded = round(b.gate_up, h);
    wait();
    Finish gated{s.ffn.data(), config_.ffn};
    gated.gate = config_.gelu ? Finish::gelu : Finish::silu;
    gated.gated_rows = config_.ffn;
    multiply(me, b.gate_up, precision, rounded, h, b.gate_up.K, M, gated);
    me.barrier();
    rounded = round(b.down, s.ffn.data());
    wait();
    multiply(me, b.down, precision, rounded, s.ffn.data(), b.down.K, M, Finish{s.y.data(), H});
    me.barrier();
    add_y(b.after_ffn_norm);
  }
  precision = config_.few_precision;
  if (logits) {
    normalize(final_norm_);
    const RoundedX rounded = round(head_, h);
    wait();
    multiply(me, head_, precision, rounded, h, head_.K, M, Finish{logits, config_.vocabulary});
    me.barrier();
  }
  if (!behind) return;

  wait();  // the last token is the last member's, unless all have it
  float* row = local.h.take<float>((own ? M : 1) * H) + (own ? (M - 1) * H : 0);
  simd.rms_norm(x + (M - 1) * H, or_null(final_norm_), config_.eps, H, row);
  RoundedX rounded = {};
  if (rounds(head_, precision)) {
    rounded = rounded_in(head_, 1, precision, local.rounded.get(rounded_bytes(head_, 1, precision)));
    simd.round_row(head_, row, 0, rounded);
  }
  multiply(me, head_, precision, rounded, row, head_.K, 1, Finish{s.logits.data(), config_.vocabulary});
  if (k == 0) return;
  const int64_t panels = head_.n_panels();
  const int64_t n1 = std::min(me.end(panels) * kPanel, config_.vocabulary);
  std::vector<Candidate>& best = s.best[me.index];
  best.clear();
  for (int64_t n0 = me.begin(panels) * kPanel; n0 < n1; n0 += kPanel) {
    const int64_t stop = std::min(n1, n0 + kPanel);
    const bool full = static_cast<int64_t>(best.size()) == k;
    // Equal scores don't count: those that are kept have smaller ids.
    if (full && !simd.any_above(&s.logits[n0], stop - n0, best.back().score)) continue;
    for (int64_t n = n0; n < stop; ++n) {
      const Candidate one{s.logits[n], n};
      if (static_cast<int64_t>(best.size()) == k && !(one < best.back())) continue;
      best.insert(std::upper_bound(best.begin(), best.end(), one), one);
      if (static_cast<int64_t>(best.size()) > k) best.pop_back();
    }
  }
}

}  // namespace soroq
