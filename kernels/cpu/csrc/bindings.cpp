// soroq._cpu: checks shapes, drops the GIL, calls the kernels. The files bindings*.cpp alone know
// Python.
#include <nanobind/stl/optional.h>

#include "bindings.h"
#include "int4.h"

namespace nb = nanobind;
using namespace nb::literals;

using soroq::check_shape;
using soroq::Matrix;

namespace {

const uint32_t* as_words(const int32_t* p) { return reinterpret_cast<const uint32_t*>(p); }
uint32_t* as_words(int32_t* p) { return reinterpret_cast<uint32_t*>(p); }

void pack_int4(const Matrix<const int8_t>& codes, const Matrix<int32_t>& words) {
  const int64_t N = codes.shape(0), K = codes.shape(1);
  check_shape(words, "words", N, soroq::int4_words(K));
  bool in_range;
  {
    nb::gil_scoped_release release;
    in_range = soroq::pack_int4(codes.data(), as_words(words.data()), N, K);
  }
  if (!in_range) throw std::invalid_argument("pack_int4: a code is outside -8..7");
}

void unpack_int4(const Matrix<const int32_t>& words, const Matrix<int8_t>& codes) {
  const int64_t N = codes.shape(0), K = codes.shape(1);
  check_shape(words, "words", N, soroq::int4_words(K));
  nb::gil_scoped_release release;
  soroq::unpack_int4(as_words(words.data()), codes.data(), N, K);
}

void matmul_w4(const Matrix<const float>& x, const Matrix<const int32_t>& qweight,
               const Matrix<const float>& scales, const std::optional<Matrix<const int8_t>>& zeros,
               const Matrix<float>& y, int64_t group_size, int n_threads) {
  const int64_t M = x.shape(0), K = x.shape(1), N = qweight.shape(0);
  if (group_size < 1 || K % group_size || K % soroq::kCodesPerWord) {
    throw std::invalid_argument("matmul_w4: K " + std::to_string(K) +
                                " must be a multiple of 8 and of group_size " +
                                std::to_string(group_size));
  }
  check_shape(qweight, "qweight", N, soroq::int4_words(K));
  check_shape(scales, "scales", N, K / group_size);
  if (zeros) check_shape(*zeros, "zeros", N, K / group_size);
  check_shape(y, "y", M, N);
  nb::gil_scoped_release release;
  soroq::matmul_w4_scalar(x.data(), as_words(qweight.data()), scales.data(),
                          zeros ? zeros->data() : nullptr, y.data(), M, N, K, group_size,
                          n_threads);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels of soroq (kernels/cpu/csrc).";
  m.def("pack_int4", &pack_int4, "codes"_a, "words"_a);
  m.def("unpack_int4", &unpack_int4, "words"_a, "codes"_a);
  m.def("matmul_w4", &matmul_w4, "x"_a, "qweight"_a, "scales"_a, "zeros"_a.none(), "y"_a,
        nb::kw_only(), "group_size"_a, "n_threads"_a);
  soroq::bind_panels(m);
  soroq::bind_decoder(m);
}
