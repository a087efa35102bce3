// A frozen layer and its adapter as one operator, for any runtime: token_gated_linear and routed_linear. See gated_linear.h.
//
// Axes and `Parallel` as in lora.h. Work is split over blocks of tokens and, where those are few, over columns too.
#pragma once
#include "layer.h"
#include "lora.h"

namespace gatefx {

// What a call works on. `states` is x in the arithmetic's type.
template <class Store>
struct Linear {
  Tensor x;
  Store* out;
  Layer<Store> layer;
  const Real<Store>* states;
  bool gelu;  // of the answers, which are then W x + bias and the update no more

  int64_t tokens() const { return x.count(0, x.axes - 1); }
};

// Memory of one call: x in the arithmetic's type where it has another one, and u = scale * A x.
template <class Store>
class Scratch {
 public:
  Problem reserve(const Tensor& x, int64_t rank) {
    const int64_t tokens = x.count(0, x.axes - 1);
    const bool wide = sizeof(Store) == sizeof(Real<Store>);
    if ((!wide && !states_.resize(x.count())) || !u_.resize(tokens * rank))
      return out_of_memory("no memory for what a layer's tokens need");
    return {};
  }
  template <class Parallel>
  auto widened_states(const Tensor& x, Parallel&& parallel, const Real<Store>*& states) {
    const int64_t d_in = x.last(), tokens = x.count(0, x.axes - 1);
    const auto run = kernels().template of<Store>().widen;
    if constexpr (sizeof(Store) == sizeof(Real<Store>)) {
      states = x.as<Real<Store>>();
      return parallel(0, [](int64_t) {});
    } else {
      states = states_.data();
      return parallel((tokens + kTaskTokens - 1) / kTaskTokens, [&, run](int64_t task) {
        const int64_t first = task * kTaskTokens, left = tokens - first;
        run(x.as<Store>() + first * d_in, states_.data() + first * d_in, (left < kTaskTokens ? left : kTaskTokens) * d_in);
      });
    }
  }
  Real<Store>* u() { return u_.data(); }

 private:
  Buffer<Real<Store>> states_, u_;
};

inline Problem check_layer(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.axes < 2) return misfit("x is not (B, *, d_in)");
  if (weight.axes != 2 || weight.sizes[1] != x.last()) return misfit("W is not (d_out, d_in)");
  if (bias.axes != 1 || bias.sizes[0] != weight.sizes[0]) return misfit("the bias is not (d_out,)");
  return {};
}

// Whether `choice` says one thing of each token of x.
inline bool chooses_for(const Tensor& x, const Tensor& choice) {
  if (choice.axes + 1 != x.axes) return false;
  for (size_t i = 0; i < choice.axes; ++i)
    if (choice.sizes[i] != x.sizes[i]) return false;
  return true;
}

// Sizes of the answer.
inline Tensor answer_of(const Tensor& x, const Tensor& weight) {
  Tensor answer = x;
  answer.sizes[answer.axes - 1] = weight.sizes[0];
  return answer;
}

// How a layer's work is cut: `blocks` of tokens in each group, and `parts` of its panels where there are few blocks.
// All blocks of a part come before the next part: its weights, fetched for the first of them, are near for the others.
struct Cut {
  static constexpr int64_t kEnoughTasks = 8, kPartPanels = 4;
  int64_t tokens, blocks, parts, panels;

  Cut(int64_t groups, int64_t tokens_, int64_t d_out)
      : tokens(tokens_), blocks((tokens_ + kTaskTokens - 1) / kTaskTokens), panels(panels_of(d_out)) {
    const int64_t most = (panels + kPartPanels - 1) / kPartPanels, tasks = groups * blocks;
    parts = tasks >= kEnoughTasks || tasks == 0 ? 1 : kEnoughTasks;
    if (parts > most) parts = most;
    if (parts < 1) parts = 1;
  }
  int64_t first_token(int64_t block) const { return block * kTaskTokens; }
  int64_t count(int64_t block) const {
    const int64_t left = tokens - first_token(block);
    return left < kTaskTokens ? left : kTaskTokens;
  }
  int64_t first_panel(int64_t part) const {
    const int64_t chunks = (panels + kPartPanels - 1) / kPartPanels;
    const int64_t first = chunks * part / parts * kPartPanels;
    return first < panels ? first : panels;
  }
};

// The layer for `count` tokens in the panels of one part. Token i is row `row(i)` of x, and its coefficients follow
// those of token i-1 in `u`.
template <class Store, class Row>
void multiply(const Linear<Store>& call, int64_t count, const Row& row, const Real<Store>* u,
              const Directions<Store>& use, const Cut& cut, int64_t part) {
  const Real<Store>*x[kTaskTokens], *coefficients[kTaskTokens];
  Store* out[kTaskTokens];
  for (int64_t i = 0; i < count; ++i) {
    x[i] = call.states + row(i) * call.layer.d_in;
    out[i] = call.out + row(i) * call.layer.d_out;
    coefficients[i] = use.rank > 0 ? u + i * use.rank : nullptr;
  }
  kernels().template of<Store>().run_layer(call.layer, {x, out, coefficients, count}, use, cut.first_panel(part),
                                           cut.first_panel(part + 1));
}

// What the model applies to the answers of `count` tokens in the columns from `first` to before `end`. A task does it
// once it has them all: they are still near.
template <class Store, class Row>
void activate(const Linear<Store>& call, int64_t count, const Row& row, int64_t first, int64_t end) {
  if (!call.gelu) return;
  const int64_t d_out = call.layer.d_out, last = end < d_out ? end : d_out;
  for (int64_t i = 0; i < count && first < last; ++i)
    kernels().template of<Store>().gelu(call.out + row(i) * d_out + first, last - first);
}

// The same of all columns of consecutive tokens.
template <class Store>
void activate_rows(const Linear<Store>& call, int64_t first, int64_t count) {
  activate(call, count, [first](int64_t i) { return first + i; }, 0, call.layer.d_out);
}

// The layer and what follows it, in the panels of one part.
template <class Store, class Row>
void answer(const Linear<Store>& call, int64_t count, const Row& row, const Real<Store>* u,
            const Directions<Store>& use, const Cut& cut, int64_t part) {
  multiply(call, count, row, u, use, cut, part);
  activate(call, count, row, cut.first_panel(part) * kPanel, cut.first_panel(part + 1) * kPanel);
}

// Rows of a call's tokens, to update what the layer has answered.
template <class Store>
Rows<Store> answered(const Linear<Store>& call, int64_t first, int64_t count) {
  Store* out = call.out + first * call.layer.d_out;
  return {call.x.template as<Store>() + first * call.layer.d_in, out, out, count, call.layer.d_in, call.layer.d_out};
}

// The layer for all tokens, and `update(first, count)` for each block of them that is answered.
template <class Store, class Update, class Parallel>
auto run_layer_then(const Linear<Store>& call, const Update& update, Parallel&& parallel) {
  const Cut cut(1, call.tokens(), call.layer.d_out);
  auto update_block = [&](int64_t block) { update(cut.first_token(block), cut.count(block)); };
  if (auto error = parallel(cut.blocks * cut.parts, [&](int64_t task) {
        const int64_t block = task % cut.blocks, first = cut.first_token(block);
        multiply(call, cut.count(block), [first](int64_t i) { return first + i; }, nullptr, Directions<Store>{},
                 cut, task / cut.blocks);
        if (cut.parts == 1) update_block(block);
      }))
    return error;
  return parallel(cut.parts == 1 ? 0 : cut.blocks, update_block);
}

// Examples of so few tokens, the steps of generation among them, share one reading of the layer's weights and take
// their updates afterwards: reading the weights for each would cost more than the pass over the answers. Not where an
// answer is stored in fewer bits than it is summed in: it would be rounded twice.
constexpr int64_t kFewTokens = 8;
template <class Store>
constexpr bool kReadTogether = sizeof(Store) == sizeof(Real<Store>);

// token_gated_linear: the layer, then the update of the tokens whose update is large enough beside what it answers.
template <class Store, class Parallel>
auto run_token_gated_linear(const Linear<Store>& call, const Real<Store>* a, const Real<Store>* b,
                            int64_t rank, const Gate<Store>& gate, Real<Store> scale, Parallel&& parallel) {
  auto update = [&](int64_t first, int64_t count) {
    Selection<Store> selection(a, b, call.layer.d_in, call.layer.d_out, scale);
    kernels().template of<Store>().add_large_updates(answered(call, first, count), selection.all(rank), gate);
    activate_rows(call, first, count);
  };
  return run_layer_then(call, update, parallel);
}

// routed_linear: `choice` (tokens) picks the second layer. `order` (tokens) is scratch.
template <class Store, class Parallel>
auto run_routed_linear(const Linear<Store>& call, const Real<Store>* panels1, const bool* choice, int64_t* order,
                       Parallel&& parallel) {
  const int64_t tokens = call.tokens();
  int64_t counts[2] = {0, 0};
  for (int64_t t = 0; t < tokens; ++t)
    if (!choice[t]) order[counts[0]++] = t;
  for (int64_t t = 0; t < tokens; ++t)
    if (choice[t]) order[counts[0] + counts[1]++] = t;
  const Cut whole(1, tokens, call.layer.d_out), cuts[2] = {Cut(1, counts[0], call.layer.d_out), Cut(1, counts[1], call.layer.d_out)};
  const int64_t blocks = cuts[0].blocks + cuts[1].blocks;
  return parallel(blocks * whole.parts, [&](int64_t task) {
    const int64_t numbered = task % blocks, which = numbered >= cuts[0].blocks;
    const int64_t block = which ? numbered - cuts[0].blocks : numbered;
    const int64_t* rows = order + which * counts[0] + cuts[which].first_token(block);
    Linear<Store> own = call;
    if (which) own.layer.panels = panels1;
    answer(own, cuts[which].count(block), [rows](int64_t i) { return rows[i]; }, nullptr, Directions<Store>{}, whole,
             task / blocks);
  });
}

}  // namespace gatefx
