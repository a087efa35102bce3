// Weights as the kernels want them: prepared once where they are constants of the model, else for each call.
#pragma once
#include "../operators/lora.h"
#include "context.h"

namespace gatefx::ort {

template <class Prepared>
class Constant {
 public:
  // Input `place` must have `axes` axes where it is a constant.
  Status* create(const Api& api, const KernelInfo* info, size_t place, size_t axes) {
    Tensor tensor;
    GATEFX_RETURN_IF_ERROR(read_constant(api, info, place, tensor, found_));
    if (!found_) return nullptr;
    if (tensor.axes != axes)
      return api.error(Code::kInvalidArgument,
                       axes == 2 ? "gatefx: W, A and B must be matrices" : "gatefx: a bias must have one axis");
    return status_of(api, prepare(prepared_, tensor));
  }
  // The constant, or `own` made of `given`.
  Status* get(const Api& api, const Tensor& given, Prepared& own, const Prepared*& used) const {
    used = found_ ? &prepared_ : &own;
    return found_ ? nullptr : status_of(api, prepare(own, given));
  }

 private:
  Prepared prepared_;
  bool found_ = false;
};

template <class Store>
Status* read_scalar(const Api& api, const KernelContext* context, size_t place, Real<Store>& scalar) {
  Tensor tensor;
  GATEFX_RETURN_IF_ERROR(read_input(api, context, place, tensor));
  if (tensor.count() != 1) return api.error(Code::kInvalidArgument, "gatefx: scales, thresholds and levels are single numbers");
  scalar = widened(*tensor.as<Store>());
  return nullptr;
}

}  // namespace gatefx::ort
