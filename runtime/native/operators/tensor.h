// A dense row-major tensor that somebody else owns.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gatefx {

struct Tensor {
  static constexpr size_t kMostAxes = 8;

  const void* data = nullptr;
  int64_t sizes[kMostAxes] = {};
  size_t axes = 0;

  int64_t last() const { return sizes[axes - 1]; }
  // Product of the axes from `first` to before `end`.
  int64_t count(size_t first, size_t end) const {
    int64_t product = 1;
    for (size_t i = first; i < end; ++i) product *= sizes[i];
    return product;
  }
  int64_t count() const { return count(0, axes); }
  bool is_matrix(int64_t rows, int64_t columns) const {
    return axes == 2 && sizes[0] == rows && sizes[1] == columns;
  }
  // Whether the axes before the last are those of `other`.
  bool same_rows(const Tensor& other) const {
    if (axes != other.axes || axes < 2) return false;
    for (size_t i = 0; i + 1 < axes; ++i)
      if (sizes[i] != other.sizes[i]) return false;
    return true;
  }
  template <class Value>
  const Value* as() const { return static_cast<const Value*>(data); }
};

}  // namespace gatefx
