// Fills the function table of a custom operator from a C++ class.
#pragma once
#include <new>

#include "../kernels/storage.h"
#include "context.h"

namespace gatefx::ort {

template <class Store>
constexpr Element kElement = Element::kFloat;
template <>
constexpr Element kElement<double> = Element::kDouble;
template <>
constexpr Element kElement<Bfloat16> = Element::kBfloat16;
template <>
constexpr Element kElement<Float16> = Element::kFloat16;

// Of the runtime that loaded the library first. One process has one.
inline Api& runtime() {
  static Api api;
  return api;
}

// An operator. `Kernel` has
//   static constexpr const char* kName; static constexpr Element kInputs[], kOutputs[];
//   static constexpr bool kInPlace;                  whether the output may replace input 0
//   Status* create(const Api&, const KernelInfo*);   once per node
//   Status* compute(const Api&, KernelContext*);     per run, from several threads at once
template <class Kernel>
struct Operator : CustomOp {
  Operator() : CustomOp{} {
    version = kOldestApi;
    GetName = [](const CustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
    GetInputType = [](const CustomOp*, size_t place) { return Kernel::kInputs[place]; };
    GetInputTypeCount = [](const CustomOp*) { return sizeof(Kernel::kInputs) / sizeof(Element); };
    GetOutputType = [](const CustomOp*, size_t place) { return Kernel::kOutputs[place]; };
    GetOutputTypeCount = [](const CustomOp*) { return sizeof(Kernel::kOutputs) / sizeof(Element); };
    GetInputCharacteristic = GetOutputCharacteristic = [](const CustomOp*, size_t) { return kInputRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return kMemoryDefault; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return 1; };
    CreateKernelV2 = create;
    KernelComputeV2 = [](void* kernel, KernelContext* context) {
      return static_cast<Kernel*>(kernel)->compute(runtime(), context);
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    if (Kernel::kInPlace) GetMayInplace = may_inplace;
    ReleaseMayInplace = [](int*, int*) {};
  }

 private:
  static Status* create(const CustomOp*, const void*, const KernelInfo* info, void** made) {
    Kernel* kernel = new (std::nothrow) Kernel;
    if (kernel == nullptr) return runtime().error(Code::kFail, "gatefx: no memory for a kernel");
    if (Status* error = kernel->create(runtime(), info)) {
      delete kernel;
      return error;
    }
    *made = kernel;
    return nullptr;
  }
  static size_t may_inplace(int** inputs, int** outputs) {
    static int first[1] = {0};  // read by the runtime, which never writes there
    *inputs = *outputs = first;
    return 1;
  }
};

}  // namespace gatefx::ort
