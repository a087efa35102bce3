// The two thin products of an adapter, in register tiles. Included inside the namespace of one instruction set.
//
//   down   u[t][j] = scale * <x[t], a[j]>             kTokens x kRanks sums, one pass over d_in
//   up     out[t] = base[t] + sum over j of u[t][j] b[j]   kTokens x kColumns vectors, one pass over base whatever k is
//
// Every sum runs in the same order whichever tile it falls in, so a token's result does not depend on its neighbours. Sums
// of many products are made of parts, whose rounding errors do not add up as those of one running sum would.
constexpr int64_t kDownDepth = 2048;

template <int kTokens, int kRanks, class Store>
GATEFX_INLINE void down_tile(const Store* x, int64_t d_in, const Real<Store>* const* a, Real<Store> scale,
                             Real<Store>* u, int64_t stride) {
  constexpr int kWidth = kLanes<Real<Store>>;
  Real<Store> whole[kTokens][kRanks] = {};
  Vector<Real<Store>> total[kTokens][kRanks] = {};
  auto accumulate = [&](auto read_x, auto read_a) GATEFX_INLINE_LAMBDA {
    Vector<Real<Store>> row[kTokens];
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) row[t] = read_x(x + t * d_in);
    GATEFX_UNROLL for (int j = 0; j < kRanks; ++j) {
      Vector<Real<Store>> direction = read_a(a[j]);
      GATEFX_IN_REGISTER(direction);
      GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) total[t][j] += row[t] * direction;
    }
  };
  int64_t i = 0;
  for (int64_t part = kDownDepth; i + kWidth <= d_in; part += kDownDepth) {
    for (const int64_t end = part < d_in ? part : d_in; i + kWidth <= end; i += kWidth) {
      auto read = [i](const auto* row) GATEFX_INLINE_LAMBDA { return load(row + i); };
      accumulate(read, read);
    }
    if (part >= d_in) break;
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
      GATEFX_UNROLL for (int j = 0; j < kRanks; ++j) {
        whole[t][j] += sum<Real<Store>>(total[t][j]);
        total[t][j] = splat(Real<Store>(0));
      }
    }
  }
  if (i < d_in) {
    auto read = [i, d_in](const auto* row) GATEFX_INLINE_LAMBDA { return load_some(row + i, d_in - i); };
    accumulate(read, read);
  }
  GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
    GATEFX_UNROLL for (int j = 0; j < kRanks; ++j) u[t * stride + j] = scale * (whole[t][j] + sum<Real<Store>>(total[t][j]));
  }
}

template <int kTokens, class Store>
GATEFX_INLINE void down_tokens(const Store* x, int64_t d_in, const Directions<Store>& use, Real<Store>* u) {
  int64_t j = 0;
  for (; j + GATEFX_DOWN_RANKS <= use.rank; j += GATEFX_DOWN_RANKS)
    down_tile<kTokens, GATEFX_DOWN_RANKS>(x, d_in, use.a + j, use.scale, u + j, use.rank);
  for (; j + 2 <= use.rank; j += 2) down_tile<kTokens, 2>(x, d_in, use.a + j, use.scale, u + j, use.rank);
  for (; j < use.rank; ++j) down_tile<kTokens, 1>(x, d_in, use.a + j, use.scale, u + j, use.rank);
}

// u (tokens, rank) = scale * x A'
template <class Store>
GATEFX_INLINE void down(const Rows<Store>& rows, const Directions<Store>& use, int64_t first, int64_t tokens,
                        Real<Store>* u) {
  const Store* x = rows.x + first * rows.d_in;
  int64_t t = 0;
  for (; t + GATEFX_DOWN_TOKENS <= tokens; t += GATEFX_DOWN_TOKENS)
    down_tokens<GATEFX_DOWN_TOKENS>(x + t * rows.d_in, rows.d_in, use, u + t * use.rank);
  for (; t < tokens; ++t) down_tokens<1>(x + t * rows.d_in, rows.d_in, use, u + t * use.rank);
}

// Where the tokens of an up-projection lie: they need not be neighbours.
template <class Store>
struct Places {
  const Store* base[GATEFX_UP_TOKENS];
  Store* out[GATEFX_UP_TOKENS];
  const Real<Store>* u[GATEFX_UP_TOKENS];
};

// `u` (rank, kTokens): the numbers that one step needs lie together.
template <int kTokens, int kColumns, class Store, class Read, class Write>
GATEFX_INLINE void up_tile(const Places<Store>& at, const Directions<Store>& use, const Real<Store>* u, int64_t i,
                           Read read, Write write) {
  constexpr int kWidth = kLanes<Real<Store>>;
  Vector<Real<Store>> total[kTokens][kColumns];
  GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
    GATEFX_UNROLL for (int c = 0; c < kColumns; ++c) total[t][c] = read(at.base[t] + i + c * kWidth);
  }
  for (int64_t j = 0; j < use.rank; ++j) {
    Vector<Real<Store>> direction[kColumns];
    GATEFX_UNROLL for (int c = 0; c < kColumns; ++c) {
      direction[c] = read(use.b[j] + i + c * kWidth);
      GATEFX_IN_REGISTER(direction[c]);
    }
    GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
      const Vector<Real<Store>> weight = splat(u[j * kTokens + t]);
      GATEFX_UNROLL for (int c = 0; c < kColumns; ++c) total[t][c] += weight * direction[c];
    }
  }
  GATEFX_UNROLL for (int t = 0; t < kTokens; ++t) {
    GATEFX_UNROLL for (int c = 0; c < kColumns; ++c) write(at.out[t] + i + c * kWidth, total[t][c]);
  }
}

template <int kTokens, class Store>
GATEFX_INLINE void up_tokens(const Places<Store>& at, const Directions<Store>& use, int64_t d_out) {
  constexpr int kWidth = kLanes<Real<Store>>;
  auto read = [](const auto* from) GATEFX_INLINE_LAMBDA { return load(from); };
  auto write = [](auto* to, auto value) GATEFX_INLINE_LAMBDA { store(to, value); };
  Real<Store> u[kTokens * kMaxRank];
  for (int64_t j = 0; j < use.rank; ++j)
    for (int t = 0; t < kTokens; ++t) u[j * kTokens + t] = at.u[t][j];
  int64_t i = 0;
  for (; i + GATEFX_UP_COLUMNS * kWidth <= d_out; i += GATEFX_UP_COLUMNS * kWidth)
    up_tile<kTokens, GATEFX_UP_COLUMNS>(at, use, u, i, read, write);
  for (; i + kWidth <= d_out; i += kWidth) up_tile<kTokens, 1>(at, use, u, i, read, write);
  if (i < d_out) {
    const int64_t left = d_out - i;
    auto read_some = [left](const auto* from) GATEFX_INLINE_LAMBDA { return load_some(from, left); };
    auto write_some = [left](auto* to, auto value) GATEFX_INLINE_LAMBDA { store_some(to, left, value); };
    up_tile<kTokens, 1>(at, use, u, i, read_some, write_some);
  }
}
