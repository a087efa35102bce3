// A layer with its adapter on random shapes, held against a plain loop in double precision.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "../operators/gated_linear.h"
#include "arrays.h"

namespace gatefx {

template <class Store>
class LinearCase {
 public:
  explicit LinearCase(std::mt19937& random)
      : batch(1 + random() % 3), tokens(random() % (random() % 4 == 0 ? 120 : 9)),
        d_in(1 + random() % (random() % 8 == 0 ? 900 : 70)), d_out(1 + random() % 150),
        rank(1 + random() % (random() % 8 == 0 ? 200 : 20)), x({batch, tokens, d_in}, random),
        weight({d_out, d_in}, random), second({d_out, d_in}, random), bias({d_out}, random),
        lora_a({rank, d_in}, random), lora_b({d_out, rank}, random), result({batch, tokens, d_out}, random) {
    if (check_layer(x.view(), weight.view(), bias.view()) || prepare(panels, weight.view()) ||
        prepare(panels1, second.view()) || prepare(padded, bias.view()) || prepare(a, lora_a.view()) ||
        prepare(b, lora_b.view()) || scratch.reserve(x.view(), rank))
      std::abort();
    call = {x.view(), result.data(), {panels.data(), padded.data(), d_in, d_out}, nullptr, false};
    scratch.widened_states(x.view(), Serial{}, call.states);
    call.gelu = random() % 3 == 0;
  }

  bool gated(std::mt19937& random) {
    std::vector<int64_t> indices(size_t(batch * rank), -1);
    for (int64_t e = 0; e < batch; ++e)
      for (int64_t slot = 0, listed = int64_t(random() % size_t(rank + 1)); slot < listed; ++slot)
        indices[size_t(e * rank + slot)] = (slot + e) % rank;
    Tensor list;
    list.data = indices.data(), list.axes = 2, list.sizes[0] = batch, list.sizes[1] = rank;
    const GatedSite<Store> site{call, a.data(), b.data(), list, Real<Store>(kScale), scratch.u()};
    run_gated_linears(&site, 1, Serial{});
    return agrees([&](int64_t row, int64_t j) {
      for (int64_t slot = 0; slot < rank; ++slot)
        if (indices[size_t(row / tokens * rank + slot)] == j) return true;
      return false;
    }, [](int64_t) { return false; });
  }

  // Thresholds of nothing and of more than there is, so that rounding never decides.
  bool token_gated(double threshold) {
    std::vector<Real<Store>> gram(size_t(rank * rank), 0);
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < rank; ++j)
        for (int64_t o = 0; o < d_out; ++o)
          gram[size_t(i * rank + j)] += Real<Store>(lora_b.at(o * rank + i) * lora_b.at(o * rank + j));
    const Gate<Store> gate{gram.data(), Real<Store>(threshold)};
    run_token_gated_linear<Store>(call, a.data(), b.data(), rank, gate, Real<Store>(kScale), Serial{});
    // A layer that answers zeros takes its update whatever the threshold.
    return agrees([&](int64_t row, int64_t) { return threshold == 0 || silent(row); }, [](int64_t) { return false; });
  }

  bool routed(std::mt19937& random) {
    const size_t count = size_t(batch * tokens);
    std::unique_ptr<bool[]> choice(new bool[count]);
    std::unique_ptr<int64_t[]> order(new int64_t[count]);
    for (size_t t = 0; t < count; ++t) choice[t] = random() % 2 == 0;
    run_routed_linear<Store>(call, panels1.data(), choice.get(), order.get(), Serial{});
    return agrees([](int64_t, int64_t) { return false; }, [&](int64_t row) { return choice[size_t(row)]; });
  }

 private:
  static constexpr double kScale = 0.75;
  int64_t batch, tokens, d_in, d_out, rank;
  Array<Store> x, weight, second, bias, lora_a, lora_b, result;
  Panels<Store> panels, panels1;
  PanelRow<Store> padded;
  Widened<Store> a;
  Turned<Store> b;
  Scratch<Store> scratch;
  Linear<Store> call;

  struct Sum {
    double value = 0, size = 0;
    void add(double term, double magnitude) { value += term, size += magnitude; }
  };

  Sum product(const Array<Store>& matrix, int64_t row, int64_t which) const {
    Sum sum;
    for (int64_t i = 0; i < d_in; ++i) {
      const double term = x.at(row * d_in + i) * matrix.at(which * d_in + i);
      sum.add(term, std::fabs(term));
    }
    return sum;
  }
  bool silent(int64_t row) const {
    for (int64_t o = 0; o < d_out; ++o)
      if (product(weight, row, o).value + bias.at(o) != 0) return false;
    return true;
  }

  template <class Takes, class Second>
  bool agrees(const Takes& takes, const Second& second_weight) const {
    for (int64_t row = 0; row < batch * tokens; ++row) {
      std::vector<Sum> u(size_t(rank), Sum{});
      for (int64_t j = 0; j < rank; ++j)
        if (takes(row, j)) u[size_t(j)] = product(lora_a, row, j);
      for (int64_t o = 0; o < d_out; ++o) {
        Sum expected = product(second_weight(row) ? second : weight, row, o);
        expected.add(bias.at(o), std::fabs(bias.at(o)));
        for (int64_t j = 0; j < rank; ++j) {
          const double column = kScale * lora_b.at(o * rank + j);
          expected.add(u[size_t(j)].value * column, u[size_t(j)].size * std::fabs(column));
        }
        // GELU is steeper than one by an eighth at most.
        if (call.gelu) expected.value *= 0.5 + 0.5 * std::erf(expected.value / std::sqrt(2.0)), expected.size *= 1.13;
        const double found = double(widened(static_cast<const Store*>(call.out)[row * d_out + o]));
        if (!(std::fabs(found - expected.value) <= bound<Store>() * (expected.size + 1))) {
          std::printf("layer: row %lld, column %lld: %g, not %g\n", (long long)row, (long long)o, found, expected.value);
          return false;
        }
      }
    }
    return true;
  }
};

}  // namespace gatefx
