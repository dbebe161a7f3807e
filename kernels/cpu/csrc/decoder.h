// A decoder that runs whole steps on one team of threads: Gemma 3, Llama, Mistral, Qwen 2 and 3.
//
// One sequence. Keys and values are kept in bfloat16. Between its products a step needs only that
// the members wait for each other, so Python and the operating system see one call a step.
#pragma once

#include <memory>
#include <vector>

#include "matmul.h"

namespace soroq {

struct DecoderConfig {
  int64_t hidden, heads, kv_heads, head_dim, ffn, vocabulary, context;
  float eps, embed_scale, attention_scale;
  bool gelu;  // else silu
  Precision precision;      // of products with many tokens
  Precision few_precision;  // of those with up to kFew, which wait for memory anyway, and the head
  static constexpr int64_t kFew = 2;
};

// Norm weights are the factors themselves (1 + w for Gemma). Empty: there is no such norm or bias.
struct DecoderBlock {
  PanelWeight q, k, v, o, gate_up, down;
  std::vector<float> input_norm, after_attention_norm, before_ffn_norm, after_ffn_norm;
  std::vector<float> q_norm, k_norm, q_bias, k_bias, v_bias;
  int rotary;      // which table of cosines and sines
  int64_t window;  // keys that a query sees, itself included; 0: all
};

// (context, head_dim / 2): of the first half of a head's values; the second half's are the same.
struct Rotary {
  std::vector<float> cosines, sines;
};

class Decoder {
 public:
  Decoder(const DecoderConfig& config, std::vector<DecoderBlock> blocks,
          std::vector<Rotary> rotaries, std::vector<float> final_norm, const PanelWeight& embedding,
          const PanelWeight& head);
  ~Decoder();

  const DecoderConfig& config() const { return config_; }
  int64_t length() const { return length_; }

  // Forgets all tokens behind the first n.
  void rewind(int64_t n);

  // Takes n more tokens. logits: null, or (all ? n : 1, vocabulary) of every token or the last one.
  // The k likeliest next tokens behind the last one go to best (k), likeliest first, k at most 64.
  // The caller has checked that ids are in the vocabulary and that there is room.
  void step(const int64_t* ids, int64_t n, float* logits, bool all, int64_t* best, float* scores,
            int64_t k);

 private:
  struct Buffers;
  // logits: of all M tokens, or null. behind: those of the last token alone, and the k likeliest.
  void run_rows(const Member& me, const int64_t* ids, int64_t M, float* logits, bool behind,
                int64_t k);
  void prepare_head(const float* from, const std::vector<float>& norm, const Rotary& rotary,
                    int64_t position, float* to) const;
  void keep(const Member& me, const DecoderBlock& block, int64_t layer, int64_t M);
  void attend(const Member& me, const DecoderBlock& block, int64_t layer, int64_t M);

  const DecoderConfig config_;
  const std::vector<DecoderBlock> blocks_;
  const std::vector<Rotary> rotaries_;
  const std::vector<float> final_norm_;
  const PanelWeight embedding_, head_;
  std::vector<uint16_t> keys_, values_;  // (layers, kv_heads, context, head_dim)
  int64_t length_ = 0;
  std::unique_ptr<Buffers> shared_;
};

}  // namespace soroq
