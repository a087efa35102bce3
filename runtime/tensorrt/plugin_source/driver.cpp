#include "driver.h"

#include <dlfcn.h>

#include <stdexcept>

namespace gatefx {
namespace {

// The names that libcuda exports; cuda.h maps some functions to newer ones of another name.
struct Driver {
  decltype(&cuGetErrorString) error_string;
  decltype(&cuModuleLoadData) load;
  decltype(&cuModuleUnload) unload;
  decltype(&cuModuleGetFunction) function;
  decltype(&cuLaunchKernel) launch;
};

template <typename Function>
void look_up(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
}

Driver const& driver() {
  static Driver const found = [] {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(std::string("no CUDA driver: ") + dlerror());
    Driver d;
    look_up(library, "cuGetErrorString", d.error_string);
    look_up(library, "cuModuleLoadData", d.load);
    look_up(library, "cuModuleUnload", d.unload);
    look_up(library, "cuModuleGetFunction", d.function);
    look_up(library, "cuLaunchKernel", d.launch);
    return d;
  }();
  return found;
}

void check(CUresult result, std::string const& what) {
  if (result == CUDA_SUCCESS) return;
  char const* said = nullptr;
  driver().error_string(result, &said);
  throw std::runtime_error(what + ": " + (said == nullptr ? "unknown CUDA error" : said));
}

}  // namespace

LoadedKernel::LoadedKernel(std::string const& ptx, std::string const& entry) {
  check(driver().load(&module_, ptx.c_str()), "loading " + entry);
  CUresult const found = driver().function(&function_, module_, entry.c_str());
  if (found != CUDA_SUCCESS) driver().unload(module_);
  check(found, "finding " + entry);
}

LoadedKernel::~LoadedKernel() {
  // A context that is gone took the module with it: there is nothing to do about an error here.
  driver().unload(module_);
}

void LoadedKernel::launch(Grid const& grid, void** arguments, CUstream stream) const {
  check(driver().launch(function_, grid.x, grid.y, 1, grid.threads, 1, 1, grid.shared, stream, arguments, nullptr),
        "launching a kernel");
}

}  // namespace gatefx
