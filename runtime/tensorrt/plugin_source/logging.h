// What goes wrong inside a plugin: said to TensorRT's logger, where it has given one, and turned into a status.
#pragma once

#include <cstdint>
#include <exception>

namespace gatefx {

// Says `what` as an error of the operator `name`.
void complain(char const* name, char const* what) noexcept;

// 0, or 1 after `work` threw: nothing may be thrown into TensorRT.
template <typename Work>
int32_t status_of(char const* name, Work&& work) noexcept {
  try {
    work();
    return 0;
  } catch (std::exception const& error) {
    complain(name, error.what());
  } catch (...) {
    complain(name, "unknown error");
  }
  return 1;
}

}  // namespace gatefx
