// Memory that may fail to be had without throwing.
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
    data_ = static_cast<Value*>(std::malloc(sizeof(Value) * size_t(count > 0 ? count : 1)));
    return data_ != nullptr;
  }
  Value* data() { return data_; }
  const Value* data() const { return data_; }

 private:
  Value* data_ = nullptr;
};

}  // namespace gatefx
