// What the plugins differ in: their inputs, where a layer's sizes stand in them, and how a batch is cut into blocks.
#pragma once

#include <cstdint>

namespace gatefx {

// One letter an input: f is a float of the plugin's one type, i a 64-bit whole number, b a truth value.
enum class Kind : char { kFloat = 'f', kWhole = 'i', kTruth = 'b' };

// Blocks along y; along x there is one for each tile of tokens.
enum class Columns { kExamples, kOne, kFeatures };

struct Operator {
  char const* name;   // of the ONNX node, and of the plugin
  char const* kinds;  // one letter an input, in the order of the node
  int32_t x;          // input (*, d_in)
  int32_t weight;     // input whose axis 0 is d_out: B (d_out, r), or a weight (d_out, d_in)
  int32_t down;       // input A (r, d_in), whose axis 0 is the rank; -1 if the operator has none
  Columns columns;
};

constexpr Operator kOperators[] = {
    // base, x, A, B, indices, scale
    {"GatedLora", "ffffif", 1, 3, 2, Columns::kExamples},
    // base, x, A, B, gram, threshold, scale
    {"TokenGatedLora", "fffffff", 1, 3, 2, Columns::kOne},
    // x, weight0, weight1, bias, choice, order
    {"RoutedRows", "ffffbi", 0, 1, -1, Columns::kFeatures},
};

}  // namespace gatefx
