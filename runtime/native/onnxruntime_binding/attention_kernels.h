// The node gatefx::MaskedAttention: inputs q, k, v, visible; attributes as those of the standard Attention.
#pragma once
#include "../operators/attention.h"
#include "operator.h"

namespace gatefx::ort {

template <class Store>
struct MaskedAttention {
  static constexpr const char* kName = "MaskedAttention";
  static constexpr bool kInPlace = false;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, Element::kBool};
  static constexpr Element kOutputs[] = {kElement<Store>};
  int64_t heads = 0, key_heads = 0;
  float scale = 0;

  Status* create(const Api& api, const KernelInfo* info) {
    GATEFX_RETURN_IF_ERROR(api.call(kInfoGetInteger, info, "q_num_heads", &heads));
    GATEFX_RETURN_IF_ERROR(api.call(kInfoGetInteger, info, "kv_num_heads", &key_heads));
    return api.call(kInfoGetFloat, info, "scale", &scale);
  }

  Status* compute(const Api& api, KernelContext* context) const {
    AttentionCall call = {};
    call.heads = heads, call.key_heads = key_heads, call.scale = double(scale);
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 0, call.q));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 1, call.k));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 2, call.v));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 3, call.visible));
    GATEFX_RETURN_IF_ERROR(status_of(api, check_attention(call)));
    Tensor answer = call.q;
    answer.sizes[2] = heads * call.value_head();
    GATEFX_RETURN_IF_ERROR(make_output(api, context, 0, answer, call.out));
    std::atomic<bool> failed{false};
    GATEFX_RETURN_IF_ERROR(run_attention<Store>(call, failed, ParallelFor{api, context}));
    return failed ? api.error(Code::kFail, "gatefx: no memory for the keys and values of an attention") : nullptr;
  }
};

}  // namespace gatefx::ort
