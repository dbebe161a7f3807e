// IST-DASLab/marlin behind a C function, for SOROQ_MARLIN (bench/peers/README.md says how to build).
#include "marlin_cuda_kernel.cu"

extern "C" int soroq_marlin(const void* x, const void* weight, void* y, void* scales, void* locks,
                            void* stream, int M, int N, int K, int group, int device, int sms) {
  return marlin_cuda(x, weight, y, scales, M, N, K, locks, group, device, (cudaStream_t)stream, -1,
                     -1, sms, 16);
}
