// The two 16-bit types, and what only Hopper has, in PTX: barriers in shared memory that count bytes,
// copies of one piece, clusters, products of a warpgroup.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace {

template <typename T>
struct Dtype;

template <>
struct Dtype<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static constexpr uint32_t kMagic = 0x43004300;
  static constexpr float kOffset = 128.0f;
  static __device__ Pair pair(float value) { return __float2bfloat162_rn(value); }
};

template <>
struct Dtype<__half> {
  using Pair = __half2;
  static constexpr uint32_t kMagic = 0x64006400;
  static constexpr float kOffset = 1024.0f;
  static __device__ Pair pair(float value) { return __float2half2_rn(value); }
};

template <typename To, typename From>
__device__ To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  return *reinterpret_cast<To*>(&value);
}

__device__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

__device__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ void wait_for(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
      :
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
}

__device__ void expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// The same place in the shared memory of the cluster's block `rank`.
__device__ uint32_t at_block(uint32_t shared, int rank) {
  uint32_t out;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(shared), "r"(rank));
  return out;
}

__device__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ void copy(void* to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      :
      : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ void sync(int threads) {  // of the warpgroups that multiply
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

__device__ void meet() {  // of all threads of a cluster
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

#define D8(n)                                                                            \
  "+f"(d[n]), "+f"(d[n + 1]), "+f"(d[n + 2]), "+f"(d[n + 3]), "+f"(d[n + 4]), "+f"(d[n + 5]), \
      "+f"(d[n + 6]), "+f"(d[n + 7])
#define D32(n) D8(n), D8(n + 8), D8(n + 16), D8(n + 24)
#define P0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define P8 "%8,%9,%10,%11,%12,%13,%14,%15"
#define P16 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define P32                                                                             \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52," \
  "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define P64                                                                                  \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
  "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,"   \
  "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,"    \
  "%123,%124,%125,%126,%127"
#define WGMMA(tokens, type, places, outputs, a0, a1, a2, a3, desc, keep)                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" keep ", 0;\n"                            \
               "wgmma.mma_async.sync.aligned.m64n" tokens "k16.f32." type "." type           \
               " {" places "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" desc                 \
               ", p, 1, 1, 0;\n}"                                                            \
               : outputs                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(x), "r"(accumulate))
#define WGMMA_OF(type)                                                                         \
  if constexpr (NT == 16)                                                                      \
    WGMMA("16", type, P0, D8(0), "8", "9", "10", "11", "12", "13");                            \
  if constexpr (NT == 32)                                                                      \
    WGMMA("32", type, P0 "," P8, D8(0) COMMA D8(8), "16", "17", "18", "19", "20", "21");       \
  if constexpr (NT == 64)                                                                      \
    WGMMA("64", type, P0 "," P8 "," P16, D32(0), "32", "33", "34", "35", "36", "37");          \
  if constexpr (NT == 128)                                                                     \
    WGMMA("128", type, P0 "," P8 "," P16 "," P32, D32(0) COMMA D32(32), "64", "65", "66",      \
          "67", "68", "69");                                                                   \
  if constexpr (NT == 256)                                                                     \
    WGMMA("256", type, P0 "," P8 "," P16 "," P32 "," P64,                                      \
          D32(0) COMMA D32(32) COMMA D32(64) COMMA D32(96), "128", "129", "130", "131", "132", \
          "133")
#define COMMA ,

// d (64, NT) += a (64, 16) · x; d is overwritten where `accumulate` is 0.
template <typename T, int NT>
__device__ void multiply(float (&d)[NT / 2], const uint32_t* a, uint64_t x, int accumulate) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    WGMMA_OF("bf16");
  } else {
    WGMMA_OF("f16");
  }
}

__device__ uint32_t transposed(uint32_t of_8x8) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(of_8x8));
  return out;
}

#undef D8
#undef D32
#undef P0
#undef P8
#undef P16
#undef P32
#undef P64
#undef WGMMA
#undef WGMMA_OF
#undef COMMA

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace
