// The kernels of one instruction set. A translation unit defines, then includes this file once:
//   GATEFX_ISA            name of the set, which is also its namespace
//   GATEFX_VECTOR_BYTES   width of its vectors
//   GATEFX_DOWN_TOKENS, GATEFX_DOWN_RANKS, GATEFX_UP_TOKENS, GATEFX_UP_COLUMNS   register tiles
//   GATEFX_LAYER_PANELS, GATEFX_LAYER_SUMS   panels of a layer in one tile, and the vectors of sums that fit beside them
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "table.h"

#define GATEFX_INLINE static inline __attribute__((always_inline))
#define GATEFX_INLINE_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define GATEFX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define GATEFX_UNROLL _Pragma("GCC unroll 16")
#endif
// The letter by which assembly asks for a vector's register, where a register holds one.
#if defined(__AVX512F__)
#define GATEFX_REGISTER "v"
#elif defined(__x86_64__) && (GATEFX_VECTOR_BYTES == 16 || (defined(__AVX__) && GATEFX_VECTOR_BYTES == 32))
#define GATEFX_REGISTER "x"
#elif defined(__aarch64__)
#define GATEFX_REGISTER "w"
#endif
// Keeps a vector that several sums use from being read from memory once for each of them.
#if defined(GATEFX_REGISTER)
#define GATEFX_IN_REGISTER(value) asm("" : "+" GATEFX_REGISTER(value))
#else
#define GATEFX_IN_REGISTER(value) (void)0
#endif
#define GATEFX_TEXT_(name) #name
#define GATEFX_TEXT(name) GATEFX_TEXT_(name)

namespace gatefx {
namespace GATEFX_ISA {

#include "vector.h"
#include "products.h"
#include "updates.h"
#include "layers.h"
#include "attention.h"
#include "activation.h"

template <class Store>
constexpr Kernels<Store> kernels() {
  return {add_update<Store>, add_large_updates<Store>, project<Store>,   run_layer<Store>,  widen<Store>,
          attend<Store>,     pack_keys<Store>,         pack_values<Store>, apply_gelu<Store>};
}

extern const Table table;
const Table table = {GATEFX_TEXT(GATEFX_ISA), kernels<float>(), kernels<double>(), kernels<Bfloat16>(),
                     kernels<Float16>()};

}  // namespace GATEFX_ISA
}  // namespace gatefx
