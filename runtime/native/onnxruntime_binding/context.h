// Tensors, constants and threads of ONNX Runtime in the terms of the operators.
#pragma once
#include "../operators/problem.h"
#include "../operators/tensor.h"
#include "abi.h"

namespace gatefx::ort {

#define GATEFX_RETURN_IF_ERROR(expression) \
  if (Status* error_ = (expression)) return error_

inline Status* status_of(const Api& api, const Problem& problem) {
  if (!problem) return nullptr;
  return api.error(problem.cause == Cause::kMemory ? Code::kFail : Code::kInvalidArgument, problem.text);
}

inline Status* read_sizes(const Api& api, const Value* value, Tensor& tensor) {
  if (api.sizes_in_place()) {
    Element element;
    const int64_t* sizes = nullptr;
    GATEFX_RETURN_IF_ERROR(api.call(kGetSizesInPlace, value, &element, &sizes, &tensor.axes));
    if (tensor.axes > Tensor::kMostAxes) return api.error(Code::kInvalidArgument, "gatefx: more than eight axes");
    for (size_t i = 0; i < tensor.axes; ++i) tensor.sizes[i] = sizes[i];
    return nullptr;
  }
  ShapeInfo* info = nullptr;
  GATEFX_RETURN_IF_ERROR(api.call(kGetTensorTypeAndShape, value, &info));
  Status* error = api.call(kGetDimensionsCount, static_cast<const ShapeInfo*>(info), &tensor.axes);
  if (!error && tensor.axes > Tensor::kMostAxes)
    error = api.error(Code::kInvalidArgument, "gatefx: more than eight axes");
  if (!error) error = api.call(kGetDimensions, static_cast<const ShapeInfo*>(info), &tensor.sizes[0], tensor.axes);
  api.call<void>(kReleaseTensorTypeAndShapeInfo, info);
  return error;
}

inline Status* read_tensor(const Api& api, const Value* value, Tensor& tensor) {
  GATEFX_RETURN_IF_ERROR(read_sizes(api, value, tensor));
  void* data = nullptr;
  GATEFX_RETURN_IF_ERROR(api.call(kGetTensorMutableData, const_cast<Value*>(value), &data));
  tensor.data = data;
  return nullptr;
}

inline Status* read_input(const Api& api, const KernelContext* context, size_t place, Tensor& tensor) {
  const Value* value = nullptr;
  GATEFX_RETURN_IF_ERROR(api.call(kContextGetInput, context, place, &value));
  return read_tensor(api, value, tensor);
}

inline Status* make_output(const Api& api, KernelContext* context, size_t place, const Tensor& like, void*& data) {
  Value* value = nullptr;
  GATEFX_RETURN_IF_ERROR(api.call(kContextGetOutput, context, place, &like.sizes[0], like.axes, &value));
  return api.call(kGetTensorMutableData, value, &data);
}

// `found` says whether input `place` is a constant of the model; only then is `tensor` set.
inline Status* read_constant(const Api& api, const KernelInfo* info, size_t place, Tensor& tensor, bool& found) {
  int constant = 0;
  const Value* value = nullptr;
  GATEFX_RETURN_IF_ERROR(api.call(kGetConstantInput, info, place, &constant, &value));
  found = constant != 0 && value != nullptr;
  return found ? read_tensor(api, value, tensor) : nullptr;
}

// Runs tasks on the threads of the session.
struct ParallelFor {
  const Api& api;
  const KernelContext* context;

  template <class Task>
  Status* operator()(int64_t count, const Task& task) const {
    if (count <= 0) return nullptr;
    if (count == 1) {
      task(0);
      return nullptr;
    }
    void (*run)(void*, size_t) = [](void* self, size_t index) { (*static_cast<const Task*>(self))(int64_t(index)); };
    return api.call(kParallelFor, context, run, size_t(count), size_t(0), const_cast<void*>(static_cast<const void*>(&task)));
  }
};

}  // namespace gatefx::ort
