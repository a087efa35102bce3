// A frozen layer and its adapter over packed weights: packed_gated_linear, packed_token_gated_linear and
// packed_routed_linear. float32 and float64, the types of the arithmetic, so that nothing is prepared in a call.
#pragma once
#include "../operators/gated_linear.h"
#include "arguments.h"

namespace gatefx {

// Calls function(Store{}) with the element type of `array`, which packed weights may have.
template <class Function>
void with_packed_type(const Array& array, const char* op, const Function& function) {
  switch (array.scalar_type()) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    default: STD_TORCH_CHECK(false, op, " takes float32 and float64 tensors");
  }
}

// Tensors of a layer of `d_out` outputs that fit together, and the place of the answer.
struct PackedLayer {
  const char* op;
  Array x, panels, bias;
  int64_t d_out;
  Tensor states;
  Array out;

  PackedLayer(const char* op_, const Array& x_, const Array& panels_, const Array& bias_, int64_t d_out_)
      : op(op_), x(dense(x_)), panels(dense(panels_)), bias(dense(bias_)), d_out(d_out_), states(view(x)) {
    STD_TORCH_CHECK(x.is_cpu() && x.dim() >= 2, op, ": x is not (B, *, d_in) on the CPU");
    take(panels, "the panels");
    take(bias, "the bias");
    STD_TORCH_CHECK(d_out > 0 && fit(panels) && view(bias).count() == whole_panels(d_out) && bias.dim() == 1, op,
                    ": the layer is not packed for ", std::to_string(d_out), " outputs; got ", described("x", x),
                    described("panels", panels), described("bias", bias));
    Tensor answer = states;
    answer.sizes[answer.axes - 1] = d_out;
    out = torch::stable::new_empty(x, {answer.sizes, answer.axes});
  }

  // Checks the device and type of another tensor.
  void take(const Array& other, const char* name) const {
    STD_TORCH_CHECK(other.is_cpu() && other.scalar_type() == x.scalar_type(), op, ": ", name,
                    " have another type or device than x");
  }
  // Whether these are panels for this layer.
  bool fit(const Array& other) const {
    const Tensor given = view(other);
    return given.axes == 3 && given.sizes[0] == panels_of(d_out) && given.sizes[1] == states.last() &&
           given.sizes[2] == kPanel;
  }
  template <class Store>
  Linear<Store> call() {
    const Layer<Store> layer{static_cast<const Store*>(panels.const_data_ptr()),
                             static_cast<const Store*>(bias.const_data_ptr()), states.last(), d_out};
    return {states, static_cast<Store*>(out.mutable_data_ptr()), layer, static_cast<const Store*>(states.data), false};
  }
};

// A and the rows of B, which fit the layer.
struct PackedAdapter {
  Array lora_a, directions, scale;
  int64_t rank;

  PackedAdapter(const PackedLayer& layer, const Array& a, const Array& rows, const Array& scale_)
      : lora_a(dense(a)), directions(dense(rows)), scale(dense(scale_)), rank(lora_a.dim() == 2 ? lora_a.size(0) : 0) {
    for (const Array* other : {&lora_a, &directions, &scale}) layer.take(*other, "the adapter's tensors");
    STD_TORCH_CHECK(view(lora_a).is_matrix(rank, layer.states.last()), layer.op, ": A is not (r, d_in)");
    STD_TORCH_CHECK(view(directions).is_matrix(rank, whole_panels(layer.d_out)), layer.op,
                    ": the directions are not (r, 16 P)");
    STD_TORCH_CHECK(rank <= kMaxRank, layer.op, ": the native kernels take ranks up to 1024");
    STD_TORCH_CHECK(scale.numel() == 1, layer.op, ": scale is not a single number");
  }
  template <class Store>
  const Store* a() const { return static_cast<const Store*>(lora_a.const_data_ptr()); }
  template <class Store>
  const Store* b() const { return static_cast<const Store*>(directions.const_data_ptr()); }
};

inline Array packed_gated_linear(const Array& x, const Array& panels, const Array& bias, const Array& lora_a,
                                 const Array& directions, const Array& indices, const Array& scale, int64_t d_out) {
  PackedLayer layer("packed_gated_linear", x, panels, bias, d_out);
  const PackedAdapter adapter(layer, lora_a, directions, scale);
  const Array listed = dense(indices);
  STD_TORCH_CHECK(listed.is_cpu() && listed.scalar_type() == ScalarType::Long &&
                      view(listed).is_matrix(layer.states.sizes[0], adapter.rank),
                  layer.op, ": indices are not (B, r) int64; got ", described("indices", indices));
  with_packed_type(layer.x, layer.op, [&](auto type) {
    using Store = decltype(type);
    Scratch<Store> scratch;
    raise_if(scratch.reserve(layer.states, adapter.rank), layer.op);
    const GatedSite<Store> site{layer.call<Store>(), adapter.a<Store>(), adapter.b<Store>(), view(listed),
                                number<Store>(adapter.scale), scratch.u()};
    run_gated_linears(&site, 1, ParallelFor{});
  });
  return layer.out;
}

inline Array packed_token_gated_linear(const Array& x, const Array& panels, const Array& bias, const Array& lora_a,
                                       const Array& directions, const Array& gram, const Array& threshold,
                                       const Array& scale, int64_t d_out) {
  PackedLayer layer("packed_token_gated_linear", x, panels, bias, d_out);
  const PackedAdapter adapter(layer, lora_a, directions, scale);
  const Array form = dense(gram), least = dense(threshold);
  for (const Array* other : {&form, &least}) layer.take(*other, "the gate's tensors");
  STD_TORCH_CHECK(view(form).is_matrix(adapter.rank, adapter.rank) && least.numel() == 1, layer.op,
                  ": G is not (r, r), or threshold not a single number");
  with_packed_type(layer.x, layer.op, [&](auto type) {
    using Store = decltype(type);
    const Gate<Store> gate{static_cast<const Store*>(form.const_data_ptr()), number<Store>(least)};
    run_token_gated_linear<Store>(layer.call<Store>(), adapter.a<Store>(), adapter.b<Store>(), adapter.rank, gate,
                                  number<Store>(adapter.scale), ParallelFor{});
  });
  return layer.out;
}

inline Array packed_routed_linear(const Array& x, const Array& panels0, const Array& panels1, const Array& bias,
                                  const Array& choice, int64_t d_out) {
  PackedLayer layer("packed_routed_linear", x, panels0, bias, d_out);
  const Array second = dense(panels1), chosen = dense(choice);
  layer.take(second, "the second panels");
  STD_TORCH_CHECK(layer.fit(second), layer.op, ": the second panels are not as the first");
  const int64_t tokens = layer.states.count(0, layer.states.axes - 1);
  STD_TORCH_CHECK(chosen.is_cpu() && chosen.scalar_type() == ScalarType::Bool && chooses_for(layer.states, view(chosen)), layer.op,
                  ": choice is not (B, *) bool");
  Buffer<int64_t> order;
  STD_TORCH_CHECK(order.resize(tokens), layer.op, ": no memory for the order of the tokens");
  with_packed_type(layer.x, layer.op, [&](auto type) {
    using Store = decltype(type);
    run_routed_linear<Store>(layer.call<Store>(), static_cast<const Store*>(second.const_data_ptr()),
                             static_cast<const bool*>(chosen.const_data_ptr()), order.data(), ParallelFor{});
  });
  return layer.out;
}

}  // namespace gatefx
