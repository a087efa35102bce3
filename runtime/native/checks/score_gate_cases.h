// Gates by a linear score on random shapes, held against a plain loop.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "../operators/score_gate.h"
#include "arrays.h"

namespace gatefx {

template <class Store>
class ScoreGateCase {
 public:
  explicit ScoreGateCase(std::mt19937& random)
      : batch(1 + random() % 3), tokens(random() % (random() % 4 == 0 ? 120 : 9)), d_in(1 + random() % 300),
        x({batch, tokens, d_in}, random), weight({1, d_in}, random), bias(double(random() % 9) / 8 - 0.5),
        out(new bool[size_t(batch * tokens)]) {
    if (check_score_gate(x.view(), weight.view()) || prepare(widened_weight, weight.view())) std::abort();
  }

  // All numbers are small multiples of 1/64, so a score is exact and a level between two multiples never ties.
  bool agrees(std::mt19937& random) {
    const double level = (double(random() % 128) - 64) / 8 + 1.0 / 1024;
    ScoreGateCall<Store> call = {x.view(), widened_weight.data(), Real<Store>(bias), Real<Store>(level), out.get()};
    run_score_gate<Store>(call, Serial{});
    for (int64_t row = 0; row < batch * tokens; ++row) {
      double score = bias;
      for (int64_t i = 0; i < d_in; ++i) score += x.at(row * d_in + i) * weight.at(i);
      if (out[size_t(row)] != (score >= level)) {
        std::printf("score gate: row %lld: %g beside %g\n", (long long)row, score, level);
        return false;
      }
    }
    return true;
  }

 private:
  int64_t batch, tokens, d_in;
  Array<Store> x, weight;
  double bias;
  std::unique_ptr<bool[]> out;
  Widened<Store> widened_weight;
};

}  // namespace gatefx
