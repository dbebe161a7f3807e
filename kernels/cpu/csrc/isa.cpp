#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <mutex>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#ifndef HWCAP2_I8MM
#define HWCAP2_I8MM (1 << 13)
#endif
#endif

namespace soroq {

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvxVnni, kAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeon, kNeonI8mm;
#endif

namespace {

// Asked through the compiler's own probe, which looks at CPUID and at what the system saves.
std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;  // leaf 7, subleaf 1: EAX bit 4 is AVX-VNNI
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  if (avx512) all.push_back(&kAvx512);
  if (avx2 && (eax >> 4 & 1)) all.push_back(&kAvxVnni);
  if (avx2) all.push_back(&kAvx2);
#elif defined(__aarch64__)
#if defined(__linux__)
  if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) all.push_back(&kNeonI8mm);
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) all.push_back(&kNeon);
#else
  all.push_back(&kNeon);  // every Apple chip that runs 64-bit macOS has it
#endif
#endif
  all.push_back(&kGeneric);
  return all;
}

std::mutex guard;
std::atomic<const Kernels*> chosen{nullptr};
std::string reason;

const Kernels* find(const std::string& name) {
  for (const Kernels* one : usable()) {
    if (name == one->name) return one;
  }
  return nullptr;
}

void choose_first() {
  const std::lock_guard<std::mutex> lock(guard);
  if (chosen.load()) return;
  const char* wish = std::getenv("SOROQ_CPU_ISA");
  const Kernels* found = wish ? find(wish) : nullptr;
  if (found) {
    reason = "SOROQ_CPU_ISA asks for it";
  } else {
    found = usable().front();
    reason = "the best this processor has";
    if (wish) reason += std::string("; SOROQ_CPU_ISA names ") + wish + ", which can't run here";
  }
  chosen.store(found);
}

}  // namespace

const Kernels& kernels() {
  if (!chosen.load(std::memory_order_acquire)) choose_first();
  return *chosen.load(std::memory_order_acquire);
}

std::string isa_reason() {
  kernels();
  const std::lock_guard<std::mutex> lock(guard);
  return reason;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* one : usable()) names.push_back(one->name);
  return names;
}

bool select_isa(const std::string& name) {
  const Kernels* found = find(name);
  if (!found) return false;
  const std::lock_guard<std::mutex> lock(guard);
  chosen.store(found);
  reason = "asked for by the program";
  return true;
}

}  // namespace soroq
