// Attention under a mask on random shapes, held against a plain loop in double precision.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "../operators/attention.h"
#include "arrays.h"

namespace gatefx {

template <class Store>
class AttentionCase {
 public:
  explicit AttentionCase(std::mt19937& random)
      : batch(1 + random() % 2), queries(random() % (random() % 4 == 0 ? 110 : 9)),
        keys(1 + random() % (random() % 4 == 0 ? 290 : 20)), groups(1 + random() % 2), sharing(1 + random() % 2),
        head(1 + random() % 40), value_head(1 + random() % 40), q({batch, queries, groups * sharing * head}, random),
        k({batch, keys, groups * head}, random), v({batch, keys, groups * value_head}, random),
        result({batch, queries, groups * sharing * value_head}, random) {
    mask_axes[0] = random() % 2 == 0 ? 1 : batch, mask_axes[1] = random() % 2 == 0 ? 1 : groups * sharing;
    mask_axes[2] = random() % 3 == 0 ? 1 : queries, mask_axes[3] = keys;
    const size_t count = size_t(mask_axes[0] * mask_axes[1] * mask_axes[2] * mask_axes[3]);
    visible.reset(new bool[count]);
    // Whole blocks of keys that nobody sees, and queries that see nothing.
    const int64_t from = int64_t(random() % size_t(keys)), dense = 1 + random() % 3;
    for (size_t i = 0; i < count; ++i) visible[i] = int64_t(i) % keys >= from && int64_t(random() % 3) < dense;
  }

  bool agrees() {
    AttentionCall call = {};
    call.q = q.view(), call.k = k.view(), call.v = v.view(), call.out = result.data();
    call.visible.data = visible.get(), call.visible.axes = 4;
    std::copy(mask_axes, mask_axes + 4, call.visible.sizes);
    call.heads = groups * sharing, call.key_heads = groups, call.scale = kScale;
    if (check_attention(call)) std::abort();
    std::atomic<bool> failed{false};
    run_attention<Store>(call, failed, Serial{});
    if (failed) std::abort();
    for (int64_t row = 0; row < batch * groups * sharing * queries; ++row)
      if (!row_agrees(call, row)) return false;
    return true;
  }

 private:
  static constexpr double kScale = 0.125;
  int64_t batch, queries, keys, groups, sharing, head, value_head;
  Array<Store> q, k, v, result;
  int64_t mask_axes[4];
  std::unique_ptr<bool[]> visible;

  bool row_agrees(const AttentionCall& call, int64_t row) const {
    const int64_t t = row % queries, h = row / queries % call.heads, b = row / queries / call.heads, g = h / sharing;
    const bool* sees = visible.get() + b * call.visible_stride(0) + h * call.visible_stride(1) + t * call.visible_stride(2);
    std::vector<double> weights(size_t(keys), 0.0);
    double most = -INFINITY, total = 0;
    for (int64_t s = 0; s < keys; ++s) {
      for (int64_t i = 0; i < head; ++i)
        weights[size_t(s)] += kScale * q.at(((b * queries + t) * call.heads + h) * head + i) *
                              k.at(((b * keys + s) * groups + g) * head + i);
      if (sees[s]) most = std::max(most, weights[size_t(s)]);
    }
    for (int64_t s = 0; s < keys; ++s) total += weights[size_t(s)] = sees[s] ? std::exp(weights[size_t(s)] - most) : 0;
    for (int64_t i = 0; i < value_head; ++i) {
      double expected = 0, size = 0;
      for (int64_t s = 0; total > 0 && s < keys; ++s) {
        const double term = weights[size_t(s)] / total * v.at(((b * keys + s) * groups + g) * value_head + i);
        expected += term, size += std::fabs(term);
      }
      const int64_t place = ((b * queries + t) * call.heads + h) * value_head + i;
      const double found = double(widened(static_cast<const Store*>(call.out)[place]));
      if (!(std::fabs(found - expected) <= bound<Store>() * (size + 1))) {
        std::printf("attention: row %lld, feature %lld: %g, not %g\n", (long long)row, (long long)i, found, expected);
        return false;
      }
    }
    return true;
  }
};

}  // namespace gatefx
