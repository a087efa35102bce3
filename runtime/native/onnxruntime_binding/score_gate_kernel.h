// The node gatefx::ScoreGate: inputs x, weight, bias, level; the answer is bool.
#pragma once
#include "../operators/score_gate.h"
#include "operator.h"
#include "prepared.h"

namespace gatefx::ort {

template <class Store>
struct ScoreGate {
  static constexpr const char* kName = "ScoreGate";
  static constexpr bool kInPlace = false;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>};
  static constexpr Element kOutputs[] = {Element::kBool};
  Constant<Widened<Store>> weight;

  Status* create(const Api& api, const KernelInfo* info) { return weight.create(api, info, 1, 2); }

  Status* compute(const Api& api, KernelContext* context) const {
    ScoreGateCall<Store> call = {};
    Tensor given;
    Widened<Store> own;
    const Widened<Store>* used = nullptr;
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 0, call.x));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 1, given));
    GATEFX_RETURN_IF_ERROR(status_of(api, check_score_gate(call.x, given)));
    GATEFX_RETURN_IF_ERROR(weight.get(api, given, own, used));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 2, call.bias));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 3, call.level));
    call.weight = used->data();
    Tensor answer = call.x;
    --answer.axes;
    void* out = nullptr;
    GATEFX_RETURN_IF_ERROR(make_output(api, context, 0, answer, out));
    call.out = static_cast<bool*>(out);
    return run_score_gate<Store>(call, ParallelFor{api, context});
  }
};

}  // namespace gatefx::ort
