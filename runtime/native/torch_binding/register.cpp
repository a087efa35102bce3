// The CPU kernels as torch operators gatefx_native::*, and on request as the kernels of gatefx::*, which Python defines.
// Only torch's stable interface is used, so one build serves every torch from the targeted version on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>

#include "../entry_points.h"
#include "../operators/lora.h"

namespace gatefx {
namespace {

using torch::headeronly::ScalarType;
using Array = torch::stable::Tensor;

Tensor view(const Array& array) {
  STD_TORCH_CHECK(size_t(array.dim()) <= Tensor::kMostAxes, "gatefx: more than eight axes");
  Tensor tensor;
  tensor.data = array.const_data_ptr();
  tensor.axes = size_t(array.dim());
  for (size_t i = 0; i < tensor.axes; ++i) tensor.sizes[i] = array.size(int64_t(i));
  return tensor;
}

std::string described(const char* name, const Array& array) {
  std::string text = std::string(name) + " (";
  for (int64_t i = 0; i < array.dim(); ++i) text += (i ? ", " : "") + std::to_string(array.size(i));
  return text + ") ";
}

void raise_if(const Problem& problem, const char* op) {
  STD_TORCH_CHECK(!problem, op, ": ", problem.text);
}

struct ParallelFor {
  template <class Task>
  int operator()(int64_t count, const Task& task) const {
    torch::stable::parallel_for(0, count, 1, [&task](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
    return 0;
  }
};

// Calls function(Store{}) with the element type of `array`.
template <class Function>
void with_type(const Array& array, const char* op, const Function& function) {
  switch (array.scalar_type()) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(Bfloat16{});
    case ScalarType::Half: return function(Float16{});
    default: STD_TORCH_CHECK(false, op, " takes float32, float64, bfloat16 and float16 tensors");
  }
}

// Dense row-major CPU tensors of one floating-point type.
struct Arguments {
  Array base, x, lora_a, lora_b, scale;
  Activations io;
  Array out;

  Arguments(const char* op, const Array& base_, const Array& x_, const Array& a_, const Array& b_, const Array& scale_)
      : base(torch::stable::contiguous(base_)),
        x(torch::stable::contiguous(x_)),
        lora_a(torch::stable::contiguous(a_)),
        lora_b(torch::stable::contiguous(b_)),
        scale(torch::stable::contiguous(scale_)) {
    for (const Array* other : {&x, &lora_a, &lora_b, &scale})
      STD_TORCH_CHECK(other->is_cpu() && other->scalar_type() == base.scalar_type(), op,
                      ": tensors of different types or devices");
    io.base = view(base);
    io.x = view(x);
    const Problem problem = check_adapter(io, view(lora_a), view(lora_b));
    STD_TORCH_CHECK(!problem, op, ": ", problem.text, "; got ", described("base", base), described("x", x),
                    described("A", lora_a), described("B", lora_b));
    STD_TORCH_CHECK(scale.numel() == 1, op, ": scale is not a single number");
    out = torch::stable::empty_like(base);
    io.out = out.mutable_data_ptr();
  }
};

template <class Store>
struct Factors {
  Widened<Store> a;
  Turned<Store> b;

  Factors(const Arguments& given, const char* op) {
    raise_if(prepare(a, view(given.lora_a)), op);
    raise_if(prepare(b, view(given.lora_b)), op);
  }
};

template <class Store>
Real<Store> number(const Array& scalar) {
  return widened(*static_cast<const Store*>(scalar.const_data_ptr()));
}

Array gated_lora(const Array& base, const Array& x, const Array& lora_a, const Array& lora_b, const Array& indices,
                 const Array& scale) {
  const char* op = "gated_lora";
  Arguments given(op, base, x, lora_a, lora_b, scale);
  const Array listed = torch::stable::contiguous(indices);
  STD_TORCH_CHECK(listed.is_cpu() && listed.scalar_type() == ScalarType::Long &&
                      view(listed).is_matrix(x.size(0), lora_a.size(0)),
                  op, ": indices are not (B, r) int64; got ", described("indices", indices), described("x", x));
  with_type(base, op, [&](auto type) {
    using Store = decltype(type);
    const Factors<Store> factors(given, op);
    run_gated<Store>(given.io, factors.a.data(), factors.b.data(), view(listed), number<Store>(given.scale),
                     ParallelFor{});
  });
  return given.out;
}

Array token_gated_lora(const Array& base, const Array& x, const Array& lora_a, const Array& lora_b, const Array& gram,
                       const Array& threshold, const Array& scale) {
  const char* op = "token_gated_lora";
  Arguments given(op, base, x, lora_a, lora_b, scale);
  const Array form = torch::stable::contiguous(gram), least = torch::stable::contiguous(threshold);
  const int64_t rank = lora_a.size(0);
  for (const Array* other : {&form, &least})
    STD_TORCH_CHECK(other->is_cpu() && other->scalar_type() == base.scalar_type(), op,
                    ": tensors of different types or devices");
  STD_TORCH_CHECK(view(form).is_matrix(rank, rank) && least.numel() == 1, op,
                  ": G is not (r, r), or threshold not a single number");
  with_type(base, op, [&](auto type) {
    using Store = decltype(type);
    const Factors<Store> factors(given, op);
    Widened<Store> prepared;
    raise_if(prepare(prepared, view(form)), op);
    const Gate<Store> gate{prepared.data(), number<Store>(least)};
    run_token_gated<Store>(given.io, factors.a.data(), factors.b.data(), rank, gate, number<Store>(given.scale),
                           ParallelFor{});
  });
  return given.out;
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("gated_lora", TORCH_BOX(&gated_lora));
  library.impl("token_gated_lora", TORCH_BOX(&token_gated_lora));
}

STABLE_TORCH_LIBRARY(gatefx_native, library) {
  library.def(
      "gated_lora(Tensor base, Tensor x, Tensor lora_a, Tensor lora_b, Tensor indices, Tensor scale) -> Tensor");
  library.def(
      "token_gated_lora(Tensor base, Tensor x, Tensor lora_a, Tensor lora_b, Tensor gram, Tensor threshold, "
      "Tensor scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gatefx_native, CPU, library) { implement(library); }

}  // namespace
}  // namespace gatefx

// From now on the operators gatefx::* run these kernels on CPU tensors.
GATEFX_EXPORT void gatefx_serve_torch() {
  using torch::stable::detail::StableLibrary;
  static StableLibrary library(StableLibrary::Kind::IMPL, "gatefx", "CPU", __FILE__, __LINE__);
  static const bool done = (gatefx::implement(library), true);
  (void)done;
}
