// What the fuzzer's cases are made of: random arrays of exact size, and tasks that run one after the other.
#pragma once
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "../operators/lora.h"

namespace gatefx {

struct Serial {
  template <class Task>
  int operator()(int64_t count, const Task& task) const {
    for (int64_t i = 0; i < count; ++i) task(i);
    return 0;
  }
};

inline float stored(float value, float) { return value; }
inline double stored(float value, double) { return value; }
inline Bfloat16 stored(float value, Bfloat16) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return {uint16_t(word >> 16)};
}
// Small multiples of 1/8 only, which every half-precision number can be.
inline Float16 stored(float value, Float16) {
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return {0};
  int exponent;
  const float fraction = std::frexp(magnitude, &exponent);
  const uint32_t bits = uint32_t(exponent + 14) << 10 | uint32_t(std::lround((fraction * 2 - 1) * 1024));
  return {uint16_t((value < 0 ? 0x8000 : 0) | bits)};
}

template <class Store>
double bound() {
  if (sizeof(Store) == 8) return 1e-13;
  if (sizeof(Store) == 4) return 1e-6;
  return std::is_same<Store, Bfloat16>::value ? 8e-3 : 1e-3;
}

// Memory of exactly `count` elements, so that a sanitizer sees the first byte too many.
template <class Store>
class Array {
 public:
  Array(std::vector<int64_t> sizes, std::mt19937& random) {
    tensor_.axes = sizes.size();
    for (size_t i = 0; i < sizes.size(); ++i) tensor_.sizes[i] = sizes[i];
    data_.reset(new Store[size_t(tensor_.count())]);
    tensor_.data = data_.get();
    for (int64_t i = 0; i < tensor_.count(); ++i)
      data_[size_t(i)] = stored(float(int(random() % 33) - 16) / 8, Store{});
  }
  const Tensor& view() const { return tensor_; }
  Store* data() { return data_.get(); }
  double at(int64_t i) const { return double(widened(data_[size_t(i)])); }

 private:
  std::unique_ptr<Store[]> data_;
  Tensor tensor_;
};

}  // namespace gatefx
