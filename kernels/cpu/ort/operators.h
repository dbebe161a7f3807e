// Operators of domain "soroq", version 1, on weights in panels (panels.h):
//
//   MatMulPanels(x (…, K), panels, [bias (N)]) → y (…, N)   x W^T + bias
//   GatedPanels(x (…, K), panels) → y (…, F)                act(x gate^T) (x up^T), panels in pairs
//   GatherPanels(ids (…), panels) → y (…, K)                W[ids] * scale
//
// x, bias and y are float32, ids int64, panels uint8 and an initializer. Attributes of all: N, K, bits,
// group_size, symmetric, bf16_scales (PanelShape). precision and few_precision, of up to kFewRows
// tokens: exact, int8 or int16. GatedPanels: activation (gelu or silu), rows (F). GatherPanels: scale.
//
//   CausalAttention(q (B, S, heads D), k and v (B, S, kv_heads D), past_key and past_value
//       (B, kv_heads, P, D), last (B), total) → y (B, S, heads D), present_key, present_value
//       (B, kv_heads, max(P, total), D)
//
// last and total are int32, as GroupQueryAttention's seqlens_k and total_sequence_length, and so are
// the attributes num_heads, kv_num_heads, scale, local_window_size (0: none). D is a multiple of 16.
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
  explicit Operator(const OrtApi& api) : api_(api) {}
  virtual ~Operator() = default;
  virtual void run(const Call& call) const = 0;

  const OrtApi& api() const { return api_; }

 private:
  const OrtApi& api_;
};

// A node with a weight.
class PanelOperator : public Operator {
 public:
  PanelOperator(const OrtApi& api, const NodeInfo& node) : Operator(api), weight_(api, node) {}

 protected:
  const PanelWeight& w() const { return weight_.panels(); }

 private:
  const Weight weight_;
};

enum class Kind { matmul, gated, gather, attention };

std::unique_ptr<Operator> make_attention(const OrtApi& api, const NodeInfo& node);

std::unique_ptr<Operator> make_operator(Kind kind, const OrtApi& api, const NodeInfo& node);

}  // namespace soroq
