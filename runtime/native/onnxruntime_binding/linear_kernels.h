// The nodes gatefx::GatedLinear, gatefx::TokenGatedLinear and gatefx::RoutedLinear, inputs in the order of their functions,
// and the same with GELU of what they answer, which a session puts in place of two nodes.
#pragma once
#include "../operators/linear.h"
#include "operator.h"
#include "prepared.h"

namespace gatefx::ort {

// What all three read first: tensors that fit together, the layer, and the place of the answer.
template <class Store>
struct LayerInput {
  Linear<Store> call = {};
  Tensor weight, bias;
  Panels<Store> own_panels;
  PanelRow<Store> own_bias;
  Scratch<Store> scratch;

  Status* read(const Api& api, KernelContext* context, size_t weight_place, size_t bias_place) {
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 0, call.x));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, weight_place, weight));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, bias_place, bias));
    return status_of(api, check_layer(call.x, weight, bias));
  }

  Status* start(const Api& api, KernelContext* context, const Constant<Panels<Store>>& panels,
                const Constant<PanelRow<Store>>& constant_bias, int64_t rank) {
    const Panels<Store>* used_panels = nullptr;
    const PanelRow<Store>* used_bias = nullptr;
    GATEFX_RETURN_IF_ERROR(panels.get(api, weight, own_panels, used_panels));
    GATEFX_RETURN_IF_ERROR(constant_bias.get(api, bias, own_bias, used_bias));
    call.layer = {used_panels->data(), used_bias->data(), call.x.last(), weight.sizes[0]};
    void* out = nullptr;
    GATEFX_RETURN_IF_ERROR(make_output(api, context, 0, answer_of(call.x, weight), out));
    call.out = static_cast<Store*>(out);
    GATEFX_RETURN_IF_ERROR(status_of(api, scratch.reserve(call.x, rank)));
    return scratch.widened_states(call.x, ParallelFor{api, context}, call.states);
  }
};

// A layer with an adapter: inputs x, W, bias, A, B.
template <class Store>
struct AdaptedLayer {
  Constant<Panels<Store>> panels;
  Constant<PanelRow<Store>> bias;
  Constant<Widened<Store>> lora_a;
  Constant<Turned<Store>> lora_b;

  Status* create(const Api& api, const KernelInfo* info) {
    GATEFX_RETURN_IF_ERROR(panels.create(api, info, 1, 2));
    GATEFX_RETURN_IF_ERROR(bias.create(api, info, 2, 1));
    GATEFX_RETURN_IF_ERROR(lora_a.create(api, info, 3, 2));
    return lora_b.create(api, info, 4, 2);
  }
};

// The same, read for one call.
template <class Store>
struct AdaptedInput : LayerInput<Store> {
  Widened<Store> own_a;
  Turned<Store> own_b;
  const Real<Store>*a = nullptr, *b = nullptr;
  int64_t rank = 0;

  Status* read(const Api& api, KernelContext* context, const AdaptedLayer<Store>& layer) {
    Tensor lora_a, lora_b;
    GATEFX_RETURN_IF_ERROR((LayerInput<Store>::read(api, context, 1, 2)));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 3, lora_a));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 4, lora_b));
    const Activations io{answer_of(this->call.x, this->weight), this->call.x};
    GATEFX_RETURN_IF_ERROR(status_of(api, check_adapter(io, lora_a, lora_b)));
    const Widened<Store>* used_a = nullptr;
    const Turned<Store>* used_b = nullptr;
    GATEFX_RETURN_IF_ERROR(layer.lora_a.get(api, lora_a, own_a, used_a));
    GATEFX_RETURN_IF_ERROR(layer.lora_b.get(api, lora_b, own_b, used_b));
    a = used_a->data(), b = used_b->data(), rank = lora_a.sizes[0];
    return this->start(api, context, layer.panels, layer.bias, rank);
  }
};

template <class Store, bool kGelu = false>
struct GatedLinear {
  static constexpr const char* kName = kGelu ? "GatedLinearGelu" : "GatedLinear";
  static constexpr bool kInPlace = false;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, Element::kInt64, kElement<Store>};
  static constexpr Element kOutput = kElement<Store>;
  AdaptedLayer<Store> layer;

  Status* create(const Api& api, const KernelInfo* info) { return layer.create(api, info); }

  Status* compute(const Api& api, KernelContext* context) const {
    AdaptedInput<Store> input;
    Tensor indices;
    Real<Store> scale;
    GATEFX_RETURN_IF_ERROR(input.read(api, context, layer));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 5, indices));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 6, scale));
    if (!indices.is_matrix(input.call.x.sizes[0], input.rank))
      return api.error(Code::kInvalidArgument, "gatefx: indices are not (B, r)");
    input.call.gelu = kGelu;
    return run_gated_linear<Store>(input.call, input.a, input.b, indices, scale, input.scratch.u(),
                                   ParallelFor{api, context});
  }
};

template <class Store, bool kGelu = false>
struct TokenGatedLinear {
  static constexpr const char* kName = kGelu ? "TokenGatedLinearGelu" : "TokenGatedLinear";
  static constexpr bool kInPlace = false;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>};
  static constexpr Element kOutput = kElement<Store>;
  AdaptedLayer<Store> layer;

  Status* create(const Api& api, const KernelInfo* info) { return layer.create(api, info); }

  Status* compute(const Api& api, KernelContext* context) const {
    AdaptedInput<Store> input;
    Tensor gram;
    Widened<Store> prepared_gram;
    Real<Store> threshold, scale;
    GATEFX_RETURN_IF_ERROR(input.read(api, context, layer));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 5, gram));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 6, threshold));
    GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, 7, scale));
    if (!gram.is_matrix(input.rank, input.rank)) return api.error(Code::kInvalidArgument, "gatefx: G is not (r, r)");
    GATEFX_RETURN_IF_ERROR(status_of(api, prepare(prepared_gram, gram)));
    const Gate<Store> gate{prepared_gram.data(), threshold};
    input.call.gelu = kGelu;
    return run_token_gated_linear<Store>(input.call, input.a, input.b, input.rank, gate, scale,
                                         ParallelFor{api, context});
  }
};

// Inputs x, W0, W1, bias, choice.
template <class Store, bool kGelu = false>
struct RoutedLinear {
  static constexpr const char* kName = kGelu ? "RoutedLinearGelu" : "RoutedLinear";
  static constexpr bool kInPlace = false;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>,
                                        Element::kBool};
  static constexpr Element kOutput = kElement<Store>;
  Constant<Panels<Store>> panels0, panels1;
  Constant<PanelRow<Store>> bias;

  Status* create(const Api& api, const KernelInfo* info) {
    GATEFX_RETURN_IF_ERROR(panels0.create(api, info, 1, 2));
    GATEFX_RETURN_IF_ERROR(panels1.create(api, info, 2, 2));
    return bias.create(api, info, 3, 1);
  }

  Status* compute(const Api& api, KernelContext* context) const {
    LayerInput<Store> input;
    Tensor weight1, choice;
    Panels<Store> own;
    Buffer<int64_t> order;
    const Panels<Store>* second = nullptr;
    GATEFX_RETURN_IF_ERROR(input.read(api, context, 1, 3));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 2, weight1));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, 4, choice));
    if (!weight1.is_matrix(input.weight.sizes[0], input.weight.sizes[1]))
      return api.error(Code::kInvalidArgument, "gatefx: W1 is not as W0, (d_out, d_in)");
    const int64_t tokens = input.call.tokens();
    if (choice.count() != tokens) return api.error(Code::kInvalidArgument, "gatefx: choice is not (B, *)");
    GATEFX_RETURN_IF_ERROR(panels1.get(api, weight1, own, second));
    GATEFX_RETURN_IF_ERROR(input.start(api, context, panels0, bias, 0));
    if (!order.resize(tokens)) return api.error(Code::kFail, "gatefx: no memory for the order of the tokens");
    input.call.gelu = kGelu;
    return run_routed_linear<Store>(input.call, second->data(), choice.as<bool>(), order.data(),
                                    ParallelFor{api, context});
  }
};

template <class Store>
using GatedLinearGelu = GatedLinear<Store, true>;
template <class Store>
using TokenGatedLinearGelu = TokenGatedLinear<Store, true>;
template <class Store>
using RoutedLinearGelu = RoutedLinear<Store, true>;

}  // namespace gatefx::ort
