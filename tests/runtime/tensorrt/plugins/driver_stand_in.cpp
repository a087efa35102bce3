// A CUDA driver that runs nothing: it says what it was asked, and which arguments a launch had.
#include <cuda.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace {
std::string g_entry;
int g_inputs() { return g_entry == "token_gated_lora_kernel" ? 7 : 6; }
}  // namespace

extern "C" {

CUresult cuGetErrorString(CUresult, char const** said) {
  *said = "said by the stand-in";
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, void const* image) {
  std::printf("loaded %s\n", static_cast<char const*>(image));
  *module = reinterpret_cast<CUmodule>(1);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule) {
  std::printf("unloaded\n");
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, char const* name) {
  g_entry = name;
  *function = reinterpret_cast<CUfunction>(2);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                        unsigned shared, CUstream, void** arguments, void**) {
  int const inputs = g_inputs();
  int32_t tokens = 0;
  std::memcpy(&tokens, arguments[inputs], sizeof tokens);
  std::printf("launched %s %u %u %u %u %u %u %u %d\n", g_entry.c_str(), x, y, z, threads, ty, tz, shared, tokens);
  // `library_check.cpp` hands out the addresses 0x1000, 0x2000, … for the inputs and then the output.
  bool ordered = true;
  for (int place = 0; place <= inputs; ++place) {
    uintptr_t address = 0;
    std::memcpy(&address, arguments[place < inputs ? place : inputs + 1], sizeof address);
    ordered = ordered && address == 0x1000u * static_cast<unsigned>(place + 1);
  }
  std::printf("pointers %s\n", ordered ? "in order" : "out of order");
  return CUDA_SUCCESS;
}
}
