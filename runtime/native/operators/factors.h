// A and B of an adapter as the kernels read them: rows of A, columns of B stored as rows, in the arithmetic's type.
#pragma once
#include <cstring>

#include "../kernels/table.h"
#include "buffer.h"
#include "tensor.h"

namespace gatefx {

inline float widened(float value) { return value; }
inline double widened(double value) { return value; }
inline float widened(Bfloat16 value) {
  const uint32_t word = uint32_t(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &word, sizeof result);
  return result;
}
inline float widened(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fff, sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t word = magnitude << 13;
  float scaled;
  __builtin_memcpy(&scaled, &word, sizeof scaled);
  scaled *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &scaled, sizeof bits);
  bits = (magnitude >= 0x7c00 ? word | 0x7f800000 : bits) | sign;
  __builtin_memcpy(&scaled, &bits, sizeof scaled);
  return scaled;
}

// A matrix (rows, columns) as it is where its type is the arithmetic's, else a widened copy.
template <class Store>
class Widened {
 public:
  bool set(const Tensor& matrix) {
    if constexpr (sizeof(Store) == sizeof(Real<Store>)) {
      view_ = matrix.as<Real<Store>>();
    } else {
      if (!copy_.resize(matrix.count())) return false;
      for (int64_t i = 0; i < matrix.count(); ++i) copy_.data()[i] = widened(matrix.as<Store>()[i]);
      view_ = copy_.data();
    }
    return true;
  }
  const Real<Store>* data() const { return view_; }

 private:
  Buffer<Real<Store>> copy_;
  const Real<Store>* view_ = nullptr;
};

// A matrix (rows, columns) as a copy (columns, rows), its rows filled up with zeros to whole panels.
template <class Store>
class Turned {
 public:
  bool set(const Tensor& matrix) {
    const int64_t rows = matrix.sizes[0], columns = matrix.sizes[1], stride = whole_panels(rows);
    if (!copy_.resize(stride * columns)) return false;
    if (columns == 0) return true;  // nothing to copy, however many rows there are
    std::memset(copy_.data(), 0, size_t(stride * columns) * sizeof(Real<Store>));
    const Store* from = matrix.as<Store>();
    Real<Store>* to = copy_.data();
    // Stripes of rows, so that what one column writes is still in the cache when the next one is read.
    for (int64_t first = 0; first < rows; first += kStripe) {
      const int64_t end = rows - first < kStripe ? rows : first + kStripe;
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t i = first; i < end; ++i) to[j * stride + i] = widened(from[i * columns + j]);
    }
    return true;
  }
  const Real<Store>* data() const { return copy_.data(); }

 private:
  static constexpr int64_t kStripe = 32;
  Buffer<Real<Store>> copy_;
};

}  // namespace gatefx
