// soroq._cpu.Decoder: checks what Python hands over, drops the GIL, steps.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "decoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace soroq {

namespace {

constexpr int64_t kMaxBest = 64;

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<float> floats(const nb::dict& from, const char* key, int64_t n) {
  if (!from.contains(key) || from[key].is_none()) return {};
  const auto values = nb::cast<Vector>(from[key]);
  if (static_cast<int64_t>(values.shape(0)) != n) {
    throw std::invalid_argument(std::string(key) + " must have " + std::to_string(n) + " values");
  }
  return {values.data(), values.data() + n};
}

class PyDecoder {
 public:
  PyDecoder(const nb::dict& facts, const nb::list& blocks, const nb::list& rotaries,
            const Vector& final_norm, const Panels& embedding, const Panels& head) {
    const auto number = [&](const char* key) { return nb::cast<int64_t>(facts[key]); };
    const auto real = [&](const char* key) { return nb::cast<float>(facts[key]); };
    DecoderConfig c;
    c.hidden = number("hidden");
    c.heads = number("heads");
    c.kv_heads = number("kv_heads");
    c.head_dim = number("head_dim");
    c.ffn = number("ffn");
    c.vocabulary = number("vocabulary");
    c.context = number("context");
    c.eps = real("eps");
    c.embed_scale = real("embed_scale");
    c.attention_scale = real("attention_scale");
    c.gelu = nb::cast<bool>(facts["gelu"]);
    c.precision = precision_of(nb::cast<std::string>(facts["precision"]));
    c.few_precision = precision_of(nb::cast<std::string>(facts["few_precision"]));
    if (c.head_dim % 16 != 0 || c.kv_heads < 1 || c.heads % c.kv_heads != 0 || c.context < 1) {
      throw std::invalid_argument("head_dim must be a multiple of 16, heads of kv_heads");
    }
    std::vector<Rotary> tables;
    for (const nb::handle& item : rotaries) {
      const auto pair = nb::cast<nb::tuple>(item);
      tables.push_back({table(pair[0], c), table(pair[1], c)});
    }
    std::vector<DecoderBlock> all;
    for (const nb::handle& item : blocks) {
      all.push_back(read_block(nb::cast<nb::dict>(item), c, tables.size()));
    }
    if (static_cast<int64_t>(final_norm.shape(0)) != c.hidden) {
      throw std::invalid_argument("the final norm must have as many values as hidden");
    }
    keep(embedding);
    keep(head);
    expect(embedding.weight(), "embedding", c.vocabulary, c.hidden);
    expect(head.weight(), "head", c.vocabulary, c.hidden);
    decoder_ = std::make_unique<Decoder>(
        c, std::move(all), std::move(tables),
        std::vector<float>(final_norm.data(), final_norm.data() + c.hidden), embedding.weight(),
        head.weight());
  }

  int64_t length() const { return decoder_->length(); }
  void rewind(int64_t n) { decoder_->rewind(n); }

  // logits float32 (n or 1, vocabulary) or None; returns the k likeliest tokens and their logits.
  std::tuple<std::vector<int64_t>, std::vector<float>> step(
      const Ids& ids, const std::optional<Matrix<float>>& logits, int64_t k) {
    const DecoderConfig& c = decoder_->config();
    const int64_t n = ids.shape(0);
    if (n < 1 || n > c.context - length()) {
      throw std::invalid_argument(std::to_string(n) + " tokens behind " + std::to_string(length()) +
                                  " don't fit a context of " + std::to_string(c.context));
    }
    for (int64_t i = 0; i < n; ++i) {
      if (ids.data()[i] < 0 || ids.data()[i] >= c.vocabulary) {
        throw std::invalid_argument("token " + std::to_string(ids.data()[i]) +
                                    " is not in the vocabulary of " + std::to_string(c.vocabulary));
      }
    }
    if (k < 0 || k > kMaxBest || k > c.vocabulary) {
      throw std::invalid_argument("k must be 0 to " + std::to_string(kMaxBest));
    }
    const bool all = logits && logits->shape(0) != 1;
    if (logits) check_shape(*logits, "logits", all ? n : 1, c.vocabulary);
    std::vector<int64_t> best(k);
    std::vector<float> scores(k);
    {
      nb::gil_scoped_release release;
      decoder_->step(ids.data(), n, logits ? logits->data() : nullptr, all, best.data(),
                     scores.data(), k);
    }
    return {best, scores};
  }

 private:
  static std::vector<float> table(const nb::handle& from, const DecoderConfig& c) {
    const auto values = nb::cast<Matrix<const float>>(from);
    check_shape(values, "cosines and sines", c.context, c.head_dim / 2);
    return {values.data(), values.data() + values.size()};
  }

  static void expect(const PanelWeight& w, const char* name, int64_t N, int64_t K) {
    if (w.N == N && w.K == K) return;
    throw std::invalid_argument(std::string(name) + " is (" + std::to_string(w.N) + ", " +
                                std::to_string(w.K) + "), must be (" + std::to_string(N) + ", " +
                                std::to_string(K) + ")");
  }

  void keep(const Panels& panels) { kept_.push_back(panels); }

  PanelWeight weight(const nb::dict& from, const char* name, int64_t N, int64_t K) {
    const auto& panels = nb::cast<const Panels&>(from[name]);
    expect(panels.weight(), name, N, K);
    keep(panels);
    return panels.weight();
  }

  DecoderBlock read_block(const nb::dict& from, const DecoderConfig& c, size_t n_tables) {
    const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    const int64_t pairs = (c.ffn + kPanel - 1) / kPanel * kPanel * 2;
    DecoderBlock b;
    b.q = weight(from, "q", q, c.hidden);
    b.k = weight(from, "k", kv, c.hidden);
    b.v = weight(from, "v", kv, c.hidden);
    b.o = weight(from, "o", c.hidden, q);
    b.gate_up = weight(from, "gate_up", pairs, c.hidden);
    b.down = weight(from, "down", c.hidden, c.ffn);
    b.input_norm = floats(from, "input_norm", c.hidden);
    b.after_attention_norm = floats(from, "after_attention_norm", c.hidden);
    b.before_ffn_norm = floats(from, "before_ffn_norm", c.hidden);
    b.after_ffn_norm = floats(from, "after_ffn_norm", c.hidden);
    b.q_norm = floats(from, "q_norm", c.head_dim);
    b.k_norm = floats(from, "k_norm", c.head_dim);
    b.q_bias = floats(from, "q_bias", q);
    b.k_bias = floats(from, "k_bias", kv);
    b.v_bias = floats(from, "v_bias", kv);
    b.window = nb::cast<int64_t>(from["window"]);
    b.rotary = nb::cast<int>(from["rotary"]);
    if (b.rotary < 0 || static_cast<size_t>(b.rotary) >= n_tables) {
      throw std::invalid_argument("a block names a rotary table that isn't there");
    }
    return b;
  }

  std::vector<Panels> kept_;  // the weights' memory
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace

void bind_decoder(nb::module_& m) {
  nb::class_<PyDecoder>(m, "Decoder")
      .def(nb::init<const nb::dict&, const nb::list&, const nb::list&, const Vector&, const Panels&,
                    const Panels&>(),
           "facts"_a, "blocks"_a, "rotaries"_a, "final_norm"_a, "embedding"_a, "head"_a)
      .def_prop_ro("length", &PyDecoder::length)
      .def("rewind", &PyDecoder::rewind, "n"_a)
      .def("step", &PyDecoder::step, "ids"_a, "logits"_a.none() = nb::none(), "k"_a = 0);
}

}  // namespace soroq
