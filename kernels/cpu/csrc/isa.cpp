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
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(SOROQ_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace soroq {

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvxVnni, kAvx512, kAmx, kAmxModel;
#elif defined(__aarch64__)
extern const Kernels kNeon, kNeonI8mm;
#endif

namespace {

#if defined(SOROQ_AMX)

enum class Tiles { absent, refused, usable };

Tiles ask_for_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  // Leaf 7: EDX bit 24 is AMX-TILE, 25 AMX-INT8; leaf 1: ECX bit 27, that XGETBV may be asked.
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return Tiles::absent;
  if ((edx >> 24 & 3) != 3) return Tiles::absent;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return Tiles::refused;
  asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  if ((eax >> 17 & 3) != 3) return Tiles::refused;  // XCR0: tiles and their shapes are saved
  // Linux gives a process the room for tiles when it asks: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? Tiles::usable : Tiles::refused;
}

// Asked once: the permission is the process's, and its children's.
Tiles tiles() {
  static const Tiles answer = ask_for_tiles();
  return answer;
}

bool are_tiles_refused() { return tiles() == Tiles::refused; }

#else

bool are_tiles_refused() { return false; }

#endif

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
#if defined(SOROQ_AMX)
  if (avx512 && tiles() == Tiles::usable) all.push_back(&kAmx);
#endif
  if (avx512) all.push_back(&kAvx512);
  if (avx2 && (eax >> 4 & 1)) all.push_back(&kAvxVnni);
  if (avx2) all.push_back(&kAvx2);
#if defined(SOROQ_TEST_AMX_MODEL)
  if (avx512) all.push_back(&kAmxModel);
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
  if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) all.push_back(&kNeonI8mm);
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) all.push_back(&kNeon);
#else
#if defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  if (sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has) {
    all.push_back(&kNeonI8mm);
  }
#endif
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
    if (are_tiles_refused()) reason = "the system refuses AMX, the best of the rest";
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
