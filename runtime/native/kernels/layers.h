// A frozen layer and the update of its adapter in one register tile. Included in the namespace of one instruction set.
//
//   out[t] = bias + W x[t] + sum over j of u[t][j] b[j]      kTokens x kVectors sums, written once
//
// The update joins the sums before they are written, so it costs its own products and no pass over the answer.
// Every sum runs in the same order whichever tile it falls in, so a token's result does not depend on its neighbours.

template <class Store>
constexpr int kPanelVectors = int(kPanel) / kLanes<Real<Store>>;
// Tokens whose sums fit in the registers beside what one step reads.
template <class Store>
constexpr int kLayerTokens = GATEFX_LAYER_SUMS / (GATEFX_LAYER_PANELS * kPanelVectors<Store>) < 1
                                 ? 1
                                 : GATEFX_LAYER_SUMS / (GATEFX_LAYER_PANELS * kPanelVectors<Store>);

// Products that one sum takes before it joins the others: rounding errors of long sums stay those of short ones, and
// that part of a panel stays in the nearest cache while tile after tile reads it.
constexpr int64_t kLayerDepth = 384;
// Tokens whose sums wait for the next of these parts.
template <class Store>
constexpr int64_t kWaitingTokens = 8 * kLayerTokens<Store>;
// Panels of a tile of one token, enough that no sum waits for its own last product.
template <class Store>
constexpr int kRowPanels =
    GATEFX_LAYER_PANELS * kPanelVectors<Store> < 8 ? 8 / kPanelVectors<Store> : GATEFX_LAYER_PANELS;

// Where a tile reads several panels, which the nearest cache does not hold: states by which it asks for them ahead.
constexpr int64_t kAhead = 16;

// The states from `first` to before `end` that a tile multiplies. `waiting` holds its sums of the states before.
template <class Store>
struct Depth {
  int64_t first, end;
  Real<Store>* waiting;  // (tokens, panels * kPanel)
};

// States that a tile multiplies between two looks at its counters. Where a core runs another thread too, half of its
// instructions are that one's, and a step's own (20 for 12 products in AVX2) take longer than its products: there every
// further instruction of a step shows.
constexpr int64_t kStride = 16;

// What a tile asks for while it multiplies: `lines` of the next panel in each stride, from `line` on. All tiles
// together ask for these states of the whole panel, which may come from far: a model's weights fit in no cache.
template <class Store>
struct Next {
  const Real<Store>* line;
  int64_t lines;
};

template <int kTokens, int kPanels, class Store>
GATEFX_INLINE void layer_tile(const Layer<Store>& layer, const Real<Store>* const* x, Store* const* out,
                              const Real<Store>* const* u, const Directions<Store>& use, int64_t panel,
                              const Depth<Store>& depth, Next<Store> next) {
  using Value = Real<Store>;
  constexpr int kWidth = kLanes<Value>, kEach = kPanelVectors<Store>, kVectors = kPanels * kEach;
  const int64_t column = panel * kPanel;
  Vector<Value> total[kTokens][kVectors];
  GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) {
    const Vector<Value> start = depth.first == 0 ? load(layer.bias + column + v * kWidth) : Vector<Value>{};
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) total[t][v] = start;
  }
  // Answers go to lines that no cache holds yet: they are on their way while the tile multiplies.
  GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
    GATEFX_UNROLL for (int p = 0; p < kPanels; ++p) __builtin_prefetch(out[t] + column + p * kPanel, 1);
  }
  const int64_t apart = kPanel * layer.d_in;
  const Value* weight = layer.panels + panel * apart + depth.first * kPanel;
  const Value* row[kTokens];
  GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) row[t] = x[t];
  auto advance = [&](int64_t i) GATEFX_INLINE_LAMBDA {
    Vector<Value> step[kVectors];
    GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) {
      step[v] = load(weight + (v / kEach) * apart + (v % kEach) * kWidth);
      GATEFX_IN_REGISTER(step[v]);
    }
    if constexpr (GATEFX_LAYER_PANELS > 1) {
      GATEFX_UNROLL for (int p = 0; p < kPanels; ++p) __builtin_prefetch(weight + p * apart + kAhead * kPanel);
    }
    weight += kPanel;
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
      const Vector<Value> state = splat(row[t][i]);
      GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) add_product(total[t][v], state, step[v]);
    }
  };
  int64_t i = depth.first;
  for (; i + kStride <= depth.end; i += kStride) {
    for (int64_t n = 0; n < next.lines; ++n, next.line += kPanel) __builtin_prefetch(next.line, 0, 2);
    GATEFX_UNROLL for (int64_t s = 0; s < kStride; ++s) advance(i + s);
  }
  for (; i < depth.end; ++i) advance(i);
  if (depth.first > 0) {
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
      GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) total[t][v] += load(depth.waiting + (t * kVectors + v) * kWidth);
    }
  }
  if (depth.end < layer.d_in) {
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
      GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) store(depth.waiting + (t * kVectors + v) * kWidth, total[t][v]);
    }
    return;
  }
  for (int64_t j = 0; j < use.rank; ++j) {
    const Value* direction = use.b[j] + column;
    Vector<Value> step[kVectors];
    GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) {
      step[v] = load(direction + v * kWidth);
      GATEFX_IN_REGISTER(step[v]);
    }
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
      const Vector<Value> share = splat(u[t][j]);
      GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) add_product(total[t][v], share, step[v]);
    }
  }
  const int64_t left = layer.d_out - column;
  GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
    GATEFX_UNROLL for (int v = 0; v < kVectors; ++v) {
      if (left >= (v + 1) * kWidth)
        store(out[t] + column + v * kWidth, total[t][v]);
      else if (left > v * kWidth)
        store_some(out[t] + column + v * kWidth, left - v * kWidth, total[t][v]);
    }
  }
}

// The tokens that are left once the widest tile no longer fits.
template <int kTokens, int kPanels, class Store>
GATEFX_INLINE void last_tokens(const Layer<Store>& layer, const Real<Store>* const* x, Store* const* out,
                               const Real<Store>* const* u, const Directions<Store>& use, int64_t panel,
                               int64_t count, const Depth<Store>& depth, Next<Store> next) {
  if constexpr (kTokens > 0) {
    if (count == kTokens)
      layer_tile<kTokens, kPanels>(layer, x, out, u, use, panel, depth, next);
    else
      last_tokens<kTokens - 1, kPanels>(layer, x, out, u, use, panel, count, depth, next);
  }
}

// Tiles of kTokens tokens over kPanels panels: all tokens that may wait, part by part of the states.
template <int kTokens, int kPanels, class Store>
void layer_columns(const Layer<Store>& layer, const Block<Store>& block, const Directions<Store>& use, int64_t panel) {
  constexpr int64_t kRow = kPanels * kPanel;
  alignas(64) Real<Store> waiting[kWaitingTokens<Store> * kRow];
  for (int64_t begin = 0; begin < block.tokens; begin += kWaitingTokens<Store>) {
    const int64_t left = block.tokens - begin;
    const int64_t end = begin + (left < kWaitingTokens<Store> ? left : kWaitingTokens<Store>);
    const int64_t tiles = (end - begin + kTokens - 1) / kTokens;
    for (int64_t first = 0; first == 0 || first < layer.d_in; first += kLayerDepth) {
      const int64_t after = layer.d_in - first < kLayerDepth ? layer.d_in : first + kLayerDepth;
      const int64_t lines = (kStride + tiles - 1) / tiles, tile_lines = (after - first) / kStride * lines;
      const Real<Store>* part = layer.panels + ((panel + kPanels) * layer.d_in + first) * kPanel;
      auto depth = [&](int64_t t) { return Depth<Store>{first, after, waiting + (t - begin) * kRow}; };
      auto next = [&](int64_t t) { return Next<Store>{part + (t - begin) / kTokens * tile_lines * kPanel, lines}; };
      int64_t t = begin;
      for (; t + kTokens <= end; t += kTokens)
        layer_tile<kTokens, kPanels>(layer, block.x + t, block.out + t, block.u + t, use, panel, depth(t), next(t));
      last_tokens<kTokens - 1, kPanels>(layer, block.x + t, block.out + t, block.u + t, use, panel, end - t, depth(t),
                                        next(t));
    }
  }
}

template <class Store>
void run_layer(const Layer<Store>& layer, const Block<Store>& block, const Directions<Store>& use, int64_t first,
               int64_t end) {
  constexpr int kTokens = kLayerTokens<Store>;
  int64_t panel = first;
  if (block.tokens == 1)
    for (; panel + kRowPanels<Store> <= end; panel += kRowPanels<Store>)
      layer_columns<1, kRowPanels<Store>>(layer, block, use, panel);
  for (; panel + GATEFX_LAYER_PANELS <= end; panel += GATEFX_LAYER_PANELS)
    layer_columns<kTokens, GATEFX_LAYER_PANELS>(layer, block, use, panel);
  for (; panel < end; ++panel) layer_columns<kTokens, 1>(layer, block, use, panel);
}

template <class Store>
void project(const Rows<Store>& rows, const Directions<Store>& use, Real<Store>* u) {
  down(rows, use, 0, rows.tokens, u);
}

template <class Store>
void widen(const Store* from, Real<Store>* to, int64_t count) {
  constexpr int kWidth = kLanes<Real<Store>>;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  if (i < count) store_some(to + i, count - i, load_some(from + i, count - i));
}

template <class Store>
void narrow(const Real<Store>* from, Store* to, int64_t count) {
  constexpr int kWidth = kLanes<Real<Store>>;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  if (i < count) store_some(to + i, count - i, load_some(from + i, count - i));
}
