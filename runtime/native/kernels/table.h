// What the kernels take, and the table of them that each instruction set fills.
#pragma once
#include <cstdint>

#include "storage.h"

namespace gatefx {

// Ranks above this are refused: the scratch of a block of tokens lives on the stack.
constexpr int64_t kMaxRank = 1024;

// Consecutive tokens that use the same k rank directions. Rows of x have d_in, rows of base and out d_out elements.
template <class Store>
struct Rows {
  const Store* x;     // (tokens, d_in)
  const Store* base;  // (tokens, d_out)
  Store* out;         // (tokens, d_out); may be base itself
  int64_t tokens, d_in, d_out;
};

// The directions in use: `a[j]` is a row of A (d_in), `b[j]` a column of B (d_out) stored as a row.
template <class Store>
struct Directions {
  const Real<Store>* const* a;
  const Real<Store>* const* b;
  int64_t rank;
  Real<Store> scale;
};

// Which tokens take their update: |scale| * sqrt(u' G u) >= threshold * |base|, G (rank, rank).
template <class Store>
struct Gate {
  const Real<Store>* gram;
  Real<Store> threshold;
};

template <class Store>
struct Kernels {
  // out = base + scale * B A x for every token.
  void (*add_update)(const Rows<Store>&, const Directions<Store>&);
  // The same for the tokens that pass the gate; out = base, bit for bit, for the others.
  void (*add_large_updates)(const Rows<Store>&, const Directions<Store>&, const Gate<Store>&);
};

struct Table {
  const char* name;
  Kernels<float> float32;
  Kernels<double> float64;
  Kernels<Bfloat16> bfloat16;
  Kernels<Float16> float16;

  template <class Store>
  const Kernels<Store>& of() const;
};
template <>
inline const Kernels<float>& Table::of<float>() const { return float32; }
template <>
inline const Kernels<double>& Table::of<double>() const { return float64; }
template <>
inline const Kernels<Bfloat16>& Table::of<Bfloat16>() const { return bfloat16; }
template <>
inline const Kernels<Float16>& Table::of<Float16>() const { return float16; }

}  // namespace gatefx
