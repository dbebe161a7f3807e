// y = x · Wᵀ for few rows of x, W int4 or int8 in tiles (kernels/tiles.py), on sm_80 and newer.
//
// Tiles go from memory straight to the registers of the tensor cores: 16 bytes of a row of a tile
// are, in each nibble, eight columns of that row, and the columns may come in any order as long as
// x comes in the same. So a lane loads 16 bytes of rows g and g + 8 (g = lane / 4), and two
// instructions turn two codes into the pair (128 + code, 128 + code) that one register of
// mma.m16n8k16 holds. No shared memory and no barrier lie in the loop; each warp keeps DEPTH steps
// of 128 columns in flight.
//
// Zero point and scale are applied to each group's sum in float32; Σx, which 128 and the zero point
// are multiplied by, is one more product with ones. Warps of a block that share rows share K; their
// sums, and those of the slices of K over blocks, are added in a fixed order: the result is the same
// every time.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr int kTileRows = 64;
constexpr int kTileWords = kTileRows * 4;  // 16-byte words of a tile
constexpr int kTokens = 8;                 // of one mma
constexpr int kMostThreads = 256;

enum Epilogue { kNone, kResidual, kGeglu };

struct Problem {
  const void* x;             // (M, K)
  const uint4* tiles;        // (rows / 64, steps · planes, 64 · 4)
  const uint16_t* scales;    // (groups, rows), x's dtype
  const uint8_t* zeros;      // (groups, rows) or null
  void* y;                   // (M, N), or (M, N / 2) for kGeglu
  const void* residual;      // (M, N)
  float* partials;           // (blocks, splits, cells)
  int* counters;             // (blocks), 0 before and after
  int M, N, K, steps, rows, group_steps, splits, warps_k, epilogue, y_is_float, overlaps;
};

template <typename T>
struct Dtype;

template <>
struct Dtype<__nv_bfloat16> {
  static constexpr uint32_t kMagic = 0x43004300, kOnes = 0x3f803f80;
  static constexpr float kOffset = 128.0f;
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Dtype<__half> {
  static constexpr uint32_t kMagic = 0x64006400, kOnes = 0x3c003c00;
  static constexpr float kOffset = 1024.0f;
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

__device__ uint4 load_once(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

// Bits 4j … 4j + 3 of each half as 128 + code (or 1024 + code).
template <typename T>
__device__ uint32_t offset_nibbles(uint32_t packed, int j) {
  uint32_t out;
  asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(out) : "r"(packed >> (4 * j)), "n"(Dtype<T>::kMagic));
  return out;
}

__device__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <typename T>
__device__ float to_float(uint16_t bits) {
  T value;
  *reinterpret_cast<uint16_t*>(&value) = bits;
  return static_cast<float>(value);
}

// One step (128 columns) of a warp's rows, as it lies in memory.
template <int RT, int PLANES, int GROUPS>
struct Step {
  uint4 words[RT][PLANES][2];
  uint16_t scales[RT][2][GROUPS];
  uint8_t zeros[RT][2][GROUPS];
};

// NT: blocks of 8 tokens; RT: blocks of 16 rows a warp; DEPTH: steps in flight; SPAN: nibbles that
// share a scale; PLANES: 1 for int4, 2 for int8.
template <typename T, int NT, int RT, int DEPTH, int SPAN, int PLANES>
__global__ void __launch_bounds__(kMostThreads, 1) multiply_tiles(const Problem p) {
  constexpr int kGroups = 4 / SPAN;
  constexpr int kRows = 16 * RT;
  constexpr float kFront = Dtype<T>::kOffset * (PLANES == 1 ? 1 : 17);
  constexpr float kMiddle = PLANES == 1 ? 8 : 128;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int wk = warp % p.warps_k, wn = warp / p.warps_k;
  const int warps = blockDim.x >> 5, block_rows = warps / p.warps_k * kRows;
  const int g = lane >> 2, q = lane & 3;
  const int row = blockIdx.x * block_rows + wn * kRows;
  const int token = blockIdx.y * (kTokens * NT);
  const int first = blockIdx.z * p.steps / p.splits, last = (blockIdx.z + 1) * p.steps / p.splits;

  const uint4* tile =
      p.tiles + (size_t)(row / kTileRows) * p.steps * (PLANES * kTileWords) + row % kTileRows * 4 + lane;
  Step<RT, PLANES, kGroups> ring[DEPTH];
  auto load = [&](Step<RT, PLANES, kGroups>& to, int step) {
#pragma unroll
    for (int r = 0; r < RT; ++r) {
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) {
        const uint4* at = tile + (step * PLANES + plane) * kTileWords + r * 64;
        to.words[r][plane][0] = load_once(at);
        to.words[r][plane][1] = load_once(at + 32);
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int group = (p.group_steps == 1 ? step : step / p.group_steps) * kGroups + i;
        const size_t at = (size_t)group * p.rows + row + r * 16 + g;
        to.scales[r][0][i] = __ldg(p.scales + at);
        to.scales[r][1][i] = __ldg(p.scales + at + 8);
        to.zeros[r][0][i] = p.zeros ? __ldg(p.zeros + at) : (uint8_t)kMiddle;
        to.zeros[r][1][i] = p.zeros ? __ldg(p.zeros + at + 8) : (uint8_t)kMiddle;
      }
    }
  };
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) {
    const int step = first + wk + d * p.warps_k;
    if (step < last) load(ring[d], step);
  }
#if __CUDA_ARCH__ >= 900
  // weights don't depend on the launch before this one; x, and all that is written, does
  asm volatile("griddepcontrol.launch_dependents;");
  if (p.overlaps) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif

  const T* x = static_cast<const T*>(p.x) + (size_t)(token + g) * p.K + 8 * q;
  uint4 xs[NT][4] = {};  // stays 0 for tokens that aren't there
  float acc[RT][NT][4] = {};
  for (int base = first + wk; base < last; base += DEPTH * p.warps_k) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      const int step = base + d * p.warps_k;
      if (step >= last) break;
      if (step * 128 + 128 <= p.K) {
#pragma unroll
        for (int t = 0; t < NT; ++t) {
          if (token + t * kTokens + g >= p.M) continue;
          const T* at = x + (size_t)t * kTokens * p.K + step * 128;
#pragma unroll
          for (int j = 0; j < 4; ++j) xs[t][j] = __ldg(reinterpret_cast<const uint4*>(at + j * 32));
        }
      } else {
#pragma unroll
        for (int t = 0; t < NT; ++t)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int k = step * 128 + j * 32;
            const T* at = x + (size_t)t * kTokens * p.K + k;
            const bool inside = token + t * kTokens + g < p.M && k + 8 * q < p.K;
            xs[t][j] = inside ? __ldg(reinterpret_cast<const uint4*>(at)) : uint4{};
          }
      }
      float part[PLANES][RT][NT][4] = {}, sum[NT][4] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t ones[4] = {Dtype<T>::kOnes, Dtype<T>::kOnes, Dtype<T>::kOnes,
                                    Dtype<T>::kOnes};
#pragma unroll
          for (int t = 0; t < NT; ++t)
            Dtype<T>::multiply(sum[t], ones, word(xs[t][j], 2 * h), word(xs[t][j], 2 * h + 1));
#pragma unroll
          for (int r = 0; r < RT; ++r)
#pragma unroll
            for (int plane = 0; plane < PLANES; ++plane) {
              uint32_t a[4];
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const uint32_t packed = word(ring[d].words[r][plane][i & 1], 2 * h + (i >> 1));
                a[i] = offset_nibbles<T>(packed, j);
              }
#pragma unroll
              for (int t = 0; t < NT; ++t)
                Dtype<T>::multiply(part[plane][r][t], a, word(xs[t][j], 2 * h),
                                   word(xs[t][j], 2 * h + 1));
            }
        }
        if (j % SPAN == SPAN - 1) {
#pragma unroll
          for (int r = 0; r < RT; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int group = j / SPAN, half = i >> 1;
              const float scale = to_float<T>(ring[d].scales[r][half][group]);
              const float offset = kFront + (float)ring[d].zeros[r][half][group];
#pragma unroll
              for (int t = 0; t < NT; ++t) {
                float value = part[0][r][t][i];
                if (PLANES == 2) value = 16 * value + part[PLANES - 1][r][t][i];
                acc[r][t][i] += scale * (value - offset * sum[t][i]);
                for (int plane = 0; plane < PLANES; ++plane) part[plane][r][t][i] = 0;
              }
            }
          for (int t = 0; t < NT; ++t)
            for (int i = 0; i < 4; ++i) sum[t][i] = 0;
        }
      }
      const int ahead = step + DEPTH * p.warps_k;
      if (ahead < last) load(ring[d], ahead);
    }
  }

  // sums of the block's warps, then of the slices of K, then what follows the product
  constexpr int kWide = kTokens * NT;
  extern __shared__ float shared[];  // (warps, kWide, kRows + 1)
  float* mine = shared + warp * kWide * (kRows + 1);
#pragma unroll
  for (int r = 0; r < RT; ++r)
#pragma unroll
    for (int t = 0; t < NT; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(t * kTokens + 2 * q + (i & 1)) * (kRows + 1) + r * 16 + g + (i >> 1) * 8] = acc[r][t][i];
  __syncthreads();

  const int cells = block_rows * kWide, block = blockIdx.y * gridDim.x + blockIdx.x;
  auto gather = [&](int t, int n) {
    const int from = n / kRows * p.warps_k;
    float total = 0;
    for (int i = 0; i < p.warps_k; ++i)
      total += shared[((from + i) * kWide + t) * (kRows + 1) + n % kRows];
    return total;
  };
  float* whole = p.partials + (size_t)block * p.splits * cells;
  if (p.splits > 1) {
    __shared__ int arrived;
    for (int i = threadIdx.x; i < cells; i += blockDim.x)
      __stcg(whole + blockIdx.z * cells + i, gather(i / block_rows, i % block_rows));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(p.counters + block, 1);
    __syncthreads();
    if (arrived != p.splits - 1) return;
    __threadfence();
    if (threadIdx.x == 0) p.counters[block] = 0;
  }
  auto result = [&](int t, int n) {
    if (p.splits == 1) return gather(t, n);
    float total = 0;
    for (int z = 0; z < p.splits; ++z) total += __ldcg(whole + z * cells + t * block_rows + n);
    return total;
  };
  for (int i = threadIdx.x; i < cells / 2; i += blockDim.x) {  // two rows of W at a time
    const int t = i / (block_rows / 2), n = i % (block_rows / 2) * 2;
    const int m = token + t, at_row = blockIdx.x * block_rows + n;
    if (m >= p.M || at_row >= p.N) continue;
    float v[2] = {result(t, n), result(t, n + 1)};
    if (p.epilogue == kGeglu) {
      const float u = 1.5957691216057308f * (v[0] + 0.044715f * v[0] * v[0] * v[0]);
      const size_t at = (size_t)m * (p.N / 2) + at_row / 2;
      static_cast<T*>(p.y)[at] = static_cast<T>(v[0] / (1 + __expf(-u)) * v[1]);
      continue;
    }
    for (int j = 0; j < 2 && at_row + j < p.N; ++j) {
      const size_t at = (size_t)m * p.N + at_row + j;
      if (p.epilogue == kResidual) v[j] += static_cast<float>(static_cast<const T*>(p.residual)[at]);
      if (p.y_is_float)
        static_cast<float*>(p.y)[at] = v[j];
      else
        static_cast<T*>(p.y)[at] = static_cast<T>(v[j]);
    }
  }
}

template <typename T, int NT, int RT, int DEPTH, int SPAN, int PLANES>
cudaError_t launch(const Problem& p, int warps_n, cudaStream_t stream) {
  const int block_rows = warps_n * 16 * RT, tokens = kTokens * NT, warps = warps_n * p.warps_k;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((p.N + block_rows - 1) / block_rows, (p.M + tokens - 1) / tokens, p.splits);
  config.blockDim = dim3(32 * warps);
  config.dynamicSmemBytes = warps * tokens * (16 * RT + 1) * sizeof(float);
  config.stream = stream;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = p.overlaps ? 1 : 0;
  const auto kernel = multiply_tiles<T, NT, RT, DEPTH, SPAN, PLANES>;
  if (config.dynamicSmemBytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)config.dynamicSmemBytes);
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kernel, p);
}

struct Shape {
  int tokens_8, rows_16, depth, warps_n;
};

template <typename T, int SPAN, int PLANES>
cudaError_t pick(const Problem& p, const Shape& s, cudaStream_t stream) {
#define SOROQ_CASE(NT, RT, DEPTH)                              \
  if (s.tokens_8 == NT && s.rows_16 == RT && s.depth == DEPTH) \
    return launch<T, NT, RT, DEPTH, SPAN, PLANES>(p, s.warps_n, stream);
  SOROQ_CASE(1, 1, 2)
  SOROQ_CASE(1, 1, 4)
  SOROQ_CASE(1, 2, 2)
  SOROQ_CASE(2, 1, 2)
  if constexpr (PLANES == 1) {
    SOROQ_CASE(2, 2, 2)
    SOROQ_CASE(1, 2, 4)
    SOROQ_CASE(1, 4, 2)
    SOROQ_CASE(2, 1, 4)
    SOROQ_CASE(2, 4, 1)
  }
#undef SOROQ_CASE
  return cudaErrorInvalidValue;
}

template <typename T>
cudaError_t pick(const Problem& p, int bits, int span, const Shape& s, cudaStream_t stream) {
  const bool eight = bits == 8;
  if (span >= 128 && !eight) return pick<T, 4, 1>(p, s, stream);
#ifndef SOROQ_ONLY_GROUPS_OF_128  // tests compile no more
  if (span >= 128) return pick<T, 4, 2>(p, s, stream);
  if (span == 64) return eight ? pick<T, 2, 2>(p, s, stream) : pick<T, 2, 1>(p, s, stream);
  if (span == 32) return eight ? pick<T, 1, 2>(p, s, stream) : pick<T, 1, 1>(p, s, stream);
#endif
  return cudaErrorInvalidValue;
}

}  // namespace

// Returns a cudaError_t. tokens_8, rows_16: blocks of 8 tokens and of 16 rows that a warp
// multiplies; depth: steps it has in flight; warps_n, warps_k: warps of a block along rows and along
// K, at most 8 together, 16 · rows_16 · warps_n divides 128; splits: slices of K over blocks.
extern "C" int soroq_matmul_tiles(const void* x, const void* tiles, const void* scales,
                                  const void* zeros, void* y, const void* residual, void* partials,
                                  void* counters, int M, int N, int K, int rows, int span, int bits,
                                  int is_half, int y_is_float, int epilogue, int tokens_8,
                                  int rows_16, int depth, int warps_n, int warps_k, int splits,
                                  int overlaps, void* stream) {
  const int group_steps = span < 128 ? 1 : span / 128;
  const Problem p = {x,
                     static_cast<const uint4*>(tiles),
                     static_cast<const uint16_t*>(scales),
                     static_cast<const uint8_t*>(zeros),
                     y,
                     residual,
                     static_cast<float*>(partials),
                     static_cast<int*>(counters),
                     M,
                     N,
                     K,
                     (K + 127) / 128,
                     rows,
                     group_steps,
                     splits,
                     warps_k,
                     epilogue,
                     y_is_float,
                     overlaps};
  const Shape shape = {tokens_8, rows_16, depth, warps_n};
  const auto on = static_cast<cudaStream_t>(stream);
  return is_half ? pick<__half>(p, bits, span, shape, on) : pick<__nv_bfloat16>(p, bits, span, shape, on);
}
