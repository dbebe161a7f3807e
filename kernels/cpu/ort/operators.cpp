#include "operators.h"

#include <cstring>

namespace soroq {

namespace {

Precision precision_of(const std::string& name) {
  if (name == "exact") return Precision::exact;
  if (name == "int8-coarse") return Precision::int8_coarse;
  if (name == "int8") return Precision::int8;
  if (name == "int16") return Precision::int16;
  throw std::invalid_argument("precision is exact, int8-coarse, int8 or int16, not " + name);
}

// A product's input as rows of K: how many, and the shape of the result with `columns`.
struct Rows {
  const float* x;
  int64_t M;
  std::vector<int64_t> shape;
};

Rows rows_of(const OrtApi& api, const Call& call, int64_t K, int64_t columns) {
  const OrtValue* value = call.input(0);
  std::vector<int64_t> shape = shape_of(api, value);
  if (shape.empty() || shape.back() != K) {
    throw std::invalid_argument("x has " + std::to_string(shape.empty() ? 0 : shape.back()) +
                                " columns, must have K = " + std::to_string(K));
  }
  shape.back() = 1;
  const int64_t M = count_of(shape);
  shape.back() = columns;
  return {data_of<float>(api, value), M, shape};
}

class Product : public PanelOperator {
 public:
  Product(const OrtApi& api, const NodeInfo& node)
      : PanelOperator(api, node),
        many_(precision_of(node.text("precision"))),
        few_(precision_of(node.text("few_precision"))) {}

 protected:
  void multiply(const Rows& rows, const Finish& finish) const {
    matmul(w(), rows.M <= kFewRows ? few_ : many_, rows.x, w().K, rows.M, finish);
  }

 private:
  const Precision many_, few_;
};

class MatMulPanels : public Product {
 public:
  using Product::Product;

  void run(const Call& call) const override {
    const Rows rows = rows_of(api(), call, w().K, w().N);
    Finish finish{call.output(rows.shape), w().N};
    if (const OrtValue* bias = call.input(2)) {
      if (count_of(shape_of(api(), bias)) != w().N) throw std::invalid_argument("bias must be (N)");
      finish.bias = data_of<float>(api(), bias);
    }
    multiply(rows, finish);
  }
};

class GatedPanels : public Product {
 public:
  GatedPanels(const OrtApi& api, const NodeInfo& node)
      : Product(api, node), columns_(node.integer("rows")) {
    const std::string name = node.text("activation");
    if (name != "gelu" && name != "silu") {
      throw std::invalid_argument("activation is gelu or silu, not " + name);
    }
    gate_ = name == "gelu" ? Finish::gelu : Finish::silu;
    if (w().N % (2 * kPanel) != 0 || columns_ < 1 || columns_ > w().N / 2) {
      throw std::invalid_argument("a gated product has panels in pairs and at most N / 2 rows");
    }
  }

  void run(const Call& call) const override {
    const Rows rows = rows_of(api(), call, w().K, columns_);
    Finish finish{call.output(rows.shape), columns_};
    finish.gate = gate_;
    finish.gated_rows = columns_;
    multiply(rows, finish);
  }

 private:
  const int64_t columns_;
  Finish::Gate gate_;
};

class GatherPanels : public PanelOperator {
 public:
  GatherPanels(const OrtApi& api, const NodeInfo& node)
      : PanelOperator(api, node), scale_(node.real("scale")) {}

  void run(const Call& call) const override {
    const OrtValue* value = call.input(0);
    std::vector<int64_t> shape = shape_of(api(), value);
    const int64_t n = count_of(shape);
    const auto* ids = data_of<int64_t>(api(), value);
    for (int64_t i = 0; i < n; ++i) {
      if (ids[i] < 0 || ids[i] >= w().N) {
        throw std::out_of_range("row " + std::to_string(ids[i]) + " is not in 0.." +
                                std::to_string(w().N - 1));
      }
    }
    shape.push_back(w().K);
    float* out = call.output(shape);
    const auto gather = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = out + i * w().K;
        gather_row(w(), ids[i], row);
        for (int64_t k = 0; k < w().K; ++k) row[k] *= scale_;
      }
    };
    if (n <= kFewRows) return gather(0, n);
    soroq::run([&](const Member& me) { gather(me.begin(n), me.end(n)); });
  }

 private:
  const float scale_;
};

}  // namespace

Weight::Weight(const OrtApi& api, const NodeInfo& node) {
  PanelWeight& w = panels_;
  w.N = node.integer("N");
  w.K = node.integer("K");
  w.bits = static_cast<int>(node.integer("bits"));
  w.group = node.integer("group_size");
  w.symmetric = node.integer("symmetric") != 0;
  w.bf16_scales = node.integer("bf16_scales") != 0;
  if (w.N < 1 || w.K < 1 || w.group < 1 || w.group > w.K ||
      (w.bits != 4 && w.bits != 8 && w.bits != 16)) {
    throw std::invalid_argument("panels hold 4, 8 or 16 bits, K of at least 1, groups of 1 to K");
  }
  const OrtValue* value = node.constant(1);
  const int64_t have = count_of(shape_of(api, value));
  w.place(nullptr);
  if (have != w.total_bytes()) {
    throw std::invalid_argument("panels of this shape take " + std::to_string(w.total_bytes()) +
                                " bytes, not " + std::to_string(have));
  }
  const auto* data = data_of<uint8_t>(api, value);
  if (reinterpret_cast<uintptr_t>(data) % 64 != 0) {
    void* copy = copy_.get(have);
    std::memcpy(copy, data, have);
    data = static_cast<const uint8_t*>(copy);
  }
  w.place(data);
}

std::unique_ptr<Operator> make_operator(Kind kind, const OrtApi& api, const NodeInfo& node) {
  if (kind == Kind::matmul) return std::make_unique<MatMulPanels>(api, node);
  if (kind == Kind::attention) return make_attention(api, node);
  if (kind == Kind::gated) return std::make_unique<GatedPanels>(api, node);
  return std::make_unique<GatherPanels>(api, node);
}

}  // namespace soroq
