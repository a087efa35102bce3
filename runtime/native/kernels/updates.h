// Whole blocks of tokens: all of them take the update, or those whose update is large enough.
// Included inside the namespace of one instruction set.

constexpr int64_t kBlockTokens = 48, kScratch = 4 * kMaxRank;

template <class Store>
GATEFX_INLINE void copy_row(const Store* from, Store* to, int64_t size) {
  if (from != to) __builtin_memcpy(to, from, size_t(size) * sizeof(Store));
}

// Tokens that fit in the scratch, a multiple of four.
GATEFX_INLINE int64_t block_of(int64_t rank) {
  const int64_t fitting = kScratch / (rank > 0 ? rank : 1) / 4 * 4;
  return fitting < kBlockTokens ? fitting : kBlockTokens;
}

template <class Store>
void add_update(const Rows<Store>& rows, const Directions<Store>& use) {
  if (use.rank == 0) {
    copy_row(rows.base, rows.out, rows.tokens * rows.d_out);
    return;
  }
  alignas(64) Real<Store> u[kScratch];
  const int64_t block = block_of(use.rank);
  for (int64_t first = 0; first < rows.tokens; first += block) {
    const int64_t tokens = rows.tokens - first < block ? rows.tokens - first : block;
    down(rows, use, first, tokens, u);
    Places<Store> at;
    auto place = [&](int slot, int64_t t) GATEFX_INLINE_LAMBDA {
      at.base[slot] = rows.base + (first + t) * rows.d_out;
      at.out[slot] = rows.out + (first + t) * rows.d_out;
      at.u[slot] = u + t * use.rank;
    };
    int64_t t = 0;
    for (; t + GATEFX_UP_TOKENS <= tokens; t += GATEFX_UP_TOKENS) {
      GATEFX_UNROLL for (int s = 0; s < GATEFX_UP_TOKENS; ++s) place(s, t + s);
      up_tokens<GATEFX_UP_TOKENS>(at, use, rows.d_out);
    }
    for (; t < tokens; ++t) {
      place(0, t);
      up_tokens<1>(at, use, rows.d_out);
    }
  }
}

// u' G u, and the sum of squares of a row.
template <class Value>
GATEFX_INLINE Value quadratic_form(const Value* u, const Value* gram, int64_t rank) {
  constexpr int kWidth = kLanes<Value>;
  Vector<Value> total = {};
  for (int64_t i = 0; i < rank; i += kWidth) {
    const int64_t left = rank - i;
    auto read = [left](const Value* from) GATEFX_INLINE_LAMBDA {
      return left >= kWidth ? load(from) : load_some(from, left);
    };
    Vector<Value> column = {};
    for (int64_t j = 0; j < rank; ++j) column += splat(u[j]) * read(gram + j * rank + i);
    total += column * read(u + i);
  }
  return sum<Value>(total);
}

template <class Store>
GATEFX_INLINE Real<Store> squares(const Store* row, int64_t size) {
  constexpr int kWidth = kLanes<Real<Store>>;
  Vector<Real<Store>> total[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
    GATEFX_UNROLL for (int c = 0; c < 4; ++c) {
      const Vector<Real<Store>> part = load(row + i + c * kWidth);
      total[c] += part * part;
    }
  }
  for (; i < size; i += kWidth) {
    const Vector<Real<Store>> part = size - i >= kWidth ? load(row + i) : load_some(row + i, size - i);
    total[0] += part * part;
  }
  return sum<Real<Store>>((total[0] + total[1]) + (total[2] + total[3]));
}

template <class Store>
GATEFX_INLINE bool takes_update(const Store* base, int64_t d_out, const Real<Store>* u, int64_t rank,
                                const Gate<Store>& gate) {
  // Rounding may leave the form of a singular G a little below zero. u carries the scale already.
  const Real<Store> form = quadratic_form(u, gate.gram, rank);
  const Real<Store> size = __builtin_sqrt(form < 0 ? 0 : form);
  return size >= gate.threshold * Real<Store>(__builtin_sqrt(squares(base, d_out)));
}

template <class Store>
void add_large_updates(const Rows<Store>& rows, const Directions<Store>& use, const Gate<Store>& gate) {
  alignas(64) Real<Store> u[kScratch];
  const int64_t block = block_of(use.rank);
  for (int64_t first = 0; first < rows.tokens; first += block) {
    const int64_t tokens = rows.tokens - first < block ? rows.tokens - first : block;
    down(rows, use, first, tokens, u);
    Places<Store> at;
    int waiting = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const Store* base = rows.base + (first + t) * rows.d_out;
      Store* out = rows.out + (first + t) * rows.d_out;
      if (!takes_update(base, rows.d_out, u + t * use.rank, use.rank, gate)) {
        copy_row(base, out, rows.d_out);
        continue;
      }
      at.base[waiting] = base, at.out[waiting] = out, at.u[waiting] = u + t * use.rank;
      if (++waiting == GATEFX_UP_TOKENS) {
        up_tokens<GATEFX_UP_TOKENS>(at, use, rows.d_out);
        waiting = 0;
      }
    }
    for (int s = 0; s < waiting; ++s) {
      at.base[0] = at.base[s], at.out[0] = at.out[s], at.u[0] = at.u[s];
      up_tokens<1>(at, use, rows.d_out);
    }
  }
}
