// Vectors of GATEFX_VECTOR_BYTES bytes, and how each element type is read into and written from them.
// Included once per instruction set, inside its namespace: two sets must never share an inline function.
// Everything is GCC and Clang vector extensions, so one text serves SSE2, AVX2, AVX-512 and NEON.

template <class Element, int kBytes>
struct VectorOf {
  typedef Element type __attribute__((vector_size(kBytes)));
};

template <class Value>
constexpr int kLanes = GATEFX_VECTOR_BYTES / int(sizeof(Value));
template <class Value>
using Vector = typename VectorOf<Value, GATEFX_VECTOR_BYTES>::type;

using Floats = Vector<float>;
using Words = Vector<uint32_t>;
using Halves = VectorOf<uint16_t, GATEFX_VECTOR_BYTES / 2>::type;

template <class To, class From>
GATEFX_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class Value>
GATEFX_INLINE Vector<Value> splat(Value value) {
  return value - Vector<Value>{};
}

// total += a * b. Where the set has one instruction for it, that one: compilers that choose between its forms by what
// lives on spend registers, and moves between them, in loops that need them all.
template <class Value>
GATEFX_INLINE void add_product(Value& total, const Value& a, const Value& b) {
#if defined(__FMA__) && defined(GATEFX_REGISTER)
  if constexpr (sizeof(total[0]) == sizeof(float))
    asm("vfmadd231ps %2, %1, %0" : "+" GATEFX_REGISTER(total) : GATEFX_REGISTER(a), GATEFX_REGISTER(b));
  else
    asm("vfmadd231pd %2, %1, %0" : "+" GATEFX_REGISTER(total) : GATEFX_REGISTER(a), GATEFX_REGISTER(b));
#else
  total += a * b;
#endif
}

// mask lanes are all ones or zero
GATEFX_INLINE Words choose(Words mask, Words yes, Words no) { return (mask & yes) | (~mask & no); }

GATEFX_INLINE Floats load(const float* at) {
  Floats value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}
GATEFX_INLINE Vector<double> load(const double* at) {
  Vector<double> value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}
GATEFX_INLINE Words load_halves(const void* at) {
  Halves value;
  __builtin_memcpy(&value, at, sizeof value);
  return __builtin_convertvector(value, Words);
}
GATEFX_INLINE Floats load(const Bfloat16* at) { return bits_as<Floats>(load_halves(at) << 16); }
GATEFX_INLINE Floats load(const Float16* at) {
  const Words half = load_halves(at), magnitude = half & 0x7fff;
  // Re-biasing by a product with 2^112 is exact, subnormal numbers included.
  const Words finite = bits_as<Words>(bits_as<Floats>(magnitude << 13) * 0x1p112f);
  const Words special = (magnitude << 13) | 0x7f800000;
  return bits_as<Floats>(choose(Words(magnitude >= 0x7c00), special, finite) | ((half & 0x8000) << 16));
}

GATEFX_INLINE void store(float* at, Floats value) { __builtin_memcpy(at, &value, sizeof value); }
GATEFX_INLINE void store(double* at, Vector<double> value) { __builtin_memcpy(at, &value, sizeof value); }
GATEFX_INLINE void store_halves(void* at, Words value) {
  const Halves halves = __builtin_convertvector(value, Halves);
  __builtin_memcpy(at, &halves, sizeof halves);
}
// Both round to the nearest, ties to even.
GATEFX_INLINE void store(Bfloat16* at, Floats value) {
  const Words word = bits_as<Words>(value);
  const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const Words quiet = (word >> 16) | 0x40;
  store_halves(at, choose(Words(value != value), quiet, rounded));
}
GATEFX_INLINE void store(Float16* at, Floats value) {
  const Words word = bits_as<Words>(value), sign = (word >> 16) & 0x8000, magnitude = word & 0x7fffffff;
  const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 moves the rounding of the float unit to the last bit of a subnormal half.
  const Words subnormal = bits_as<Words>(bits_as<Floats>(magnitude) + 0.5f) - 0x3f000000;
  const Words overflow = choose(Words(magnitude > 0x7f800000), splat(0x7e00u), splat(0x7c00u));
  const Words finite = choose(Words(magnitude < 0x38800000), subnormal, normal);
  store_halves(at, sign | choose(Words(magnitude >= 0x47800000), overflow, finite));
}

// The first `count` elements; the other lanes are zero when read and left alone when written.
template <class Store>
GATEFX_INLINE Vector<Real<Store>> load_some(const Store* at, int64_t count) {
  Store padded[kLanes<Real<Store>>] = {};
  __builtin_memcpy(padded, at, size_t(count) * sizeof(Store));
  return load(padded);
}
template <class Store>
GATEFX_INLINE void store_some(Store* at, int64_t count, Vector<Real<Store>> value) {
  Store padded[kLanes<Real<Store>>];
  store(padded, value);
  __builtin_memcpy(at, padded, size_t(count) * sizeof(Store));
}

// Sum of the lanes, halves first.
template <class Value, int kBytes>
GATEFX_INLINE Value sum_of(typename VectorOf<Value, kBytes>::type value) {
  if constexpr (kBytes == 2 * sizeof(Value)) {
    return value[0] + value[1];
  } else {
    typename VectorOf<Value, kBytes / 2>::type halves[2];
    __builtin_memcpy(halves, &value, sizeof halves);
    return sum_of<Value, kBytes / 2>(halves[0] + halves[1]);
  }
}
template <class Value>
GATEFX_INLINE Value sum(Vector<Value> value) {
  return sum_of<Value, GATEFX_VECTOR_BYTES>(value);
}
