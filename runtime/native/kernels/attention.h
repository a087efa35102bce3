// Attention over the keys that each query sees, in blocks of keys. Included in the namespace of one instruction set.
//
//   out[t] = sum over s of p[t][s] v[s],   p[t] = softmax over the visible s of scale * <q[t], k[s]>
//
// Scores stay in the nearest cache, kSeekers x kSought of them at a time, and never reach memory. Both products are
// those of a layer: keys are its weights for the scores, values for the answer. The softmax over several blocks is the
// online one (Milakov and Gimelshein, 2018): what earlier blocks brought shrinks when a later one holds a larger score.
// A query that sees nothing answers zeros, and its answer does not depend on the other queries of its block.

// e^x for x <= 0, minus infinity included; what is no number stays none.
GATEFX_INLINE Floats exponential(Floats x) {
  // x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts whose first has few bits, so that n times it is exact. The
  // polynomial is the one of degree 6 with the least relative error there, 4e-9.
  constexpr float kWhole = 0x1.8p23f, kLeast = -87.33f;
  const Floats bounded = x < kLeast ? splat(kLeast) : x;
  const Floats shifted = bounded * 0x1.715476p0f + kWhole, n = shifted - kWhole;
  const Floats r = bounded - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
  Floats sum = r * 0x1.6a107cp-10f + 0x1.1245c8p-7f;
  sum = sum * r + 0x1.55593cp-5f;
  sum = sum * r + 0x1.555482p-3f;
  sum = sum * r + 0x1.fffffcp-2f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const Floats power = bits_as<Floats>((bits_as<Words>(shifted) << 23) + bits_as<Words>(splat(1.0f)));
  return x < kLeast ? Floats{} : sum * power;
}
GATEFX_INLINE Vector<double> exponential(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = __builtin_exp(x[lane]);
  return x;
}

template <class Value>
GATEFX_INLINE Value largest(Vector<Value> values) {
  Value most = values[0];
  for (int lane = 1; lane < kLanes<Value>; ++lane) most = values[lane] > most ? values[lane] : most;
  return most;
}

// Which of the next lanes are seen, all ones or zero; beyond `count` there is none.
template <class Value>
GATEFX_INLINE auto seen(const bool* at, int64_t count) {
  constexpr int kWidth = kLanes<Value>;
  using Lane = typename std::conditional<sizeof(Value) == 8, uint64_t, uint32_t>::type;
  typename VectorOf<uint8_t, kWidth>::type bytes = {};
  __builtin_memcpy(&bytes, at, size_t(count < kWidth ? count : kWidth));
  return __builtin_convertvector(bytes, Vector<Lane>) != 0;
}

// Minus infinity where a key is not seen, up to whole panels; the largest of what is left.
template <class Value>
GATEFX_INLINE Value hide(Value* scores, const bool* visible, int64_t count) {
  constexpr int kWidth = kLanes<Value>;
  const Vector<Value> none = splat(Value(-__builtin_inf()));
  Vector<Value> most = none;
  const bool all = count % kPanel == 0 && __builtin_memchr(visible, 0, size_t(count)) == nullptr;
  for (int64_t i = 0; all && i < count; i += kWidth) {
    const Vector<Value> score = load(scores + i);
    most = score > most ? score : most;
  }
  for (int64_t i = 0; !all && i < whole_panels(count); i += kWidth) {
    const Vector<Value> score = load(scores + i);
    const Vector<Value> left = i < count ? (seen<Value>(visible + i, count - i) ? score : none) : none;
    store(scores + i, left);
    most = left > most ? left : most;
  }
  return largest<Value>(most);
}

// Scores become e^(score - most); their sum.
template <class Value>
GATEFX_INLINE Value weigh(Value* scores, int64_t count, Value most) {
  constexpr int kWidth = kLanes<Value>;
  Vector<Value> total = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vector<Value> weight = exponential(load(scores + i) - splat(most));
    store(scores + i, weight);
    total += weight;
  }
  return sum<Value>(total);
}

// row = row * factor, and row = row * factor + more, over whole panels.
template <class Value>
GATEFX_INLINE void scale_row(Value* row, Value factor, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<Value>) store(row + i, load(row + i) * splat(factor));
}
template <class Value>
GATEFX_INLINE void fade_row(Value* row, Value factor, const Value* more, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<Value>) store(row + i, load(row + i) * splat(factor) + load(more + i));
}

// Asks for all lines of a row that will be read, or written. Rows of one head lie far apart: hardware foresees none.
template <int kWrite, class Store>
GATEFX_INLINE void ask_for(const Store* row, int64_t size) {
  for (int64_t i = 0; i < size; i += 64 / int64_t(sizeof(Store))) __builtin_prefetch(row + i, kWrite);
}

// Queries of one block with their scores and what they have gathered so far. Rows are filled up to whole panels.
template <class Store>
struct Seekers {
  using Value = Real<Store>;
  alignas(64) Value queries[kSeekers * kMostHead], scores[kSeekers * kSought];
  alignas(64) Value gathered[kSeekers * kMostHead], brought[kSeekers * kMostHead];
  Value most[kSeekers], total[kSeekers];
  const Value* query[kSeekers];
  Value *score[kSeekers], *sum[kSeekers], *more[kSeekers];

  explicit Seekers(const Attention<Store>& call) {
    const int64_t width = whole_panels(call.head), value_width = whole_panels(call.value_head);
    for (int64_t t = 0; t < call.queries; ++t) {
      ask_for<0>(call.q + t * call.q_stride, call.head);
      ask_for<1>(call.out + t * call.out_stride, call.value_head);
    }
    for (int64_t t = 0; t < call.queries; ++t) {
      Value* row = queries + t * width;
      widen(call.q + t * call.q_stride, row, call.head);
      for (int64_t i = call.head; i < width; ++i) row[i] = 0;
      scale_row(row, call.scale, width);
      query[t] = row, score[t] = scores + t * kSought;
      sum[t] = gathered + t * value_width, more[t] = brought + t * value_width;
      most[t] = Value(-__builtin_inf()), total[t] = 0;
    }
    __builtin_memset(gathered, 0, size_t(call.queries * value_width) * sizeof(Value));
  }
};

// Whether any of the queries sees one of `count` keys from `first` on.
template <class Store>
GATEFX_INLINE bool any_seen(const Attention<Store>& call, int64_t first, int64_t count) {
  const auto* flags = reinterpret_cast<const unsigned char*>(call.visible + first);  // any number but 0 is true
  for (int64_t t = 0; t < call.queries; ++t) {
    unsigned char any = 0;
    for (int64_t i = 0; i < count; ++i) any |= flags[t * call.visible_stride + i];
    if (any != 0) return true;
  }
  return false;
}

// A layer of few products a sum, all of whose weights are near: the tiles alone.
template <int kPanels, class Value>
GATEFX_INLINE void near_columns(Layer<Value> layer, const Value* const* x, Value* const* out, int64_t rows,
                                int64_t panel) {
  constexpr int kTokens = kLayerTokens<Value>;
  const Depth<Value> whole = {0, layer.d_in, nullptr};
  const Next<Value> next = {layer.panels, 0};
  int64_t t = 0;
  for (; t + kTokens <= rows; t += kTokens)
    layer_tile<kTokens, kPanels>(layer, x + t, out + t, x + t, Directions<Value>{}, panel, whole, next);
  last_tokens<kTokens - 1, kPanels>(layer, x + t, out + t, x + t, Directions<Value>{}, panel, rows - t, whole, next);
}
template <class Value>
void run_near(const Layer<Value>& layer, const Value* const* x, Value* const* out, int64_t rows) {
  int64_t panel = 0;
  for (; panel + GATEFX_LAYER_PANELS <= panels_of(layer.d_out); panel += GATEFX_LAYER_PANELS)
    near_columns<GATEFX_LAYER_PANELS>(layer, x, out, rows, panel);
  if constexpr (GATEFX_LAYER_PANELS > 1)
    for (; panel < panels_of(layer.d_out); ++panel) near_columns<1>(layer, x, out, rows, panel);
}

template <class Store>
GATEFX_INLINE void attend_to(const Attention<Store>& call, int64_t first, int64_t count, Seekers<Store>& state) {
  using Value = Real<Store>;
  static const Value none[kSought > kMostHead ? kSought : kMostHead] = {};
  const Layer<Value> keys = {call.keys + first * call.head, none, call.head, whole_panels(count)};
  const int64_t width = whole_panels(call.value_head);
  const Layer<Value> values = {call.values + first * width, none, count, width};
  run_near<Value>(keys, state.query, state.score, call.queries);
  Value fading[kSeekers];
  for (int64_t t = 0; t < call.queries; ++t) {
    const Value block = hide(state.score[t], call.visible + t * call.visible_stride + first, count);
    const Value most = block > state.most[t] ? block : state.most[t];
    const Value from = most == Value(-__builtin_inf()) ? 0 : most;
    fading[t] = exponential(splat(state.most[t] - from))[0];
    state.total[t] = state.total[t] * fading[t] + weigh(state.score[t], count, from);
    state.most[t] = most;
  }
  run_near<Value>(values, state.score, state.more, call.queries);  // the scores are weights by now
  for (int64_t t = 0; t < call.queries; ++t) fade_row(state.sum[t], fading[t], state.more[t], width);
}

template <class Store>
void attend(const Attention<Store>& call) {
  using Value = Real<Store>;
  Seekers<Store> state(call);
  for (int64_t first = 0; first < call.count; first += kSought) {
    const int64_t count = call.count - first < kSought ? call.count - first : kSought;
    if (any_seen(call, first, count)) attend_to(call, first, count, state);
  }
  for (int64_t t = 0; t < call.queries; ++t) {
    const Value share = state.total[t] == 0 ? 0 : 1 / state.total[t];
    scale_row(state.sum[t], share, whole_panels(call.value_head));
    narrow(state.sum[t], call.out + t * call.out_stride, call.value_head);
  }
}

// Rows of keys, `stride` apart, as panels (panel, head, kPanel); the last one is filled up with zeros.
template <class Store>
void pack_keys(const Store* from, int64_t stride, int64_t count, int64_t head, Real<Store>* to) {
  alignas(64) Real<Store> row[kMostHead];
  for (int64_t first = 0; first < count; first += kPanel, to += head * kPanel) {
    for (int64_t s = 0; s < kPanel; ++s) {
      ask_for<0>(from + (first + s + kPanel) * stride, head);
      if (first + s < count)
        widen(from + (first + s) * stride, row, head);
      else
        __builtin_memset(row, 0, sizeof row);
      for (int64_t i = 0; i < head; ++i) to[i * kPanel + s] = row[i];
    }
  }
}

// Rows of values as panels of their columns in blocks of kSought rows, (block, panel, rows of the block, kPanel).
template <class Store>
void pack_values(const Store* from, int64_t stride, int64_t count, int64_t head, Real<Store>* to) {
  alignas(64) Real<Store> row[kMostHead] = {};
  for (int64_t first = 0; first < count; first += kSought) {
    const int64_t rows = count - first < kSought ? count - first : kSought;
    for (int64_t s = 0; s < rows; ++s) {
      ask_for<0>(from + (first + s + kPanel) * stride, head);
      widen(from + (first + s) * stride, row, head);
      for (int64_t panel = 0; panel < panels_of(head); ++panel)
        __builtin_memcpy(to + (panel * rows + s) * kPanel, row + panel * kPanel, kPanel * sizeof(Real<Store>));
    }
    to += rows * whole_panels(head);
  }
}
