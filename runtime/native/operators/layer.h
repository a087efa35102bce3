// The weights of a frozen layer as the kernels read them: panels of columns, in the arithmetic's type.
#pragma once
#include <cstring>

#include "../kernels/table.h"
#include "factors.h"

namespace gatefx {

// W (d_out, d_in) as panels (panel, d_in, kPanel). Prepared once where it is a constant of the model.
template <class Store>
class Panels {
 public:
  bool set(const Tensor& weight) {
    const int64_t d_out = weight.sizes[0], d_in = weight.sizes[1];
    if (!copy_.resize(panels_of(d_out) * kPanel * d_in)) return false;
    for (int64_t panel = 0; panel < panels_of(d_out); ++panel) {
      const int64_t first = panel * kPanel, rows = d_out - first < kPanel ? d_out - first : kPanel;
      Real<Store>* to = copy_.data() + first * d_in;
      const Store* from = weight.as<Store>() + first * d_in;
      for (int64_t i = 0; i < d_in; ++i)
        for (int64_t o = 0; o < kPanel; ++o) to[i * kPanel + o] = o < rows ? widened(from[o * d_in + i]) : Real<Store>(0);
    }
    return true;
  }
  const Real<Store>* data() const { return copy_.data(); }

 private:
  Buffer<Real<Store>> copy_;
};

// A row for each row of `matrix` (rows, columns), or for each of its columns, filled up with zeros to whole panels.
template <class Store>
class PanelRows {
 public:
  bool set(const Tensor& matrix) { return fill(matrix, matrix.axes == 1 ? 1 : matrix.sizes[0], matrix.last(), false); }
  bool set_turned(const Tensor& matrix) { return fill(matrix, matrix.sizes[1], matrix.sizes[0], true); }
  const Real<Store>* data() const { return copy_.data(); }
  int64_t stride() const { return stride_; }

 private:
  bool fill(const Tensor& matrix, int64_t rows, int64_t columns, bool turned) {
    stride_ = panels_of(columns) * kPanel;
    if (!copy_.resize(rows * stride_)) return false;
    std::memset(copy_.data(), 0, size_t(rows * stride_) * sizeof(Real<Store>));
    const Store* from = matrix.as<Store>();
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t i = 0; i < columns; ++i)
        copy_.data()[j * stride_ + i] = widened(from[turned ? i * rows + j : j * columns + i]);
    return true;
  }

  Buffer<Real<Store>> copy_;
  int64_t stride_ = 0;
};

// B (d_out, r) as r rows.
template <class Store>
class PanelColumns : public PanelRows<Store> {
 public:
  bool set(const Tensor& matrix) { return this->set_turned(matrix); }
};

}  // namespace gatefx
