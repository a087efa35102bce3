// Random shapes through every kernel, for builds with sanitizers: no runtime, buffers of exactly the size that is
// promised, answers held against a plain loop in double precision.
//
//   gatefx_fuzz [cases] [seed]     exits with 1 and the case at the first wrong answer
#include <cstdio>
#include <cstdlib>

#include "attention_cases.h"
#include "linear_cases.h"
#include "score_gate_cases.h"

namespace gatefx {
namespace {

template <class Store>
class Case {
 public:
  Case(std::mt19937& random, bool in_place)
      : batch(1 + random() % 3), tokens(random() % 60), d_in(1 + random() % 70), d_out(1 + random() % 70),
        rank(1 + random() % (random() % 8 == 0 ? 200 : 20)),
        base({batch, tokens, d_out}, random), x({batch, tokens, d_in}, random), lora_a({rank, d_in}, random),
        lora_b({d_out, rank}, random), result({batch, tokens, d_out}, random), indices(size_t(batch * rank), -1),
        before(base.data(), base.data() + batch * tokens * d_out) {
    io.base = base.view();
    io.x = x.view();
    io.out = in_place ? base.data() : result.data();
    if (prepare(a, lora_a.view()) || prepare(b, lora_b.view()) || check_adapter(io, lora_a.view(), lora_b.view()))
      std::abort();
  }

  bool gated(std::mt19937& random) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t slot = 0, listed = int64_t(random() % size_t(rank + 1)); slot < listed; ++slot)
        indices[size_t(b * rank + slot)] = (slot * 7 + b) % rank == 0 ? slot : (slot + b) % rank;
    Tensor list;
    list.data = indices.data(), list.axes = 2, list.sizes[0] = batch, list.sizes[1] = rank;
    run_gated<Store>(io, a.data(), b.data(), list, Real<Store>(kScale), Serial{});
    return agrees([&](int64_t row) {
      std::vector<double> weights(size_t(rank), 0.0);
      for (int64_t slot = 0; slot < rank; ++slot) {
        const int64_t direction = indices[size_t(row / tokens * rank + slot)];
        if (direction >= 0) weights[size_t(direction)] += 1;
      }
      return weights;
    });
  }

  bool token_gated(double threshold) {
    std::vector<Real<Store>> gram(size_t(rank * rank), 0);
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < rank; ++j)
        for (int64_t o = 0; o < d_out; ++o)
          gram[size_t(i * rank + j)] += Real<Store>(lora_b.at(o * rank + i) * lora_b.at(o * rank + j));
    const Gate<Store> gate{gram.data(), Real<Store>(threshold)};
    run_token_gated<Store>(io, a.data(), b.data(), rank, gate, Real<Store>(kScale), Serial{});
    // Thresholds of nothing and of more than there is, so that rounding never decides; a base of zeros always takes.
    return agrees([&](int64_t row) {
      double squares = 0;
      for (int64_t o = 0; o < d_out; ++o) squares += std::pow(double(widened(before[size_t(row * d_out + o)])), 2);
      return std::vector<double>(size_t(rank), threshold > 0 && squares > 0 ? 0.0 : 1.0);
    });
  }

 private:
  static constexpr double kScale = 0.75;
  int64_t batch, tokens, d_in, d_out, rank;
  Array<Store> base, x, lora_a, lora_b, result;
  Widened<Store> a;
  Turned<Store> b;
  Activations io;
  std::vector<int64_t> indices;
  std::vector<Store> before;

  template <class Weights>
  bool agrees(const Weights& weights_of) const {
    const Store* out = static_cast<const Store*>(io.out);
    for (int64_t row = 0; row < batch * tokens; ++row) {
      const std::vector<double> weights = weights_of(row);
      bool touched = false;
      for (double weight : weights) touched = touched || weight != 0;
      for (int64_t o = 0; o < d_out; ++o) {
        const size_t place = size_t(row * d_out + o);
        if (!touched) {
          if (std::memcmp(&out[place], &before[place], sizeof(Store)) != 0) return false;
          continue;
        }
        double expected = double(widened(before[place])), size = std::fabs(expected);
        for (int64_t j = 0; j < rank; ++j) {
          if (weights[size_t(j)] == 0) continue;
          double u = 0, sizes = 0;
          for (int64_t i = 0; i < d_in; ++i) {
            u += x.at(row * d_in + i) * lora_a.at(j * d_in + i);
            sizes += std::fabs(x.at(row * d_in + i) * lora_a.at(j * d_in + i));
          }
          expected += kScale * weights[size_t(j)] * u * lora_b.at(o * rank + j);
          size += kScale * weights[size_t(j)] * sizes * std::fabs(lora_b.at(o * rank + j));
        }
        if (!(std::fabs(double(widened(out[place])) - expected) <= bound<Store>() * (size + 1))) {
          std::printf("row %lld, column %lld: %g, not %g\n", (long long)row, (long long)o, double(widened(out[place])),
                      expected);
          return false;
        }
      }
    }
    return true;
  }
};

template <class Store>
bool one(unsigned seed) {
  std::mt19937 random(seed);
  for (const bool in_place : {false, true}) {
    if (!Case<Store>(random, in_place).gated(random)) return false;
    if (!Case<Store>(random, in_place).token_gated(0)) return false;
    if (!Case<Store>(random, in_place).token_gated(1e6)) return false;
  }
  return LinearCase<Store>(random).gated(random) && LinearCase<Store>(random).token_gated(0) &&
         LinearCase<Store>(random).token_gated(1e6) && LinearCase<Store>(random).routed(random) &&
         AttentionCase<Store>(random).agrees() && AttentionCase<Store>(random).agrees() &&
         ScoreGateCase<Store>(random).agrees(random);
}

}  // namespace
}  // namespace gatefx

int main(int count, char** words) {
  const unsigned cases = count > 1 ? unsigned(std::atoi(words[1])) : 200, first = count > 2 ? unsigned(std::atoi(words[2])) : 0;
  for (const char* const* isa = gatefx::available_isas(); *isa != nullptr; ++isa) {
    gatefx::use_isa(*isa);
    for (unsigned seed = first; seed < first + cases; ++seed) {
      const bool right = gatefx::one<float>(seed) && gatefx::one<double>(seed) && gatefx::one<gatefx::Bfloat16>(seed) &&
                         gatefx::one<gatefx::Float16>(seed);
      if (right) continue;
      std::printf("wrong: %s, seed %u\n", *isa, seed);
      return 1;
    }
    std::printf("%s: %u seeds\n", *isa, cases);
  }
  return 0;
}
