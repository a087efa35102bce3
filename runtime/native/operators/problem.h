// How the kernels' side says that something is wrong; each binding turns it into its runtime's own error.
#pragma once

namespace gatefx {

enum class Cause { kNone, kArguments, kMemory };

// No allocation, no exception: the text is a constant.
struct Problem {
  Cause cause = Cause::kNone;
  const char* text = nullptr;

  explicit operator bool() const { return cause != Cause::kNone; }
};

inline Problem misfit(const char* text) { return {Cause::kArguments, text}; }
inline Problem out_of_memory(const char* text) { return {Cause::kMemory, text}; }

}  // namespace gatefx
