// The nodes gatefx::GatedLinear, gatefx::TokenGatedLinear and gatefx::RoutedLinear, inputs in the order of their functions,
// the same with GELU of what they answer, and several of the first that read one x, which a session puts in place of nodes.
#pragma once
#include "../operators/gated_linear.h"
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
                const Constant<PanelRow<Store>>& constant_bias, int64_t rank, size_t output = 0) {
    const Panels<Store>* used_panels = nullptr;
    const PanelRow<Store>* used_bias = nullptr;
    GATEFX_RETURN_IF_ERROR(panels.get(api, weight, own_panels, used_panels));
    GATEFX_RETURN_IF_ERROR(constant_bias.get(api, bias, own_bias, used_bias));
    call.layer = {used_panels->data(), used_bias->data(), call.x.last(), weight.sizes[0]};
    void* out = nullptr;
    GATEFX_RETURN_IF_ERROR(make_output(api, context, output, answer_of(call.x, weight), out));
    call.out = static_cast<Store*>(out);
    GATEFX_RETURN_IF_ERROR(status_of(api, scratch.reserve(call.x, rank)));
    return scratch.widened_states(call.x, ParallelFor{api, context}, call.states);
  }
};

// A layer with an adapter: inputs x, and from `first` on W, bias, A, B.
template <class Store>
struct AdaptedLayer {
  Constant<Panels<Store>> panels;
  Constant<PanelRow<Store>> bias;
  Constant<Widened<Store>> lora_a;
  Constant<Turned<Store>> lora_b;

  Status* create(const Api& api, const KernelInfo* info, size_t first = 1) {
    GATEFX_RETURN_IF_ERROR(panels.create(api, info, first, 2));
    GATEFX_RETURN_IF_ERROR(bias.create(api, info, first + 1, 1));
    GATEFX_RETURN_IF_ERROR(lora_a.create(api, info, first + 2, 2));
    return lora_b.create(api, info, first + 3, 2);
  }
};

// The same, read for one call.
template <class Store>
struct AdaptedInput : LayerInput<Store> {
  Widened<Store> own_a;
  Turned<Store> own_b;
  const Real<Store>*a = nullptr, *b = nullptr;
  int64_t rank = 0;

  Status* read(const Api& api, KernelContext* context, const AdaptedLayer<Store>& layer, size_t first = 1,
               size_t output = 0) {
    Tensor lora_a, lora_b;
    GATEFX_RETURN_IF_ERROR((LayerInput<Store>::read(api, context, first, first + 1)));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, first + 2, lora_a));
    GATEFX_RETURN_IF_ERROR(read_input(api, context, first + 3, lora_b));
    const Activations io{answer_of(this->call.x, this->weight), this->call.x};
    GATEFX_RETURN_IF_ERROR(status_of(api, check_adapter(io, lora_a, lora_b)));
    const Widened<Store>* used_a = nullptr;
    const Turned<Store>* used_b = nullptr;
    GATEFX_RETURN_IF_ERROR(layer.lora_a.get(api, lora_a, own_a, used_a));
    GATEFX_RETURN_IF_ERROR(layer.lora_b.get(api, lora_b, own_b, used_b));
    a = used_a->data(), b = used_b->data(), rank = lora_a.sizes[0];
    return this->start(api, context, layer.panels, layer.bias, rank, output);
  }
};

// Inputs x, and for each site W, bias, A, B, indices, scale; an output for each site.
template <class Store, size_t kSites>
struct GatedTypes {
  static constexpr size_t kEach = 6, kIndices = 4, kScale = 5;
  Element inputs[1 + kEach * kSites], outputs[kSites];

  constexpr GatedTypes() : inputs{}, outputs{} {
    for (Element& input : inputs) input = kElement<Store>;
    for (size_t i = 0; i < kSites; ++i) inputs[1 + i * kEach + kIndices] = Element::kInt64;
    for (Element& output : outputs) output = kElement<Store>;
  }
};

template <class Store, bool kGelu = false, size_t kSites = 1>
struct GatedLinear {
  using Types = GatedTypes<Store, kSites>;
  static constexpr const char* kName = kSites == 3   ? "GatedLinearTriple"
                                       : kSites == 2 ? "GatedLinearPair"
                                       : kGelu       ? "GatedLinearGelu"
                                                     : "GatedLinear";
  static constexpr bool kInPlace = false;
  static constexpr Types kTypes{};
  static constexpr const Element (&kInputs)[1 + Types::kEach * kSites] = kTypes.inputs;
  static constexpr const Element (&kOutputs)[kSites] = kTypes.outputs;
  AdaptedLayer<Store> layers[kSites];

  Status* create(const Api& api, const KernelInfo* info) {
    for (size_t i = 0; i < kSites; ++i)
      GATEFX_RETURN_IF_ERROR(layers[i].create(api, info, 1 + i * Types::kEach));
    return nullptr;
  }

  Status* compute(const Api& api, KernelContext* context) const {
    AdaptedInput<Store> input[kSites];
    GatedSite<Store> sites[kSites];
    for (size_t i = 0; i < kSites; ++i) {
      const size_t first = 1 + i * Types::kEach;
      GATEFX_RETURN_IF_ERROR(input[i].read(api, context, layers[i], first, i));
      input[i].call.gelu = kGelu;
      sites[i].call = input[i].call, sites[i].a = input[i].a, sites[i].b = input[i].b, sites[i].u = input[i].scratch.u();
      GATEFX_RETURN_IF_ERROR(read_input(api, context, first + Types::kIndices, sites[i].indices));
      GATEFX_RETURN_IF_ERROR(read_scalar<Store>(api, context, first + Types::kScale, sites[i].scale));
      if (!sites[i].indices.is_matrix(input[i].call.x.sizes[0], input[i].rank))
        return api.error(Code::kInvalidArgument, "gatefx: indices are not (B, r)");
    }
    return run_gated_linears(sites, int64_t(kSites), ParallelFor{api, context});
  }
};

template <class Store, bool kGelu = false>
struct TokenGatedLinear {
  static constexpr const char* kName = kGelu ? "TokenGatedLinearGelu" : "TokenGatedLinear";
  static constexpr bool kInPlace = false;
  static constexpr Element kInputs[] = {kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>,
                                        kElement<Store>, kElement<Store>, kElement<Store>, kElement<Store>};
  static constexpr Element kOutputs[] = {kElement<Store>};
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
  static constexpr Element kOutputs[] = {kElement<Store>};
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
    if (!chooses_for(input.call.x, choice)) return api.error(Code::kInvalidArgument, "gatefx: choice is not (B, *)");
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
using GatedLinearPair = GatedLinear<Store, false, 2>;
template <class Store>
using GatedLinearTriple = GatedLinear<Store, false, 3>;
template <class Store>
using TokenGatedLinearGelu = TokenGatedLinear<Store, true>;
template <class Store>
using RoutedLinearGelu = RoutedLinear<Store, true>;

}  // namespace gatefx::ort
