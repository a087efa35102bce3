// masked_attention for any runtime: softmax attention over the keys that a mask of flags shows to each query.
//
// Axes: B examples, T queries, S keys, H heads that share G ≤ H heads of keys and values, D and V features of a head.
// `Parallel` as in lora.h.
#pragma once
#include <atomic>

#include "../kernels/dispatch.h"
#include "buffer.h"
#include "problem.h"
#include "tensor.h"

namespace gatefx {

struct AttentionCall {
  Tensor q, k, v;  // (B, T, H·D), (B, S, G·D), (B, S, G·V)
  Tensor visible;  // flags, broadcast to (B, H, T, S); S is never broadcast
  int64_t heads, key_heads;
  double scale;
  void* out;  // (B, T, H·V)

  int64_t batch() const { return q.sizes[0]; }
  int64_t queries() const { return q.sizes[1]; }
  int64_t keys() const { return k.sizes[1]; }
  int64_t head() const { return q.last() / heads; }
  int64_t value_head() const { return v.last() / key_heads; }
  // Flags from one row to the next along an axis of (B, H, T, S), 0 where it is broadcast.
  int64_t visible_stride(size_t axis) const {
    const size_t missing = 4 - visible.axes;
    if (axis < missing || visible.sizes[axis - missing] == 1) return 0;
    return visible.count(axis - missing + 1, visible.axes);
  }
};

inline Problem check_attention(const AttentionCall& call) {
  const Tensor &q = call.q, &k = call.k, &v = call.v, &seen = call.visible;
  if (q.axes != 3 || k.axes != 3 || v.axes != 3) return misfit("q, k and v are not (B, T, H·D)");
  if (k.sizes[0] != q.sizes[0] || v.sizes[0] != q.sizes[0] || v.sizes[1] != k.sizes[1])
    return misfit("q (B, T, ·), k (B, S, ·) and v (B, S, ·) do not agree");
  if (call.heads < 1 || call.key_heads < 1 || call.heads % call.key_heads != 0 || q.last() % call.heads != 0 ||
      v.last() % call.key_heads != 0 || k.last() != call.head() * call.key_heads)
    return misfit("heads do not divide the features of q, k and v");
  if (call.head() > kMostHead || call.value_head() > kMostHead)
    return misfit("the native kernels take heads of up to 256 features");
  if (seen.axes < 2 || seen.axes > 4 || seen.last() != k.sizes[1]) return misfit("the mask is not (B, H, T, S)");
  const int64_t whole[3] = {q.sizes[0], call.heads, q.sizes[1]};
  for (size_t i = 0; i + 1 < seen.axes; ++i) {
    const int64_t size = seen.sizes[i];
    if (size != 1 && size != whole[i + 4 - seen.axes]) return misfit("the mask does not fit (B, H, T, S)");
  }
  return {};
}

// Keys and values of one head as the kernels read them. One task packs them and uses them while they are near.
template <class Store>
class PackedHead {
 public:
  bool pack(const AttentionCall& call, int64_t example, int64_t group) {
    const int64_t count = call.keys(), k_row = call.k.last(), v_row = call.v.last();
    if (!keys_.resize(whole_panels(count) * call.head()) || !values_.resize(count * whole_panels(call.value_head())))
      return false;
    const auto& run = kernels().template of<Store>();
    run.pack_keys(call.k.as<Store>() + example * count * k_row + group * call.head(), k_row, count, call.head(),
                  keys_.data());
    run.pack_values(call.v.as<Store>() + example * count * v_row + group * call.value_head(), v_row, count,
                    call.value_head(), values_.data());
    return true;
  }
  const Real<Store>* keys() const { return keys_.data(); }
  const Real<Store>* values() const { return values_.data(); }

 private:
  Buffer<Real<Store>> keys_, values_;
};

template <class Store>
Attention<Store> block_of_queries(const AttentionCall& call, const PackedHead<Store>& packed, int64_t example,
                                  int64_t head, int64_t first) {
  const int64_t left = call.queries() - first, row = example * call.queries() + first;
  const int64_t out_row = call.heads * call.value_head();
  Attention<Store> block;
  block.q = call.q.as<Store>() + row * call.q.last() + head * call.head(), block.q_stride = call.q.last();
  block.keys = packed.keys(), block.values = packed.values();
  block.visible = call.visible.as<bool>() + example * call.visible_stride(0) + head * call.visible_stride(1) +
                  first * call.visible_stride(2);
  block.visible_stride = call.visible_stride(2);
  block.out = static_cast<Store*>(call.out) + row * out_row + head * call.value_head(), block.out_stride = out_row;
  block.queries = left < kSeekers ? left : kSeekers, block.count = call.keys();
  block.head = call.head(), block.value_head = call.value_head();
  block.scale = Real<Store>(call.scale);
  return block;
}

// A task has one head of keys and all queries that read it or, where heads are few, a part of the queries' blocks.
// `failed` is set where a task finds no memory.
template <class Store, class Parallel>
auto run_attention(const AttentionCall& call, std::atomic<bool>& failed, Parallel&& parallel) {
  constexpr int64_t kEnoughTasks = 8;
  const auto run = kernels().template of<Store>().attend;
  const int64_t groups = call.batch() * call.key_heads, blocks = (call.queries() + kSeekers - 1) / kSeekers;
  const int64_t wanted = groups > 0 ? (kEnoughTasks + groups - 1) / groups : 0, parts = wanted < blocks ? wanted : blocks;
  const int64_t sharing = call.heads / call.key_heads;
  return parallel(groups * parts, [&, run](int64_t task) {
    const int64_t example = task / parts / call.key_heads, group = task / parts % call.key_heads, part = task % parts;
    PackedHead<Store> packed;
    if (!packed.pack(call, example, group)) {
      failed = true;
      return;
    }
    for (int64_t head = group * sharing; head < (group + 1) * sharing; ++head)
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
        run(block_of_queries<Store>(call, packed, example, head, block * kSeekers));
  });
}

}  // namespace gatefx
