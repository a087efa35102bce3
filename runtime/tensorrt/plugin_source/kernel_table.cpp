#include "kernel_table.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace gatefx {
namespace {

constexpr char kTable[] = "kernels.tsv";
constexpr char kFolder[] = "GATEFX_KERNELS";

std::ifstream opened(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return file;
}

}  // namespace

Kernel parsed(std::string const& line) {
  std::istringstream fields(line);
  Kernel k;
  fields >> k.op >> k.element >> k.d_in >> k.d_out >> k.rank >> k.nodes >> k.threads >> k.shared >> k.rows >>
      k.columns >> k.entry >> k.file;
  if (!fields || k.threads < 1 || k.rows < 1 || k.columns < 1) {
    throw std::runtime_error("this is no line of a table of kernels: " + line);
  }
  return k;
}

Found find(std::string const& op, std::string const& element, int64_t d_in, int64_t d_out, int64_t rank) {
  char const* folder = std::getenv(kFolder);
  if (folder == nullptr) {
    throw std::runtime_error(std::string(kFolder) + " must name the folder plugins of the exported model");
  }
  std::string const place = std::string(folder) + "/";
  std::ifstream table = opened(place + kTable);
  std::string line;
  std::getline(table, line);  // names of the fields
  while (std::getline(table, line)) {
    Kernel const k = parsed(line);
    if (k.op == op && k.element == element && k.d_in == d_in && k.d_out == d_out && k.rank == rank) {
      std::ifstream text = opened(place + k.file);
      return {line, std::string(std::istreambuf_iterator<char>(text), {})};
    }
  }
  std::ostringstream said;
  said << place << kTable << " has no kernel of " << op << " for " << element << " and d_in " << d_in << ", d_out "
       << d_out << ", rank " << rank << "; export the model with plugins again";
  throw std::runtime_error(said.str());
}

}  // namespace gatefx
