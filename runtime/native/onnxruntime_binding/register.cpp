// What ONNX Runtime calls to have the operators.
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "../entry_points.h"
#include "attention_kernels.h"
#include "linear_kernels.h"
#include "lora_kernels.h"
#include "score_gate_kernel.h"

namespace gatefx::ort {
namespace {

// The runtime keeps the address, so the table lives as long as the library.
template <class Kernel>
Status* add(const Api& api, Domain* domain) {
  static const Operator<Kernel> op;
  return api.call(kCustomOpDomainAdd, domain, static_cast<const CustomOp*>(&op));
}

template <template <class> class Kernel>
Status* add_types(const Api& api, Domain* domain) {
  GATEFX_RETURN_IF_ERROR(add<Kernel<float>>(api, domain));
  GATEFX_RETURN_IF_ERROR(add<Kernel<double>>(api, domain));
  GATEFX_RETURN_IF_ERROR(add<Kernel<Bfloat16>>(api, domain));
  return add<Kernel<Float16>>(api, domain);
}

// Made once; a session that registers the library again gets the same one.
Status* shared_domain(const Api& api, Domain*& domain) {
  static std::mutex lock;
  static Domain* made = nullptr;
  const std::lock_guard<std::mutex> hold(lock);
  if (made == nullptr) {
    runtime() = api;  // before any session has the operators, which read it
    Domain* fresh = nullptr;
    GATEFX_RETURN_IF_ERROR(api.call(kCreateCustomOpDomain, "gatefx", &fresh));
    GATEFX_RETURN_IF_ERROR(add_types<GatedLora>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<TokenGatedLora>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<GatedLinear>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<GatedLinearGelu>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<GatedLinearPair>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<GatedLinearTriple>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<TokenGatedLinear>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<TokenGatedLinearGelu>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<RoutedLinear>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<RoutedLinearGelu>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<MaskedAttention>(api, fresh));
    GATEFX_RETURN_IF_ERROR(add_types<ScoreGate>(api, fresh));
    made = fresh;
  }
  domain = made;
  return nullptr;
}

// 24 for "1.24.0".
int minor_of(const char* version) {
  const char* dot = std::strchr(version, '.');
  return dot != nullptr && std::atoi(version) == 1 ? std::atoi(dot + 1) : 0;
}

}  // namespace
}  // namespace gatefx::ort

GATEFX_EXPORT gatefx::ort::Status* RegisterCustomOps(gatefx::ort::SessionOptions* options,
                                                     const gatefx::ort::ApiBase* base) {
  using namespace gatefx::ort;
  const bool sizes_in_place = minor_of(base->GetVersionString()) >= int(kSizesInPlaceApi);
  const Api api(base->GetApi(sizes_in_place ? kSizesInPlaceApi : kOldestApi), sizes_in_place);
  if (!api) return Api(base->GetApi(1), false).error(Code::kFail, "gatefx needs ONNX Runtime 1.18 or newer");
  Domain* domain = nullptr;
  GATEFX_RETURN_IF_ERROR(shared_domain(api, domain));
  return api.call(kAddCustomOpDomain, options, domain);
}
