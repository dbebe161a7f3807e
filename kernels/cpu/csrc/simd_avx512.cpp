// AVX-512 with VNNI: 16 lanes, four products of bytes a lane in one instruction.
#include <immintrin.h>

#include "kernels.h"

namespace soroq {
namespace avx512 {

#include "vectors_avx512.h"
#include "kernels_impl.h"

}  // namespace avx512

extern const Kernels kAvx512 = avx512::kTable;

}  // namespace soroq
