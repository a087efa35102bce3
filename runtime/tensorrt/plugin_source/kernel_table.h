// The kernels of an exported folder: the table that gatefx writes, and the PTX beside it.
#pragma once

#include <cstdint>
#include <string>

namespace gatefx {

// One line of kernels.tsv; the fields stand in this order, see plugins/kernels.py.
struct Kernel {
  std::string op, element;  // element: fp32, fp16 or bf16
  int32_t d_in, d_out, rank, nodes, threads, shared, rows, columns;
  std::string entry, file;
};

// Throws std::runtime_error for a line that is none.
Kernel parsed(std::string const& line);

// The line of the kernel for an operator, a type and a size, in the folder that the environment variable
// GATEFX_KERNELS names, and the text of its PTX. Throws std::runtime_error, with what is missing and where.
struct Found {
  std::string line, ptx;
};
Found find(std::string const& op, std::string const& element, int64_t d_in, int64_t d_out, int64_t rank);

}  // namespace gatefx
