// Element types that tensors may have, and the type that arithmetic on them runs in.
#pragma once
#include <cstdint>

namespace gatefx {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Store>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class Store>
using Real = typename Arithmetic<Store>::type;

}  // namespace gatefx
