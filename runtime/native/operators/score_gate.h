// score_gate for any runtime: which tokens a linear score lets through.
//
// `Parallel` as in lora.h.
#pragma once
#include "lora.h"

namespace gatefx {

// What a call works on: x (B, *, d_in), the score's weight (d_in) and bias, the level, and the answer (B, *).
template <class Store>
struct ScoreGateCall {
  Tensor x;
  const Real<Store>* weight;
  Real<Store> bias, level;
  bool* out;
};

inline Problem check_score_gate(const Tensor& x, const Tensor& weight) {
  if (x.axes < 2) return misfit("x is not (B, *, d_in)");
  if (!weight.is_matrix(1, x.last()) && !weight.is_matrix(x.last(), 1)) return misfit("the score's weight is not (1, d_in) or (d_in, 1)");
  return {};
}

// out[t] = <weight, x[t]> + bias >= level; a score that is no number lets nothing through.
template <class Store, class Parallel>
auto run_score_gate(const ScoreGateCall<Store>& call, Parallel&& parallel) {
  const int64_t tokens = call.x.count(0, call.x.axes - 1), d_in = call.x.last();
  const auto project = kernels().template of<Store>().project;
  return parallel((tokens + kTaskTokens - 1) / kTaskTokens, [&, project](int64_t task) {
    Real<Store> score[kTaskTokens];
    const Real<Store>* const rows[] = {call.weight};
    const int64_t first = task * kTaskTokens, left = tokens - first, count = left < kTaskTokens ? left : kTaskTokens;
    const Rows<Store> block{call.x.template as<Store>() + first * d_in, nullptr, nullptr, count, d_in, 0};
    project(block, Directions<Store>{rows, nullptr, 1, Real<Store>(1)}, score);
    for (int64_t t = 0; t < count; ++t) call.out[first + t] = score[t] + call.bias >= call.level;
  });
}

}  // namespace gatefx
