// gated_lora and token_gated_lora for any runtime: what fits together, what is prepared once, what runs in parallel.
//
// Axes: B examples, * middle axes whose product is M, d_in and d_out features, r rank directions.
// `Parallel` is called as parallel(count, task), runs task(i) for 0 <= i < count on the runtime's own threads, and
// returns its status, which `run` hands on.
#pragma once
#include "../kernels/dispatch.h"
#include "factors.h"
#include "problem.h"

namespace gatefx {

// Tokens of one task; a multiple of every register tile.
constexpr int64_t kTaskTokens = 48;

struct Activations {
  Tensor base, x;
  void* out = nullptr;

  int64_t d_in() const { return x.last(); }
  int64_t d_out() const { return base.last(); }
};

inline Problem check_adapter(const Activations& io, const Tensor& lora_a, const Tensor& lora_b) {
  if (!io.base.same_rows(io.x)) return misfit("base (B, *, d_out) and x (B, *, d_in) do not agree");
  if (lora_a.axes != 2 || lora_a.sizes[1] != io.d_in()) return misfit("A is not (r, d_in)");
  if (!lora_b.is_matrix(io.d_out(), lora_a.sizes[0])) return misfit("B is not (d_out, r)");
  if (lora_a.sizes[0] > kMaxRank) return misfit("the native kernels take ranks up to 1024");
  return {};
}

// Prepares A or B for the kernels.
template <class Prepared>
Problem prepare(Prepared& prepared, const Tensor& matrix) {
  return prepared.set(matrix) ? Problem{} : out_of_memory("no memory for a copy of an adapter's matrix");
}

template <class Store>
Rows<Store> rows_of(const Activations& io, int64_t first, int64_t tokens) {
  Store* out = static_cast<Store*>(io.out);
  return {io.x.as<Store>() + first * io.d_in(), io.base.as<Store>() + first * io.d_out(), out + first * io.d_out(),
          tokens, io.d_in(), io.d_out()};
}

// The directions of a call: those that one row of `indices` (r) lists, entries outside 0 … r-1 are inactive; or all.
// Rows of A (r, d_in) follow each other, rows of `b` are filled up to whole panels.
template <class Store>
class Selection {
 public:
  Selection(const Real<Store>* a, const Real<Store>* b, int64_t d_in, int64_t d_out, Real<Store> scale)
      : use_{rows_a_, rows_b_, 0, scale}, a_(a), b_(b), d_in_(d_in), stride_(whole_panels(d_out)) {}
  Selection(const Selection&) = delete;
  Selection& operator=(const Selection&) = delete;

  const Directions<Store>& listed(const int64_t* indices, int64_t slots) {
    for (int64_t slot = 0; slot < slots; ++slot)
      if (indices[slot] >= 0 && indices[slot] < slots) add(indices[slot]);
    return use_;
  }
  const Directions<Store>& all(int64_t rank) {
    for (int64_t j = 0; j < rank; ++j) add(j);
    return use_;
  }

 private:
  void add(int64_t direction) {
    rows_a_[use_.rank] = a_ + direction * d_in_;
    rows_b_[use_.rank++] = b_ + direction * stride_;
  }
  const Real<Store>*rows_a_[kMaxRank], *rows_b_[kMaxRank];
  Directions<Store> use_;
  const Real<Store>*a_, *b_;
  int64_t d_in_, stride_;
};

// gated_lora: example b uses the directions that row b of `indices` (B, r) lists; entries outside 0 … r-1 are inactive.
template <class Store, class Parallel>
auto run_gated(const Activations& io, const Real<Store>* a, const Real<Store>* b, const Tensor& indices,
               Real<Store> scale, Parallel&& parallel) {
  const int64_t tokens = io.x.count(1, io.x.axes - 1), slots = indices.sizes[1];
  const int64_t parts = (tokens + kTaskTokens - 1) / kTaskTokens;
  const auto run = kernels().template of<Store>().add_update;
  return parallel(io.x.sizes[0] * parts, [&, run](int64_t task) {
    const int64_t example = task / parts, first = task % parts * kTaskTokens;
    Selection<Store> selection(a, b, io.d_in(), io.d_out(), scale);
    const auto& use = selection.listed(indices.as<int64_t>() + example * slots, slots);
    const int64_t count = tokens - first < kTaskTokens ? tokens - first : kTaskTokens;
    run(rows_of<Store>(io, example * tokens + first, count), use);
  });
}

// token_gated_lora: a token takes its update where |scale| * sqrt(u' G u) >= threshold * |base|.
template <class Store, class Parallel>
auto run_token_gated(const Activations& io, const Real<Store>* a, const Real<Store>* b, int64_t rank,
                     const Gate<Store>& gate, Real<Store> scale, Parallel&& parallel) {
  const int64_t tokens = io.x.count(0, io.x.axes - 1);
  const auto run = kernels().template of<Store>().add_large_updates;
  return parallel((tokens + kTaskTokens - 1) / kTaskTokens, [&, run](int64_t task) {
    Selection<Store> selection(a, b, io.d_in(), io.d_out(), scale);
    const int64_t first = task * kTaskTokens;
    const int64_t count = tokens - first < kTaskTokens ? tokens - first : kTaskTokens;
    run(rows_of<Store>(io, first, count), selection.all(rank), gate);
  });
}

}  // namespace gatefx
