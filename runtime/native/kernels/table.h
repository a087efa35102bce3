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

// Columns of a panel: weights of a layer are kept as panels of that many outputs, (panel, d_in, kPanel), whatever the
// instruction set; the last one is filled up with zeros.
constexpr int64_t kPanel = 16;
constexpr int64_t panels_of(int64_t d_out) { return (d_out + kPanel - 1) / kPanel; }
// Elements of a row of d_out that is filled up to whole panels.
constexpr int64_t whole_panels(int64_t d_out) { return panels_of(d_out) * kPanel; }

// A frozen layer, y = W x + bias.
template <class Store>
struct Layer {
  const Real<Store>* panels;  // (panels, d_in, kPanel)
  const Real<Store>* bias;    // (panels * kPanel)
  int64_t d_in, d_out;
};

// Tokens that lie anywhere, each with its d_in states, the place of its d_out answers, and its rank coefficients.
template <class Store>
struct Block {
  const Real<Store>* const* x;  // (tokens)
  Store* const* out;            // (tokens)
  const Real<Store>* const* u;  // (tokens); read where there are directions
  int64_t tokens;
};

// Queries and keys whose scores are in the nearest cache together, and the longest row of a head.
constexpr int64_t kSeekers = 48, kSought = 128, kMostHead = 256;

// Consecutive queries of one head, and all keys and values that they may see, packed.
template <class Store>
struct Attention {
  const Store* q;             // rows (head), q_stride apart
  const Real<Store>* keys;    // (panels of keys, head, kPanel)
  const Real<Store>* values;  // (blocks of kSought keys, panels of value_head, keys of the block, kPanel)
  const bool* visible;        // rows (count), visible_stride apart; a stride of 0 is one row for all queries
  Store* out;                 // rows (value_head), out_stride apart
  int64_t q_stride, visible_stride, out_stride;
  int64_t queries, count, head, value_head;  // up to kSeekers queries
  Real<Store> scale;
};

template <class Store>
struct Kernels {
  // out = base + scale * B A x for every token.
  void (*add_update)(const Rows<Store>&, const Directions<Store>&);
  // The same for the tokens that pass the gate; out = base, bit for bit, for the others.
  void (*add_large_updates)(const Rows<Store>&, const Directions<Store>&, const Gate<Store>&);
  // u (tokens, rank) = scale * A x.
  void (*project)(const Rows<Store>&, const Directions<Store>&, Real<Store>* u);
  // out = W x + bias + B u in the panels from `first` to before `end`. Rows of B are readable up to a whole panel.
  void (*run_layer)(const Layer<Store>&, const Block<Store>&, const Directions<Store>&, int64_t first, int64_t end);
  // `count` elements in the arithmetic's type.
  void (*widen)(const Store* from, Real<Store>* to, int64_t count);
  // Softmax attention of a block of queries.
  void (*attend)(const Attention<Store>&);
  // `count` rows of keys or values, `stride` apart, as `attend` reads them.
  void (*pack_keys)(const Store* from, int64_t stride, int64_t count, int64_t head, Real<Store>* to);
  void (*pack_values)(const Store* from, int64_t stride, int64_t count, int64_t head, Real<Store>* to);
  // GELU of `count` elements, in place.
  void (*gelu)(Store* row, int64_t count);
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
