// The CUDA driver: looked up when the first kernel is loaded, so that the library loads where there is none.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <string>

namespace gatefx {

// A kernel loaded into the CUDA context that was current then. Throws std::runtime_error with the driver's words.
class LoadedKernel {
 public:
  LoadedKernel(std::string const& ptx, std::string const& entry);
  ~LoadedKernel();
  LoadedKernel(LoadedKernel const&) = delete;
  LoadedKernel& operator=(LoadedKernel const&) = delete;

  struct Grid {
    uint32_t x, y, threads, shared;
  };
  void launch(Grid const& grid, void** arguments, CUstream stream) const;

 private:
  CUmodule module_{};
  CUfunction function_{};
};

}  // namespace gatefx
