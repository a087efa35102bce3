// What a model applies to a layer's answers. Included in the namespace of one instruction set.
//
//   gelu(x) = x (1/2 + erf(x / sqrt 2) / 2)      the exact form, not the one by tanh

GATEFX_INLINE Floats gelu(Floats x) {
  // erf(x / sqrt 2) / 2 = x P(x^2) / Q(x^2) up to kEnd, where it is 1/2 to the last bit: P and Q of degree 5 with the
  // least largest error there, 7e-9.
  constexpr float kEnd = 5.5f;
  const Floats s = x * x;
  Floats above = s * 0x1.86cc28p-26f + 0x1.aa4320p-18f, below = s * 0x1.416e40p-20f + 0x1.34e42ep-14f;
  above = above * s + 0x1.620cf2p-13f, below = below * s + 0x1.edfeb8p-10f;
  above = above * s + 0x1.328748p-8f, below = below * s + 0x1.d555c8p-6f;
  above = above * s + 0x1.155298p-5f, below = below * s + 0x1.018f1ap-2f;
  above = above * s + 0x1.988450p-2f, below = below * s + 1.0f;
  const Floats inside = x * above / below;
  const Floats share = x > kEnd ? splat(0.5f) : (x < -kEnd ? splat(-0.5f) : inside);
  return x * (share + 0.5f);
}
GATEFX_INLINE Vector<double> gelu(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] *= 0.5 + 0.5 * __builtin_erf(x[lane] * 0x1.6a09e667f3bcdp-1);
  return x;
}

// In place.
template <class Store>
void apply_gelu(Store* row, int64_t count) {
  constexpr int kWidth = kLanes<Real<Store>>;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(row + i, gelu(load(row + i)));
  if (i < count) store_some(row + i, count - i, gelu(load_some(row + i, count - i)));
}
