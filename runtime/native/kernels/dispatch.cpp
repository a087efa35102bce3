#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace gatefx {

namespace baseline { extern const Table table; }
#if defined(GATEFX_AVX512_TILES)
namespace avx512_tiles { extern const Table table; }
#endif
#if defined(GATEFX_X86)
namespace avx2 { extern const Table table; }
namespace avx512 { extern const Table table; }
#elif defined(GATEFX_NEON)
namespace neon { extern const Table table; }
#endif

namespace {

constexpr int kMost = 4;

struct Available {
  const Table* tables[kMost];
  const char* names[kMost + 1];
  int count = 0;

  void add(const Table& table) {
    tables[count] = &table;
    names[count++] = table.name;
    names[count] = nullptr;
  }

  Available() {
#if defined(GATEFX_X86)
    __builtin_cpu_init();  // a library may be loaded before the compiler's own constructor has run
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
      add(avx512::table);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2::table);
#elif defined(GATEFX_NEON)
    add(neon::table);  // part of every aarch64
#endif
    add(baseline::table);
#if defined(GATEFX_AVX512_TILES)
    add(avx512_tiles::table);
#endif
  }

  const Table* find(const char* name) const {
    for (int i = 0; i < count; ++i)
      if (std::strcmp(names[i], name) == 0) return tables[i];
    return nullptr;
  }
};

const Available& available() {
  static const Available found;
  return found;
}

const Table* first_choice() {
  const char* asked = std::getenv("GATEFX_ISA");
  const Table* named = asked != nullptr ? available().find(asked) : nullptr;
  return named != nullptr ? named : available().tables[0];
}

std::atomic<const Table*>& chosen() {
  static std::atomic<const Table*> table{first_choice()};
  return table;
}

}  // namespace

const Table& kernels() { return *chosen().load(std::memory_order_acquire); }

bool use_isa(const char* name) {
  const Table* named = name != nullptr ? available().find(name) : nullptr;
  if (named == nullptr) return false;
  chosen().store(named, std::memory_order_release);
  return true;
}

const char* const* available_isas() { return available().names; }

}  // namespace gatefx
