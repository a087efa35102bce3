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

// gated_lora: example b uses the directions that row b of `indices` (B, r) lists; entries outside 0 … r-1 are inactive.
template <class Store, class Parallel>
auto run_gated(const Activations& io, const Real<Store>* a, const Real<Store>* b, const Tensor& indices,
               Real<Store> scale, Parallel&& parallel) {
  const int64_t tokens = io.x.count(1, io.x.axes - 1), slots = indices.sizes[1];
  const int64_t parts = (tokens + kTaskTokens - 1) / kTaskTokens;
  const auto run = kernels().template of<Store>().add_update;
  return parallel(io.x.sizes[0] * parts, [&, run](int64_t task) {
    const int64_t example = task / parts, first = task % parts * kTaskTokens;
    const Real<Store>*rows_a[kMaxRank], *rows_b[kMaxRank];
    Directions<Store> use{rows_a, rows_b, 0, scale};
    for (int64_t slot = 0; slot < slots; ++slot) {
      const int64_t direction = indices.as<int64_t>()[example * slots + slot];
      if (direction < 0 || direction >= slots) continue;
      rows_a[use.rank] = a + direction * io.d_in();
      rows_b[use.rank++] = b + direction * io.d_out();
    }
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
    const Real<Store>*rows_a[kMaxRank], *rows_b[kMaxRank];
    for (int64_t j = 0; j < rank; ++j) rows_a[j] = a + j * io.d_in(), rows_b[j] = b + j * io.d_out();
    const int64_t first = task * kTaskTokens;
    const int64_t count = tokens - first < kTaskTokens ? tokens - first : kTaskTokens;
    run(rows_of<Store>(io, first, count), {rows_a, rows_b, rank, scale}, gate);
  });
}

}  // namespace gatefx
