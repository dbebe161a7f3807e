// soroq._cpu: weights in panels, products with them, the team, the instruction sets.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>

#include "bindings.h"
#include "ceilings.h"
#include "isa.h"
#include "matmul.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace soroq {

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyMatrix = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// n bytes of zeros, in huge pages where the system gives them, as an array that frees them.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> allocate(int64_t n) {
  struct Block {
    void* start;
    size_t size;
  };
  const int64_t size = (std::max<int64_t>(n, 1) + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
  void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (n >= kHugePage) madvise(start, size, MADV_HUGEPAGE);  // a refusal only costs time
#endif
  const auto address = (reinterpret_cast<uintptr_t>(start) + kHugePage - 1) / kHugePage * kHugePage;
  nb::capsule owner(new Block{start, static_cast<size_t>(size)}, [](void* p) noexcept {
    auto* block = static_cast<Block*>(p);
    munmap(block->start, block->size);
    delete block;
  });
  const size_t shape[1] = {static_cast<size_t>(n)};
  return {reinterpret_cast<uint8_t*>(address), 1, shape, owner};
}

void check_dtype(const AnyMatrix& a, const char* name, nb::dlpack::dtype want) {
  if (a.dtype() != want) throw nb::type_error((std::string(name) + " has the wrong dtype").c_str());
}

// Calls work(first, count) for whole panels of `count` rows, with all threads.
template <typename Work>
void for_panels(int64_t count, const Work& work) {
  const int64_t panels = (count + kPanel - 1) / kPanel;
  run([&](const Member& me) {
    const int64_t first = me.begin(panels) * kPanel;
    const int64_t last = std::min(count, me.end(panels) * kPanel);
    if (first < last) work(first, last - first);
  });
}

nb::dlpack::dtype scale_type(const PanelShape& s) {
  return s.bf16_scales ? nb::dlpack::dtype{4, 16, 1} : nb::dtype<float>();  // 4: bfloat16
}

}  // namespace

Panels::Panels(Bytes data, int64_t N, int64_t K, int bits, int64_t group, bool symmetric,
               bool bf16_scales)
    : data_(data) {
  if (N < 0 || K < 1 || group < 1 || group > K || (bits != 4 && bits != 8 && bits != 16)) {
    throw std::invalid_argument("panels hold 4, 8 or 16 bits, K of at least 1, groups of 1 to K");
  }
  w_.N = N;
  w_.K = K;
  w_.bits = bits;
  w_.group = group;
  w_.symmetric = symmetric;
  w_.bf16_scales = bf16_scales;
  w_.place(data.data());
  if (static_cast<int64_t>(data.size()) != w_.total_bytes()) {
    throw std::invalid_argument("panels of this shape take " + std::to_string(w_.total_bytes()) +
                                " bytes, not " + std::to_string(data.size()));
  }
  if (reinterpret_cast<uintptr_t>(data.data()) % 64 != 0) {
    throw std::invalid_argument("panels must begin on a 64-byte boundary");
  }
}

void Panels::fill(int64_t first, const AnyMatrix& words, const std::optional<AnyMatrix>& scales,
                  const std::optional<Matrix<const int8_t>>& zeros) {
  const int64_t count = words.shape(0);
  if (first % kPanel != 0 || first + count > w_.N) {
    throw std::invalid_argument("rows must begin at a multiple of 64 and end within N");
  }
  auto* data = const_cast<uint8_t*>(w_.data);
  if (w_.bits == 16) {
    check_dtype(words, "values", {4, 16, 1});
    check_shape(words, "values", count, w_.K);
    const auto* values = static_cast<const uint16_t*>(words.data());
    nb::gil_scoped_release release;
    for_panels(count, [&](int64_t from, int64_t n) {
      pack_panels_bf16(w_, data, first + from, n, values + from * w_.K);
    });
    return;
  }
  if (!scales || zeros.has_value() == w_.symmetric) {
    throw std::invalid_argument("scales are missing, or zeros don't fit the symmetry");
  }
  check_dtype(words, "words", nb::dtype<int32_t>());
  check_shape(words, "words", count, (w_.K * w_.bits + 31) / 32);
  check_dtype(*scales, "scales", scale_type(w_));
  check_shape(*scales, "scales", count, w_.n_groups());
  if (zeros) check_shape(*zeros, "zeros", count, w_.n_groups());
  const auto* from_words = static_cast<const uint32_t*>(words.data());
  const auto* from_scales = static_cast<const uint8_t*>(scales->data());
  const int8_t* from_zeros = zeros ? zeros->data() : nullptr;
  const int64_t n_words = words.shape(1), n_groups = w_.n_groups();
  const int64_t scale_size = w_.bf16_scales ? 2 : 4;
  nb::gil_scoped_release release;
  for_panels(count, [&](int64_t from, int64_t n) {
    pack_panels(w_, data, first + from, n, from_words + from * n_words,
                from_scales + from * n_groups * scale_size,
                from_zeros ? from_zeros + from * n_groups : nullptr);
  });
}

void Panels::touch(bool gated) {
  auto* data = const_cast<uint8_t*>(w_.data);
  nb::gil_scoped_release release;
  run([&](const Member& me) { touch_panels(me, w_, gated, data); });
}

namespace {

void unpack(const Panels& panels, int64_t first, const Matrix<int8_t>& codes, const AnyMatrix& scales,
            const std::optional<Matrix<int8_t>>& zeros) {
  const PanelWeight& w = panels.weight();
  const int64_t count = codes.shape(0);
  if (first < 0 || first + count > w.N || w.bits == 16 || zeros.has_value() == w.symmetric) {
    throw std::invalid_argument("these rows or parts aren't in the panels");
  }
  check_shape(codes, "codes", count, w.K);
  check_dtype(scales, "scales", scale_type(w));
  check_shape(scales, "scales", count, w.n_groups());
  if (zeros) check_shape(*zeros, "zeros", count, w.n_groups());
  nb::gil_scoped_release release;
  unpack_panels(w, first, count, codes.data(), const_cast<void*>(scales.data()),
                zeros ? zeros->data() : nullptr);
}

void gather(const Panels& panels,
            const nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& ids,
            const Matrix<float>& rows) {
  const PanelWeight& w = panels.weight();
  const int64_t n = ids.shape(0);
  check_shape(rows, "rows", n, w.K);
  for (int64_t i = 0; i < n; ++i) {
    if (ids.data()[i] < 0 || ids.data()[i] >= w.N) {
      throw nb::index_error(("row " + std::to_string(ids.data()[i]) + " is not in 0.." +
                             std::to_string(w.N - 1)).c_str());
    }
  }
  nb::gil_scoped_release release;
  for (int64_t i = 0; i < n; ++i) gather_row(w, ids.data()[i], rows.data() + i * w.K);
}

void matmul_panels(const Panels& panels, const Matrix<const float>& x, const Matrix<float>& y,
                   const std::string& precision, const std::optional<Vector>& bias,
                   const std::optional<Matrix<const float>>& residual, const std::string& gate,
                   int64_t gated_rows) {
  const PanelWeight& w = panels.weight();
  const Precision how = precision_of(precision);
  const int64_t M = x.shape(0);
  Finish finish{y.data(), static_cast<int64_t>(y.shape(1))};
  int64_t columns = w.N;
  if (!gate.empty()) {
    if (gate != "gelu" && gate != "silu") throw std::invalid_argument("gate is gelu or silu");
    if (w.N % (2 * kPanel) != 0 || gated_rows > w.N / 2 || bias || residual) {
      throw std::invalid_argument("a gated product has panels in pairs, no bias and no residual");
    }
    finish.gate = gate == "gelu" ? Finish::gelu : Finish::silu;
    finish.gated_rows = columns = gated_rows;
  }
  check_shape(x, "x", M, w.K);
  check_shape(y, "y", M, columns);
  if (bias) {
    if (static_cast<int64_t>(bias->shape(0)) != w.N) throw std::invalid_argument("bias must be (N)");
    finish.bias = bias->data();
  }
  if (residual) {
    check_shape(*residual, "residual", M, w.N);
    finish.residual = residual->data();
  }
  nb::gil_scoped_release release;
  matmul(w, how, x.data(), w.K, M, finish);
}

}  // namespace

void bind_panels(nb::module_& m) {
  nb::class_<Panels>(m, "Panels")
      .def(nb::init<Bytes, int64_t, int64_t, int, int64_t, bool, bool>(), "data"_a, "N"_a, "K"_a,
           "bits"_a, "group"_a, "symmetric"_a, "bf16_scales"_a)
      .def("fill", &Panels::fill, "first"_a, "words"_a, "scales"_a.none() = nb::none(),
           "zeros"_a.none() = nb::none())
      .def("touch", &Panels::touch, "gated"_a);
  m.def("panel_bytes",
        [](int64_t N, int64_t K, int bits, int64_t group, bool symmetric, bool bf16_scales) {
          return PanelShape{N, K, bits, group, symmetric, bf16_scales}.total_bytes();
        });
  m.def("allocate", &allocate, "n"_a);
  m.def("unpack_panels", &unpack, "panels"_a, "first"_a, "codes"_a, "scales"_a, "zeros"_a.none());
  m.def("gather_panels", &gather, "panels"_a, "ids"_a, "rows"_a);
  m.def("matmul_panels", &matmul_panels, "panels"_a, "x"_a, "y"_a, nb::kw_only(), "precision"_a,
        "bias"_a.none() = nb::none(), "residual"_a.none() = nb::none(), "gate"_a = "",
        "gated_rows"_a = 0);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, "n"_a);
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("isa_reason", &isa_reason);
  m.def("usable_isas", &usable_isas);
  m.def("select_isa", &select_isa, "name"_a);
  m.def("read_bytes", [](const Bytes& data) {
    nb::gil_scoped_release release;
    return read_bytes(data.data(), static_cast<int64_t>(data.size()));
  });
  m.def("run_int8", &run_int8, "rounds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("run_fma", &run_fma, "rounds"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace soroq
