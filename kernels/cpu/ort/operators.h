// Operators of domain "soroq", version 1, on weights in panels (panels.h):
//
//   MatMulPanels(x (…, K), panels, [bias (N)]) → y (…, N)   x W^T + bias
//   GatedPanels(x (…, K), panels) → y (…, F)                act(x gate^T) (x up^T), panels in pairs
//   GatherPanels(ids (…), panels) → y (…, K)                W[ids] * scale
//
// x, bias and y are float32, ids int64, panels uint8 and an initializer. Attributes of all: N, K, bits,
// group_size, symmetric, bf16_scales (PanelShape). precision and few_precision, of up to kFewRows
// tokens: exact, int8 or int16. GatedPanels: activation (gelu or silu), rows (F). GatherPanels: scale.
#pragma once

#include <memory>

#include "matmul.h"
#include "ort_api.h"

namespace soroq {

constexpr int64_t kFewRows = 2;  // as in decoder.cpp: memory is what so few tokens wait for

// The weight of a node: in the initializer's own memory, which may be the mapped file, or a copy where
// that isn't on a 64-byte boundary.
class Weight {
 public:
  Weight(const OrtApi& api, const NodeInfo& node);
  const PanelWeight& panels() const { return panels_; }

 private:
  PanelWeight panels_;
  Arena copy_;
};

// One node of a session.
class Operator {
 public:
  Operator(const OrtApi& api, const NodeInfo& node) : api_(api), weight_(api, node) {}
  virtual ~Operator() = default;
  virtual void run(const Call& call) const = 0;

  const OrtApi& api() const { return api_; }

 protected:
  const PanelWeight& w() const { return weight_.panels(); }

 private:
  const OrtApi& api_;
  const Weight weight_;
};

enum class Kind { matmul, gated, gather };

std::unique_ptr<Operator> make_operator(Kind kind, const OrtApi& api, const NodeInfo& node);

}  // namespace soroq
