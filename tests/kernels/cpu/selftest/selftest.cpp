// Tests the kernels on every instruction set of this machine against plain loops in double
// precision. Prints a line for each case that fails; exits with 1 if there is one.
#include "selftest.h"

namespace selftest {

Weight::Weight(PanelShape shape, Random& random) {
  static_cast<PanelShape&>(w) = shape;
  const int64_t N = shape.N, K = shape.K, groups = shape.n_groups();
  const size_t bytes = shape.total_bytes();
  memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
  std::memset(memory_.get(), 0xFF, bytes);  // packing must leave nothing as it was
  w.place(memory_.get());
  plain.resize(N * K);
  if (shape.bits == 16) {
    std::vector<uint16_t> values(N * K);
    for (int64_t i = 0; i < N * K; ++i) {
      values[i] = to_bf16(random.real());
      plain[i] = from_bf16(values[i]);
    }
    pack_panels_bf16(shape, memory_.get(), 0, N, values.data());
    return;
  }
  const int offset = 1 << (shape.bits - 1);
  const int64_t size = shape.bf16_scales ? 2 : 4, per_word = 32 / shape.bits;
  const int64_t n_words = (K + per_word - 1) / per_word;
  std::vector<uint32_t> words(N * n_words);
  codes.resize(N * K);
  zeros.resize(N * groups);
  scales.resize(N * groups * size);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      float scale = 0.01f + 0.1f * std::fabs(random.real());
      const uint16_t half = to_bf16(scale);
      if (shape.bf16_scales) scale = from_bf16(half);
      std::memcpy(&scales[(n * groups + g) * size],
                  shape.bf16_scales ? static_cast<const void*>(&half) : &scale, size);
      const int64_t zero = shape.symmetric ? 0 : random.below(2 * offset) - offset;
      zeros[n * groups + g] = static_cast<int8_t>(zero);
      for (int64_t k = g * shape.group; k < K && k < (g + 1) * shape.group; ++k) {
        // The ends of the range more often than chance: that is where products saturate.
        const int64_t any = random.below(2 * offset + 8);
        const int64_t code = any < 2 * offset ? any - offset : any % 2 ? -offset : offset - 1;
        codes[n * K + k] = static_cast<int8_t>(code);
        plain[n * K + k] = static_cast<double>(code - zero) * scale;
        words[n * n_words + k / per_word] |= static_cast<uint32_t>(code + offset)
                                             << (k % per_word * shape.bits);
      }
    }
  }
  pack_panels(shape, memory_.get(), 0, N, words.data(), scales.data(),
              shape.symmetric ? nullptr : zeros.data());
}

std::vector<std::string> isas() {
  const char* wish = std::getenv("SOROQ_CPU_ISA");
  if (wish) return {wish};
  return usable_isas();
}

}  // namespace selftest

int main(int argc, char** argv) {
  bool quick = false, kernels = true, pool = true, decoder = true;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--quick")) quick = true;
  }
  const auto named = [&](const char* part) {
    for (int i = 1; i < argc; ++i) {
      if (!std::strcmp(argv[i], part)) return true;
    }
    return argc == 1 + quick;
  };
  kernels = named("kernels");
  pool = named("pool");
  decoder = named("decoder");
  selftest::Report report;
  for (const std::string& isa : selftest::isas()) {
    std::printf("%s ", isa.c_str());
    if (!soroq::select_isa(isa)) report.check(false, isa + " can't run here");
  }
  std::printf("\n");
  if (kernels) selftest::test_kernels(report, quick);
  if (pool) selftest::test_pool(report, quick);
  if (decoder) selftest::test_decoder(report, quick);
  std::printf("%d passed, %d failed\n", report.passed, report.failed);
  return report.failed > 0;
}
