// Memory that may fail to be had without throwing. It begins with a cache line, so that no vector straddles two.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace gatefx {

template <class Value>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // False where there is not so much; the old content is gone either way.
  bool resize(int64_t count) {
    std::free(data_);
    data_ = nullptr;
    if (count < 0 || uint64_t(count) > SIZE_MAX / 2 / sizeof(Value)) return false;
    const size_t lines = (sizeof(Value) * size_t(count)) / kLine + 1;
    data_ = static_cast<Value*>(std::aligned_alloc(kLine, lines * kLine));
    return data_ != nullptr;
  }
  Value* data() { return data_; }
  const Value* data() const { return data_; }

 private:
  static constexpr size_t kLine = 64;
  Value* data_ = nullptr;
};

}  // namespace gatefx
