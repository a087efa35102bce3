// The nodes gatefx::GatedLora and gatefx::TokenGatedLora; inputs in the order of their ONNX functions.
#pragma once
#include "../operators/lora.h"
#include "operator.h"

namespace gatefx::ort {

// A and B, prepared once where they are constants of the model.
template <class Store>
struct Factors {
  Widened<Store> a;
  Turned<Store> b;
  bool constant_a = false, constant_b = false;

  Status* create(const Api& api, const KernelInfo* info, size_t place_a, size_t place_b) {
    Tensor lora_a, lora_b;
    GATEFX_RETURN_IF_ERROR(read_constant(api, info, place_a, lora_a, constant_a));
    GATEFX_RETURN_IF_ERROR(read_constant(api, info, place_b, lora_b, constant_b));
    if ((constant_a && lora_a.axes != 2) || (constant_b && lora_b.axes != 2))
      return api.error(Code::kInvalidArgument, "gatefx: A and B must be matrices");
    if (constant_a) GATEFX_RETURN_IF_ERROR(status_of(api, prepare(a, lora_a)));
    return constant_b ? status_of(api, prepare(b, lora_b)) : nullptr;
  }
};

// What both nodes read before they differ: tensors that fit together, an output, and A and B as the kernels want them.
template <class Store>
struct Call {
  Activations io;
  Tensor lora_a, lora_b;
  Widened<Store> own_a;
  Turned<Store> own_b;
  const Real<Store>*a = nullptr, *b = nullptr;

  Status* read(const Api& api, KernelContext* context, const Factors<Store>& factors) {
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 0, io.base));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 1, io.x));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 2, lora_a));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 3, lora_b));
    GATEFX_RETURN_IF_ERROR(status_of(api, check_adapter(io, lora_a, lora_b)));
    if (!factors.constant_a) GATEFX_RETURN_IF_ERROR(status_of(api, prepare(own_a, lora_a)));
    if (!factors.constant_b) GATEFX_RETURN_IF_ERROR(status_of(api, prepare(own_b, lora_b)));
    a = factors.constant_a ? factors.a.data() : own_a.data();
    b = factors.constant_b ? factors.b.data() : own_b.data();
    return make_output(api, context, 0, io.base, io.out);
  }
};

template <class Store>
Status* read_scalar(const Api& api, const KernelContext* context, size_t place, Real<Store>& scalar) {
  Tensor tensor;
  GATEFX_RETURN_IF_ERROR(read_input(api, context, place, tensor));
  if (tensor.count() != 1) return api.error(Code::kInvalidArgument, "gatefx: scale and threshold are single numbers");
  scalar = widened(*tensor.as<Store>());
  return nullptr;
}

template <class Store>
struct GatedLora {
  static constexpr const char* kName = "GatedLora";
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, Element::kInt64, kElement<Store>};
  Factors<Store> factors;

  Status* create(const Api& api, const KernelInfo* info) { return factors.create(api, info, 2, 3); }

  Status* compute(const Api& api, KernelContext* context) const {
    Call<Store> call;
    Tensor indices;
    Real<Store> scale;
    GATEFX_RETURN_IF_ERROR(call.read(api, context, factors));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 4, indices));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 5, scale));
    if (!indices.is_matrix(call.io.x.sizes[0], call.lora_a.sizes[0]))
      return api.error(Code::kInvalidArgument, "gatefx: indices are not (B, r)");
    return run_gated<Store>(call.io, call.a, call.b, indices, scale, ParallelFor{api, context});
  }
};

template <class Store>
struct TokenGatedLora {
  static constexpr const char* kName = "TokenGatedLora";
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, kElement<Store>, kElement<Store>};
  Factors<Store> factors;

  Status* create(const Api& api, const KernelInfo* info) { return factors.create(api, info, 2, 3); }

  Status* compute(const Api& api, KernelContext* context) const {
    Call<Store> call;
    Tensor gram;
    Widened<Store> prepared_gram;
    Real<Store> threshold, scale;
    GATEFX_RETURN_IF_ERROR(call.read(api, context, factors));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 4, gram));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 5, threshold));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 6, scale));
    const int64_t rank = call.lora_a.sizes[0];
    if (!gram.is_matrix(rank, rank)) return api.error(Code::kInvalidArgument, "gatefx: G is not (r, r)");
    GATEFX_RETURN_IF_ERROR(status_of(api, prepare(prepared_gram, gram)));
    const Gate<Store> gate{prepared_gram.data(), threshold};
    return run_token_gated<Store>(call.io, call.a, call.b, rank, gate, scale, ParallelFor{api, context});
  }
};

}  // namespace gatefx::ort
