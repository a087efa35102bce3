// The nodes gatefx::GatedLora and gatefx::TokenGatedLora; inputs in the order of their ONNX functions.
#pragma once
#include "../operators/lora.h"
#include "operator.h"
#include "prepared.h"

namespace gatefx::ort {

template <class Store>
struct Factors {
  Constant<Widened<Store>> a;
  Constant<Turned<Store>> b;

  Status* create(const Api& api, const KernelInfo* info) {
    GATEFX_RETURN_IF_ERROR(a.create(api, info, 2, 2));
    return b.create(api, info, 3, 2);
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
    const Widened<Store>* used_a = nullptr;
    const Turned<Store>* used_b = nullptr;
    GATEFX_RETURN_IF_ERROR(factors.a.get(api, lora_a, own_a, used_a));
    GATEFX_RETURN_IF_ERROR(factors.b.get(api, lora_b, own_b, used_b));
    a = used_a->data(), b = used_b->data();
    return make_output(api, context, 0, io.base, io.out);
  }
};

template <class Store>
struct GatedLora {
  static constexpr const char* kName = "GatedLora";
  static constexpr bool kInPlace = true;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, Element::kInt64, kElement<Store>};
  static constexpr Element kOutputs[] = {kElement<Store>};
  Factors<Store> factors;

  Status* create(const Api& api, const KernelInfo* info) { return factors.create(api, info); }

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
  static constexpr bool kInPlace = true;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, kElement<Store>, kElement<Store>};
  static constexpr Element kOutputs[] = {kElement<Store>};
  Factors<Store> factors;

  Status* create(const Api& api, const KernelInfo* info) { return factors.create(api, info); }

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
