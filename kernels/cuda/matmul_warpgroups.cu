// y = x · Wᵀ for 9 rows of x and more, W int4 or int8 in tiles (kernels/tiles.py), on sm_90a.
//
// A warpgroup multiplies 64 rows of W, one tile a step of 128 columns, by 16 … 256 tokens. What the
// tensor cores take from registers is W: a row's 16 bytes are, in each nibble, columns in the order
// of the registers of wgmma.m64k16, so codes become (code − zero) · scale, rounded to x's dtype, in
// two or three instructions a pair while the product before runs. What they take from shared memory
// is x: a launch before, `arrange`, writes it as it shall lie there, columns in the order of the
// tiles' nibbles, so that every step is one copy of one piece, by the bulk copy engine.
//
// Slices of K are the blocks of a cluster. Each adds its share of the tokens over all of them,
// through their shared memory, in a fixed order: the result is the same every time.

#include <cstdint>

#include "hopper.cuh"

namespace {

constexpr int kStepColumns = 128;
constexpr int kGroupRows = 64;                    // of W, of a warpgroup: a tile's
constexpr int kTileBytes = kGroupRows * 64;       // int4
constexpr int kScaleBytes = kGroupRows * 2, kZeroBytes = kGroupRows;
constexpr int kFactorBytes = 4 * (kScaleBytes + kZeroBytes);  // of the at most 4 groups of a step
constexpr int kMostStages = 8, kMostParts = 16;
constexpr int kPad = 4;  // floats behind the rows of a token in shared memory: no bank conflicts

enum Epilogue { kNone, kResidual, kGeglu };

struct Problem {
  const void* image;       // x, arranged: (token blocks, steps, 8, 2, NT, 8)
  const char* tiles;       // (rows / 64, steps, planes, 4096 bytes)
  const uint16_t* scales;  // (groups, rows), x's dtype
  const uint8_t* zeros;    // (groups, rows) or null
  void* y;                 // (M, N), or (M, N / 2) for kGeglu
  const void* residual;    // (M, N)
  int M, N, steps, rows, step_groups, group_steps, stages, parts, splits, epilogue,
      y_is_float, overlaps;
};

// x as the products read it. One thread takes 32 columns of a token: of 8 columns 8q … 8q + 7, pair
// 2h + i goes to step-of-16 h, its half i, place q.
template <typename T>
__global__ void arrange(const T* x, uint4* image, int M, int K, int steps, int tokens) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const int token = blockIdx.x * blockDim.x + threadIdx.x, part = blockIdx.y;
  const int block = token / tokens, within = token % tokens, step = part / 4, j = part % 4;
  uint32_t pairs[4][4];  // (q, 2h + i)
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int k = part * 32 + 8 * q;
    uint4 eight = {};
    if (token < M && k < K) eight = *reinterpret_cast<const uint4*>(x + (size_t)token * K + k);
    pairs[q][0] = eight.x, pairs[q][1] = eight.y, pairs[q][2] = eight.z, pairs[q][3] = eight.w;
  }
  uint4* to = image + ((size_t)(block * steps + step) * 8 + 2 * j) * 2 * tokens + within;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    to[i * tokens] = uint4{pairs[0][i], pairs[1][i], pairs[2][i], pairs[3][i]};
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// (code − zero) · scale of bits 4j … 4j + 3 of each half.
template <typename T, int PLANES>
__device__ uint32_t dequantize(const uint32_t (&packed)[PLANES], int j,
                               typename Dtype<T>::Pair offset, typename Dtype<T>::Pair scale) {
  using Pair = typename Dtype<T>::Pair;
  uint32_t v[PLANES];
#pragma unroll
  for (int i = 0; i < PLANES; ++i)
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;"
        : "=r"(v[i])
        : "r"(packed[i] >> (4 * j)), "n"(Dtype<T>::kMagic));
  Pair value = bits_of<Pair>(v[PLANES - 1]);
  if constexpr (PLANES == 2) {  // 16 · (upper − 8) + lower, the 128 of `lower` in `offset`
    const Pair upper = __hsub2(bits_of<Pair>(v[0]), Dtype<T>::pair(Dtype<T>::kOffset + 8));
    value = __hfma2(upper, Dtype<T>::pair(16), __hsub2(value, Dtype<T>::pair(Dtype<T>::kOffset)));
  }
  return bits_of<uint32_t>(__hmul2(__hsub2(value, offset), scale));
}

template <typename T>
__device__ uint32_t rounded(float low, float high) {
  typename Dtype<T>::Pair two;
  two.x = static_cast<T>(low), two.y = static_cast<T>(high);
  return bits_of<uint32_t>(two);
}

template <typename T>
__device__ void put(const Problem& p, int m, int n, float value) {
  const size_t at = (size_t)m * p.N + n;
  if (p.epilogue == kResidual) value += static_cast<float>(static_cast<const T*>(p.residual)[at]);
  if (p.y_is_float)
    static_cast<float*>(p.y)[at] = value;
  else
    static_cast<T*>(p.y)[at] = static_cast<T>(value);
}

template <typename T>
__device__ void put_pair(const Problem& p, int m, int n, float gate, float up) {
  const float u = 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate);
  static_cast<T*>(p.y)[(size_t)m * (p.N / 2) + n / 2] = static_cast<T>(gate / (1 + __expf(-u)) * up);
}

// d: a lane's sums of rows n + lane / 4 and 8 rows on, tokens m + lane % 4 · 2 and one on.
template <typename T>
__device__ void store(const Problem& p, const float* d, int m, int n, int lane) {
  const int g = lane >> 2, q = lane & 3;
  if (p.epilogue == kGeglu) {  // of rows 2i and 2i + 1 one token each
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float other = __shfl_xor_sync(~0u, g & 1 ? d[2 * half] : d[2 * half + 1], 4);
      const int token = m + 2 * q + (g & 1), at_row = n + g + 8 * half;
      if (token < p.M && at_row < p.N)
        put_pair<T>(p, token, at_row, g & 1 ? other : d[2 * half], g & 1 ? d[2 * half + 1] : other);
    }
  } else if (p.epilogue == kNone && !p.y_is_float && p.N % 4 == 0) {
    // to a token a lane / 4; then 4 rows a lane: a token's 16 rows are 32 bytes in one piece
    const uint32_t low = transposed(rounded<T>(d[0], d[1]));
    const uint32_t high = transposed(rounded<T>(d[2], d[3]));
    const uint32_t other = __shfl_xor_sync(~0u, q & 1 ? low : high, 1);
    const int token = m + g, at_row = n + (q & 1 ? 6 + 2 * q : 2 * q);
    if (token < p.M && at_row < p.N)
      *reinterpret_cast<uint2*>(static_cast<T*>(p.y) + (size_t)token * p.N + at_row) =
          q & 1 ? uint2{other, high} : uint2{low, other};
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = m + 2 * q + (i & 1), at_row = n + g + (i & 2) * 4;
      if (token < p.M && at_row < p.N) put<T>(p, token, at_row, d[i]);
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

constexpr int most_groups(int tokens) { return tokens == 256 ? 2 : 3; }

// Warps behind the warpgroups that multiply: one copies W, one x. The sums of 256 tokens alone take
// 128 registers of a thread: there a whole warpgroup copies, and gives its registers away.
__host__ __device__ constexpr int copying_threads(int tokens) { return tokens == 256 ? 128 : 64; }

constexpr int most_threads(int tokens) {
  return 128 * most_groups(tokens) + copying_threads(tokens);
}

// Pieces that a step of x comes in.
__host__ __device__ constexpr int parts_of(int tokens) { return tokens == 256 ? 2 : 1; }

__host__ __device__ constexpr int part_bytes(int tokens) {
  return tokens * 2 * kStepColumns / parts_of(tokens);
}

__host__ __device__ constexpr int slot_bytes(int planes) {
  return planes * kTileBytes + kFactorBytes;
}

// A place in a ring, and the parity of how often the ring has been gone round.
struct Place {
  int at = 0, parity = 0;
  __device__ void next(int length) {
    if (++at == length) at = 0, parity ^= 1;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Where the two rings lie, and the barriers of their places.
struct Rings {
  char *x, *weights;
  uint64_t *full_x, *empty_x, *full_w, *empty_w;
};

// One warp: x, part by part.
template <int NT>
__device__ __forceinline__ void copy_x(const Problem& p, const Rings& r, int first, int last) {
  constexpr int kPartBytes = part_bytes(NT);
  const int lane = threadIdx.x & 31, count = (last - first) * parts_of(NT);
  const char* from = static_cast<const char*>(p.image) +
                     ((size_t)blockIdx.x * p.steps + first) * (parts_of(NT) * kPartBytes);
  Place to;
  for (int part = 0; part < count; ++part) {
    if (part >= p.parts) wait_for(r.empty_x + to.at, to.parity ^ 1);
    if (lane == 0) {
      expect(r.full_x + to.at, kPartBytes);
      copy(r.x + to.at * kPartBytes, from + (size_t)part * kPartBytes, kPartBytes,
           r.full_x + to.at);
    }
    __syncwarp();
    to.next(p.parts);
  }
}

// One warp: W step by step, the copies dealt to its lanes.
template <int PLANES>
__device__ __forceinline__ void copy_weights(const Problem& p, const Rings& r, int groups,
                                             int first, int last) {
  const int lane = threadIdx.x & 31, g = lane >> 2, i = lane & 3;
  // rows beyond the last are multiplied and not kept
  const int from = min(static_cast<int>(blockIdx.y) * groups + g, p.rows / kGroupRows - 1);
  const char* tile = p.tiles + (size_t)from * p.steps * (PLANES * kTileBytes);
  const int bytes = groups * (PLANES * kTileBytes +
                              p.step_groups * (kScaleBytes + (p.zeros ? kZeroBytes : 0)));
  Place to;
  for (int step = first; step < last; ++step) {
    uint64_t* full = r.full_w + to.at;
    if (step - first >= p.stages) wait_for(r.empty_w + to.at, to.parity ^ 1);
    if (lane == 0) expect(full, bytes);
    __syncwarp();
    if (g < groups) {
      char* slot = r.weights + (to.at * groups + g) * slot_bytes(PLANES);
      if (i == 0)
        copy(slot, tile + (size_t)step * (PLANES * kTileBytes), PLANES * kTileBytes, full);
      if (i < p.step_groups) {
        const size_t at =
            (size_t)(step / p.group_steps * p.step_groups + i) * p.rows + from * kGroupRows;
        char* factors = slot + PLANES * kTileBytes;
        copy(factors + i * kScaleBytes, p.scales + at, kScaleBytes, full);
        if (p.zeros)
          copy(factors + 4 * kScaleBytes + i * kZeroBytes, p.zeros + at, kZeroBytes, full);
      }
    }
    __syncwarp();
    to.next(p.stages);
  }
}

// The warpgroups: W from its ring to registers, expanded, times x in its ring; then y.
template <typename T, int NT, int PLANES>
__device__ __forceinline__ void consume(const Problem& p, const Rings& r, int groups, int first,
                                        int last) {
  using Pair = typename Dtype<T>::Pair;
  constexpr int kPartBytes = part_bytes(NT), kPerPart = 4 / parts_of(NT);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7;
  const int row = (warp & 3) * 16 + (lane >> 2);  // and row + 8
  float acc[NT / 2];
  uint32_t a[2][8];
  Place w, x;
  for (int step = first; step < last; ++step) {
    wait_for(r.full_w + w.at, w.parity);
    const char* slot = r.weights + (w.at * groups + group) * slot_bytes(PLANES);
    const char* factors = slot + PLANES * kTileBytes;
    uint4 words[PLANES][2];
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
      const uint4* from = reinterpret_cast<const uint4*>(slot + plane * kTileBytes);
      words[plane][0] = from[(warp & 3) * 64 + lane];
      words[plane][1] = from[(warp & 3) * 64 + 32 + lane];
    }
    Pair scale[2], offset[2];
    uint64_t desc = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j == 0 || j * p.step_groups % 4 == 0) {
        const int i = j * p.step_groups / 4;
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(factors) + i * kGroupRows;
        const uint8_t* zeros =
            reinterpret_cast<const uint8_t*>(factors) + 4 * kScaleBytes + i * kGroupRows;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint16_t bits = scales[row + 8 * half];
          scale[half] = bits_of<Pair>((uint32_t)bits << 16 | bits);
          // int8's codes had 128 taken from them above
          const float front = PLANES == 1 ? Dtype<T>::kOffset : -128.0f;
          const float zero = p.zeros ? (float)zeros[row + 8 * half] : PLANES == 1 ? 8.0f : 128.0f;
          offset[half] = Dtype<T>::pair(front + zero);
        }
      }
      uint32_t(&mine)[8] = a[j & 1];
#pragma unroll
      for (int i = 0; i < 8; ++i) {  // (16 columns, k or k + 8, row or row + 8)
        uint32_t packed[PLANES];
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane)
          packed[plane] = word(words[plane][i & 1], i >> 1);
        mine[i] = dequantize<T, PLANES>(packed, j, offset[i & 1], scale[i & 1]);
      }
      if (j == 3) {  // all of W's step has been read
        __syncwarp();
        if (lane == 0) arrive(r.empty_w + w.at);
      }
      if (j % kPerPart == 0) {
        wait_for(r.full_x + x.at, x.parity);
        // the address in this block's window, without its rank in the cluster
        desc = (shared_address(r.x + x.at * kPartBytes) & 0x3ffff) >> 4 | (uint64_t)NT << 16 |
               (uint64_t)8 << 32;
      }
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
      multiply<T, NT>(acc, mine, desc, step > first || j > 0);
      multiply<T, NT>(acc, mine + 4, desc + 2 * NT, 1);
      desc += 4 * NT;
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (j % kPerPart == 0) {  // the part before has been multiplied
        if (lane == 0 && (step > first || j > 0))
          arrive(r.empty_x + (x.at == 0 ? p.parts : x.at) - 1);
        __syncwarp();
        x.next(p.parts);
      }
    }
    w.next(p.stages);
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");

  const int rows = groups * kGroupRows;
  if (p.splits == 1) {
    const int at_row = blockIdx.y * rows + group * kGroupRows + (warp & 3) * 16;
#pragma unroll
    for (int i = 0; i < NT / 8; ++i)
      store<T>(p, acc + 4 * i, blockIdx.x * NT + 8 * i, at_row, lane);
    return;
  }
  sync(groups * 128);  // all copies have been read
  const int stride = rows + kPad;
  float* sums = reinterpret_cast<float*>(r.x);  // (NT, stride), where the rings were
#pragma unroll
  for (int i = 0; i < NT / 2; ++i) {
    const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
    sums[token * stride + group * kGroupRows + row + (i & 2) * 4] = acc[i];
  }
  meet();
  const int share = NT / p.splits, quads = rows / 4;
  for (int i = threadIdx.x; i < share * quads; i += groups * 128) {
    const int t = blockIdx.z * share + i / quads, n = i % quads * 4;
    const int m = blockIdx.x * NT + t, at_row = blockIdx.y * rows + n;
    if (m >= p.M || at_row >= p.N) continue;
    float v[4] = {};
    const uint32_t mine = shared_address(sums + t * stride + n);
    for (int z = 0; z < p.splits; ++z) {
      const uint32_t at = at_block(mine, z);
      float4 part;
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
                   : "r"(at)
                   : "memory");
      v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
    }
    if (p.epilogue == kNone && !p.y_is_float && p.N % 4 == 0) {
      *reinterpret_cast<uint2*>(static_cast<T*>(p.y) + (size_t)m * p.N + at_row) =
          uint2{rounded<T>(v[0], v[1]), rounded<T>(v[2], v[3])};
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      if (at_row + j >= p.N) continue;
      if (p.epilogue == kGeglu) {
        put_pair<T>(p, m, at_row + j, v[j], v[j + 1]);
      } else {
        put<T>(p, m, at_row + j, v[j]);
        if (at_row + j + 1 < p.N) put<T>(p, m, at_row + j + 1, v[j + 1]);
      }
    }
  }
  meet();  // others may still read this block's sums
}
#endif

// NT: tokens of a block; PLANES: 1 for int4, 2 for int8.
template <typename T, int NT, int PLANES>
__global__ void __launch_bounds__(most_threads(NT), 1) multiply_warpgroups(const Problem p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char memory[];
  __shared__ uint64_t full_w[kMostStages], empty_w[kMostStages], full_x[kMostParts],
      empty_x[kMostParts];
  const int groups = (blockDim.x - copying_threads(NT)) >> 7;
  const int first = blockIdx.z * p.steps / p.splits, last = (blockIdx.z + 1) * p.steps / p.splits;
  const Rings r = {memory, memory + p.parts * part_bytes(NT), full_x, empty_x, full_w, empty_w};
  if (threadIdx.x == 0) {
    auto init = [](uint64_t* barrier, int arrivals) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                   "r"(arrivals));
    };
    for (int i = 0; i < p.stages; ++i) init(full_w + i, 1), init(empty_w + i, groups * 4);
    for (int i = 0; i < p.parts; ++i) init(full_x + i, 1), init(empty_x + i, groups * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  asm volatile("griddepcontrol.launch_dependents;");
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32 - groups * 4, 0);
  if (role >= 0) {
    if constexpr (NT == 256) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    // weights don't depend on the launch before this one; x, and all that is written, does
    if (role == 0) {
      copy_weights<PLANES>(p, r, groups, first, last);
    } else if (role == 1) {
      if (p.overlaps) asm volatile("griddepcontrol.wait;" ::: "memory");
      copy_x<NT>(p, r, first, last);
    }
    if (p.splits > 1) meet(), meet();  // as those who multiply
  } else {
    if constexpr (NT == 256) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume<T, NT, PLANES>(p, r, groups, first, last);
  }
#endif
}

struct Input {
  const void* x;
  void* image;
  int K, groups;
};

template <typename T, int NT, int PLANES>
cudaError_t launch(const Problem& p, const Input& in, cudaStream_t stream) {
  const int blocks_m = (p.M + NT - 1) / NT, rows = in.groups * kGroupRows;
  if (in.groups < 1 || in.groups > most_groups(NT) || p.stages < 2 ||
      p.stages > kMostStages || p.parts < 2 || p.parts > kMostParts || p.splits < 1 || p.splits > 8 || p.splits > p.steps)
    return cudaErrorInvalidValue;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t before = {};
  const int threads = NT < 128 ? NT : 128;
  before.gridDim = dim3(blocks_m * NT / threads, p.steps * 4);
  before.blockDim = dim3(threads);
  before.stream = stream;
  before.attrs = attributes;
  before.numAttrs = p.overlaps ? 1 : 0;
  cudaError_t error = cudaLaunchKernelEx(&before, arrange<T>, static_cast<const T*>(in.x),
                                         static_cast<uint4*>(in.image), p.M, in.K, p.steps, NT);
  if (error != cudaSuccess) return error;

  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks_m, (p.N + rows - 1) / rows, p.splits);
  config.blockDim = dim3(in.groups * 128 + copying_threads(NT));
  const int rings = p.parts * part_bytes(NT) + p.stages * in.groups * slot_bytes(PLANES);
  const int sums = p.splits == 1 ? 0 : NT * (rows + kPad) * 4;
  config.dynamicSmemBytes = rings > sums ? rings : sums;
  config.stream = stream;
  int count = p.overlaps ? 1 : 0;
  if (p.splits > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {1, 1, (unsigned)p.splits};
    ++count;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  const auto kernel = multiply_warpgroups<T, NT, PLANES>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               (int)config.dynamicSmemBytes);
  return error == cudaSuccess ? cudaLaunchKernelEx(&config, kernel, p) : error;
}

template <typename T, int PLANES>
cudaError_t pick(const Problem& p, const Input& in, int tokens, cudaStream_t stream) {
  switch (tokens) {
    case 16:
      return launch<T, 16, PLANES>(p, in, stream);
    case 32:
      return launch<T, 32, PLANES>(p, in, stream);
    case 64:
      return launch<T, 64, PLANES>(p, in, stream);
    case 128:
      return launch<T, 128, PLANES>(p, in, stream);
    case 256:
      if constexpr (PLANES == 1) return launch<T, 256, PLANES>(p, in, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

// Returns a cudaError_t. image: as many bytes as x has, rows rounded up to `tokens` and columns to
// 128; tokens: of a block, 16, 32, 64, 128 or (int4) 256; groups: warpgroups of a block, at most 3,
// 2 for 256 tokens; stages: steps of 128 columns of W in flight,
// 2 to 8; parts: steps of x (of 256 tokens: half steps), 2 to 16; splits: slices of K, at most 8.
extern "C" int soroq_matmul_warpgroups(const void* x, const void* tiles, const void* scales,
                                       const void* zeros, void* y, const void* residual,
                                       void* image, int M, int N, int K, int rows, int span,
                                       int bits, int is_half, int y_is_float, int epilogue,
                                       int tokens, int groups, int stages, int parts, int splits,
                                       int overlaps, void* stream) {
  const Problem p = {image,
                     static_cast<const char*>(tiles),
                     static_cast<const uint16_t*>(scales),
                     static_cast<const uint8_t*>(zeros),
                     y,
                     residual,
                     M,
                     N,
                     (K + kStepColumns - 1) / kStepColumns,
                     rows,
                     span < kStepColumns ? kStepColumns / span : 1,
                     span < kStepColumns ? 1 : span / kStepColumns,
                     stages,
                     parts,
                     splits,
                     epilogue,
                     y_is_float,
                     overlaps};
  const Input in = {x, image, K, groups};
  const auto on = static_cast<cudaStream_t>(stream);
  if (bits == 8)
    return is_half ? pick<__half, 2>(p, in, tokens, on) : pick<__nv_bfloat16, 2>(p, in, tokens, on);
  return is_half ? pick<__half, 1>(p, in, tokens, on) : pick<__nv_bfloat16, 1>(p, in, tokens, on);
}
