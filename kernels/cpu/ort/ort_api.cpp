#include "ort_api.h"

namespace soroq {

void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

int64_t NodeInfo::integer(const char* name) const {
  int64_t value = 0;
  check(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value));
  return value;
}

float NodeInfo::real(const char* name) const {
  float value = 0;
  check(api_, api_.KernelInfoGetAttribute_float(info_, name, &value));
  return value;
}

std::string NodeInfo::text(const char* name) const {
  size_t size = 0;  // with the zero at the end
  check(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size));
  std::string value(size, '\0');
  check(api_, api_.KernelInfoGetAttribute_string(info_, name, &value[0], &size));
  value.resize(size > 0 ? size - 1 : 0);
  return value;
}

const OrtValue* NodeInfo::constant(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (!is_constant || value == nullptr) throw std::invalid_argument("panels must be an initializer");
  return value;
}

const OrtValue* Call::input(size_t index) const {
  size_t count = 0;
  check(api_, api_.KernelContext_GetInputCount(context_, &count));
  if (index >= count) return nullptr;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  return value;
}

float* Call::output(const std::vector<int64_t>& shape, size_t index) const {
  OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

std::vector<int64_t> shape_of(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  size_t count = 0;
  OrtStatus* status = api.GetDimensionsCount(info, &count);
  std::vector<int64_t> shape(count);
  if (status == nullptr) status = api.GetDimensions(info, shape.data(), count);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(api, status);
  return shape;
}

int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

}  // namespace soroq
