// ONNX Runtime's C interface with errors as exceptions.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#if ORT_API_VERSION < 23
#error "onnxruntime_c_api.h must be of ONNX Runtime 1.23 or newer"
#endif

namespace soroq {

// What is asked of the runtime, whatever header this is built with: graphs need 1.23 anyway.
constexpr uint32_t kOrtVersion = 23;

// Raises what a call of the interface answers, if that is an error.
void check(const OrtApi& api, OrtStatus* status);

// Calls work and returns its exception as the status that ONNX Runtime wants, null without one.
template <typename Work>
OrtStatus* status_of(const OrtApi& api, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

// What a node says about itself.
class NodeInfo {
 public:
  NodeInfo(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  int64_t integer(const char* name) const;
  float real(const char* name) const;
  std::string text(const char* name) const;
  // The initializer that input `index` is. Raises where it isn't one.
  const OrtValue* constant(size_t index) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

// One run of a node.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}
  // Null for an optional input that isn't there.
  const OrtValue* input(size_t index) const;
  float* output(const std::vector<int64_t>& shape, size_t index = 0) const;

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
};

std::vector<int64_t> shape_of(const OrtApi& api, const OrtValue* value);
int64_t count_of(const std::vector<int64_t>& shape);

template <typename T>
const T* data_of(const OrtApi& api, const OrtValue* value) {
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return static_cast<const T*>(data);
}

}  // namespace soroq
