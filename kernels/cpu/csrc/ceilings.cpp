#include "ceilings.h"

#include <atomic>

#include "isa.h"
#include "pool.h"

namespace soroq {

uint64_t read_bytes(const uint8_t* data, int64_t n) {
  std::atomic<uint64_t> total{0};
  run([&](const Member& me) {
    const int64_t lines = n / 64;
    total += kernels().read_lines(data + me.begin(lines) * 64, me.end(lines) - me.begin(lines));
  });
  return total;
}

int64_t run_int8(int64_t rounds) {
  std::atomic<int64_t> operations{0};
  run([&](const Member&) { operations += kernels().peak_int8(rounds); });
  return operations;
}

int64_t run_fma(int64_t rounds) {
  std::atomic<int64_t> operations{0};
  run([&](const Member&) { operations += kernels().peak_fma(rounds); });
  return operations;
}

}  // namespace soroq
