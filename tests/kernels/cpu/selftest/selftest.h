// What the parts of the self-test share: counting, chance, a weight beside its plain values.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "isa.h"
#include "matmul.h"

namespace selftest {

using namespace soroq;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Report {
  int passed = 0, failed = 0;
  void check(bool ok, const std::string& what) {
    ++(ok ? passed : failed);
    if (!ok) std::printf("FAILED %s\n", what.c_str());
  }
};

// The same numbers on every machine (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float real() { return static_cast<float>(next() >> 40) / 8388608.0f - 1.0f; }  // [-1, 1)
  std::vector<float> reals(int64_t n) {
    std::vector<float> out(n);
    for (float& value : out) value = real();
    return out;
  }

 private:
  uint64_t state_;
};

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

// |got - want| within tolerance; a value that is not finite must meet one that is not.
inline bool close(double got, double want, double tolerance) {
  if (!std::isfinite(want)) return !std::isfinite(got);
  return std::fabs(got - want) <= tolerance;
}

// A random weight: in panels, in the words it was packed from, and as plain numbers.
struct Weight {
  PanelWeight w = {};
  std::vector<double> plain;  // (N, K)
  std::vector<int8_t> codes, zeros;
  std::vector<uint8_t> scales;  // as stored

  Weight() = default;
  Weight(PanelShape shape, Random& random);
  Weight(Weight&& other) = default;
  Weight& operator=(Weight&& other) = default;

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
};

// Names of the instruction sets under test: all that run here, or the one of SOROQ_CPU_ISA.
std::vector<std::string> isas();

void test_kernels(Report& report, bool quick);
void test_pool(Report& report, bool quick);
void test_decoder(Report& report, bool quick);

}  // namespace selftest
