// gated_linear for any runtime, at one site or at several that read the same x (queries, keys and values, for instance).
#pragma once
#include "linear.h"

namespace gatefx {

// A layer, its adapter, and for each example the directions that its row of `indices` (B, r) lists.
template <class Store>
struct GatedSite {
  Linear<Store> call;
  const Real<Store>*a, *b;
  Tensor indices;
  Real<Store> scale;
  Real<Store>* u;  // (tokens, r), scratch

  int64_t slots() const { return indices.sizes[1]; }
  template <class Task>
  void with_directions(int64_t example, const Task& task) const {
    Selection<Store> selection(a, b, call.layer.d_in, call.layer.d_out, scale);
    task(selection.listed(indices.as<int64_t>() + example * slots(), slots()));
  }
  void project(int64_t first, int64_t count, const Directions<Store>& use) const {
    if (use.rank > 0) kernels().template of<Store>().project(answered(call, first, count), use, u + first * slots());
  }
};

// Sites that read one x, of which each task has its tokens near once.
template <class Store>
struct GatedSites {
  const GatedSite<Store>* sites;
  int64_t count, examples, tokens;
  Cut cut;

  GatedSites(const GatedSite<Store>* sites_, int64_t count_)
      : sites(sites_), count(count_), examples(sites_->call.x.sizes[0]),
        tokens(sites_->call.x.count(1, sites_->call.x.axes - 1)), cut(examples, tokens, sites_->call.layer.d_out) {
    for (int64_t i = 1; i < count; ++i) {
      const Cut other(examples, tokens, sites[i].call.layer.d_out);
      if (other.parts < cut.parts) cut.parts = other.parts;
    }
  }
  void project(int64_t example, int64_t block) const {
    for (int64_t i = 0; i < count; ++i)
      sites[i].with_directions(example, [&](const auto& use) {
        sites[i].project(example * tokens + cut.first_token(block), cut.count(block), use);
      });
  }
  void answer(int64_t example, int64_t block, int64_t part) const {
    const int64_t first = example * tokens + cut.first_token(block);
    for (int64_t i = 0; i < count; ++i) {
      const GatedSite<Store>& site = sites[i];
      Cut own = cut;
      own.panels = panels_of(site.call.layer.d_out);
      site.with_directions(example, [&](const auto& use) {
        if (cut.parts == 1) site.project(first, cut.count(block), use);
        gatefx::answer(site.call, cut.count(block), [first](int64_t t) { return first + t; },
                       site.u + first * site.slots(), use, own, part);
      });
    }
  }
};

// Examples of few tokens: the layer for all of them, then each one's update.
template <class Store, class Parallel>
auto run_few_tokens(const GatedSite<Store>& site, int64_t tokens, Parallel&& parallel) {
  auto update = [&](int64_t first, int64_t count) {
    for (int64_t row = first, after; row < first + count; row = after) {
      after = (row / tokens + 1) * tokens < first + count ? (row / tokens + 1) * tokens : first + count;
      site.with_directions(row / tokens, [&](const auto& use) {
        kernels().template of<Store>().add_update(answered(site.call, row, after - row), use);
      });
    }
    activate_rows(site.call, first, count);
  };
  return run_layer_then(site.call, update, parallel);
}

// gated_linear at `count` sites of one x: W x + bias, plus the update in the directions that are listed.
template <class Store, class Parallel>
auto run_gated_linears(const GatedSite<Store>* sites, int64_t count, Parallel&& parallel) {
  const GatedSites<Store> all(sites, count);
  if (kReadTogether<Store> && all.tokens <= kFewTokens) {
    for (int64_t i = 1; i < count; ++i)
      if (auto error = run_few_tokens(sites[i], all.tokens, parallel)) return error;
    return run_few_tokens(sites[0], all.tokens, parallel);
  }
  const int64_t blocks = all.cut.blocks, parts = all.cut.parts;
  if (parts > 1) {
    if (auto error = parallel(all.examples * blocks, [&](int64_t task) { all.project(task / blocks, task % blocks); }))
      return error;
  }
  return parallel(all.examples * blocks * parts, [&](int64_t task) {
    all.answer(task / blocks / parts, task % blocks, task / blocks % parts);
  });
}

}  // namespace gatefx
