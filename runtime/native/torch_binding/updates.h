// gated_lora and token_gated_lora on torch's tensors: an update on top of an answer that is there.
#pragma once
#include "arguments.h"

namespace gatefx {

// Dense row-major CPU tensors of one floating-point type.
struct Arguments {
  Array base, x, lora_a, lora_b, scale;
  Activations io;
  Array out;

  Arguments(const char* op, const Array& base_, const Array& x_, const Array& a_, const Array& b_, const Array& scale_)
      : base(dense(base_)),
        x(dense(x_)),
        lora_a(dense(a_)),
        lora_b(dense(b_)),
        scale(dense(scale_)) {
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

inline Array gated_lora(const Array& base, const Array& x, const Array& lora_a, const Array& lora_b, const Array& indices,
                 const Array& scale) {
  const char* op = "gated_lora";
  Arguments given(op, base, x, lora_a, lora_b, scale);
  const Array listed = dense(indices);
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

inline Array token_gated_lora(const Array& base, const Array& x, const Array& lora_a, const Array& lora_b, const Array& gram,
                       const Array& threshold, const Array& scale) {
  const char* op = "token_gated_lora";
  Arguments given(op, base, x, lora_a, lora_b, scale);
  const Array form = dense(gram), least = dense(threshold);
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

}  // namespace gatefx
