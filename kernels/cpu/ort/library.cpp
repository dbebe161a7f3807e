// What ONNX Runtime looks for in libsoroq_ort: RegisterCustomOps, which adds the operators to a session.
//
// They run on soroq's own team of threads. SOROQ_NUM_THREADS says how many, or the session's entry
// "soroq.num_threads", which holds for the whole process: it has one team.
#include <cstdlib>

#include "operators.h"

namespace soroq {

namespace {

struct Description : OrtCustomOp {
  Kind kind;
  const char* name;
  ONNXTensorElementDataType first;  // of input 0
  size_t inputs;
};

const Description& own(const OrtCustomOp* op) { return *static_cast<const Description*>(op); }

Description describe(Kind kind, const char* name, ONNXTensorElementDataType first, size_t inputs) {
  Description d = {};
  d.kind = kind;
  d.name = name;
  d.first = first;
  d.inputs = inputs;
  d.version = kOrtVersion;
  d.GetName = [](const OrtCustomOp* op) { return own(op).name; };
  d.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  d.GetInputTypeCount = [](const OrtCustomOp* op) { return own(op).inputs; };
  d.GetInputType = [](const OrtCustomOp* op, size_t index) {
    if (own(op).kind == Kind::attention) {
      return index < 5 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    }
    if (index == 0) return own(op).first;
    return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  d.GetOutputTypeCount = [](const OrtCustomOp* op) -> size_t {
    return own(op).kind == Kind::attention ? 3 : 1;
  };
  d.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  d.GetInputCharacteristic = [](const OrtCustomOp* op, size_t index) {
    return index == 2 && own(op).kind == Kind::matmul ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  d.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  d.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  d.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  d.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  d.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  d.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  d.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  d.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  d.CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                        void** kernel) {
    return status_of(*api, [&] {
      *kernel = make_operator(own(op).kind, *api, NodeInfo(*api, info)).release();
    });
  };
  d.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto* self = static_cast<const Operator*>(kernel);
    return status_of(self->api(), [&] { self->run(Call(self->api(), context)); });
  };
  d.KernelDestroy = [](void* kernel) { delete static_cast<Operator*>(kernel); };
  return d;
}

// Made once and kept: it must outlive all sessions.
OrtCustomOpDomain* the_domain(const OrtApi& api) {
  static const Description matmul =
      describe(Kind::matmul, "MatMulPanels", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 3);
  static const Description gated =
      describe(Kind::gated, "GatedPanels", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 2);
  static const Description gather =
      describe(Kind::gather, "GatherPanels", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 2);
  static const Description attention =
      describe(Kind::attention, "CausalAttention", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 7);
  static OrtCustomOpDomain* const domain = [&] {
    OrtCustomOpDomain* made = nullptr;
    check(api, api.CreateCustomOpDomain("soroq", &made));
    for (const Description* op : {&matmul, &gated, &gather, &attention}) {
      check(api, api.CustomOpDomain_Add(made, op));
    }
    return made;
  }();
  return domain;
}

void take_threads(const OrtApi& api, const OrtSessionOptions* options) {
  int there = 0;
  check(api, api.HasSessionConfigEntry(options, "soroq.num_threads", &there));
  if (!there) return;
  char text[16];
  size_t size = sizeof text;
  check(api, api.GetSessionConfigEntry(options, "soroq.num_threads", text, &size));
  const int n = std::atoi(text);
  if (n < 1) throw std::invalid_argument("soroq.num_threads is " + std::string(text) + ", not 1 or more");
  set_num_threads(n);
}

}  // namespace

}  // namespace soroq

#define SOROQ_EXPORT extern "C" __attribute__((visibility("default")))

SOROQ_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                       const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(soroq::kOrtVersion);
  if (api == nullptr) {
    const std::string text = "libsoroq_ort needs ONNX Runtime 1." +
                             std::to_string(soroq::kOrtVersion) + " or newer, this is " +
                             base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, text.c_str());
  }
  return soroq::status_of(*api, [&] {
    soroq::take_threads(*api, options);
    soroq::check(*api, api->AddCustomOpDomain(options, soroq::the_domain(*api)));
  });
}

// How many threads the operators use.
SOROQ_EXPORT int SoroqNumThreads() { return soroq::num_threads(); }
