// What all operators for torch share: arrays as the kernels see them, torch's threads, element types, errors.
// Only torch's stable interface is used.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>

#include "../operators/lora.h"

namespace gatefx {

using torch::headeronly::ScalarType;
using Array = torch::stable::Tensor;

inline Tensor view(const Array& array) {
  STD_TORCH_CHECK(size_t(array.dim()) <= Tensor::kMostAxes, "gatefx: more than eight axes");
  Tensor tensor;
  tensor.data = array.const_data_ptr();
  tensor.axes = size_t(array.dim());
  for (size_t i = 0; i < tensor.axes; ++i) tensor.sizes[i] = array.size(int64_t(i));
  return tensor;
}

// The array with its elements in row-major order.
inline Array dense(const Array& array) { return array.is_contiguous() ? array : torch::stable::contiguous(array); }

inline std::string described(const char* name, const Array& array) {
  std::string text = std::string(name) + " (";
  for (int64_t i = 0; i < array.dim(); ++i) text += (i ? ", " : "") + std::to_string(array.size(i));
  return text + ") ";
}

inline void raise_if(const Problem& problem, const char* op) {
  STD_TORCH_CHECK(!problem, op, ": ", problem.text);
}

struct ParallelFor {
  template <class Task>
  int operator()(int64_t count, const Task& task) const {
    torch::stable::parallel_for(0, count, 1, [&task](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
    return 0;
  }
};

// Calls function(Store{}) with the element type of `array`.
template <class Function>
void with_type(const Array& array, const char* op, const Function& function) {
  switch (array.scalar_type()) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(Bfloat16{});
    case ScalarType::Half: return function(Float16{});
    default: STD_TORCH_CHECK(false, op, " takes float32, float64, bfloat16 and float16 tensors");
  }
}

template <class Store>
Real<Store> number(const Array& scalar) {
  return widened(*static_cast<const Store*>(scalar.const_data_ptr()));
}

}  // namespace gatefx
