// The weights of a frozen layer as the kernels read them: panels of columns, in the arithmetic's type.
#pragma once
#include <cstring>

#include "factors.h"

namespace gatefx {

// W (d_out, d_in) as panels (panel, d_in, kPanel). Prepared once where it is a constant of the model.
template <class Store>
class Panels {
 public:
  bool set(const Tensor& weight) {
    const int64_t d_out = weight.sizes[0], d_in = weight.sizes[1];
    if (!copy_.resize(whole_panels(d_out) * d_in)) return false;
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

// A bias (d_out) filled up with zeros to whole panels.
template <class Store>
class PanelRow {
 public:
  bool set(const Tensor& bias) {
    if (!copy_.resize(whole_panels(bias.count()))) return false;
    std::memset(copy_.data(), 0, size_t(whole_panels(bias.count())) * sizeof(Real<Store>));
    for (int64_t i = 0; i < bias.count(); ++i) copy_.data()[i] = widened(bias.as<Store>()[i]);
    return true;
  }
  const Real<Store>* data() const { return copy_.data(); }

 private:
  Buffer<Real<Store>> copy_;
};

}  // namespace gatefx
