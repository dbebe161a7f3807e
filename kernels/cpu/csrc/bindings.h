// What the files that know Python share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "matmul.h"

namespace soroq {

template <typename T>
using Matrix = nanobind::ndarray<T, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using Vector =
    nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

template <typename Array>
void check_shape(const Array& a, const char* name, int64_t rows, int64_t columns) {
  const auto have_rows = static_cast<int64_t>(a.shape(0));
  const auto have_columns = static_cast<int64_t>(a.shape(1));
  if (have_rows == rows && have_columns == columns) return;
  throw std::invalid_argument(std::string(name) + " is (" + std::to_string(have_rows) + ", " +
                              std::to_string(have_columns) + "), must be (" +
                              std::to_string(rows) + ", " + std::to_string(columns) + ")");
}

inline Precision precision_of(const std::string& name) {
  if (name == "exact") return Precision::exact;
  if (name == "int8") return Precision::int8;
  if (name == "int16") return Precision::int16;
  throw std::invalid_argument("precision is exact, int8 or int16, not " + name);
}

// A weight in panels on memory that a torch tensor or a numpy array owns.
class Panels {
 public:
  using Bytes =
      nanobind::ndarray<uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
  using AnyMatrix = nanobind::ndarray<nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

  Panels(Bytes data, int64_t N, int64_t K, int bits, int64_t group, bool symmetric,
         bool bf16_scales);
  const PanelWeight& weight() const { return w_; }
  void fill(int64_t first, const AnyMatrix& words, const std::optional<AnyMatrix>& scales,
            const std::optional<Matrix<const int8_t>>& zeros);
  // Takes the memory of panels not yet filled from where its readers run.
  void touch(bool gated);

 private:
  Bytes data_;
  PanelWeight w_;
};

void bind_panels(nanobind::module_& m);
void bind_decoder(nanobind::module_& m);

}  // namespace soroq
