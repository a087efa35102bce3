#include "plugin.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "logging.h"

namespace gatefx {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

// The name that the table of kernels has for a type; null if no kernel takes it.
char const* element_of(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT: return "fp32";
    case DataType::kHALF: return "fp16";
    case DataType::kBF16: return "bf16";
    default: return nullptr;
  }
}

bool takes(Kind kind, DataType type, DataType floats) noexcept {
  switch (kind) {
    case Kind::kFloat: return type == floats && element_of(type) != nullptr;
    case Kind::kWhole: return type == DataType::kINT64;
    case Kind::kTruth: return type == DataType::kBOOL;
  }
  return false;
}

int64_t last(Dims const& dims) {
  if (dims.nbDims < 1) throw std::runtime_error("an input without axes where one was expected");
  return dims.d[dims.nbDims - 1];
}

// The product of the sizes from axis `begin` to the last one but one.
int64_t rows(Dims const& dims, int32_t begin) {
  int64_t total = 1;
  for (int32_t axis = begin; axis + 1 < dims.nbDims; ++axis) total *= dims.d[axis];
  return total;
}

int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <typename Number>
Number within(int64_t value, char const* what) {
  if (value < 0 || static_cast<uint64_t>(value) > static_cast<uint64_t>(std::numeric_limits<Number>::max())) {
    throw std::runtime_error(std::string(what) + " out of range: " + std::to_string(value));
  }
  return static_cast<Number>(value);
}

}  // namespace

Plugin::Plugin(Operator const& op, Found kernel) : op_(op) { take(std::move(kernel)); }

void Plugin::take(Found found) {
  Kernel kernel = parsed(found.line);
  if (kernel.op != op_.name) throw std::runtime_error("a kernel of " + kernel.op + " was kept for another operator");
  found_ = std::move(found);
  kernel_ = std::move(kernel);
}

int32_t Plugin::input_count() const noexcept { return static_cast<int32_t>(std::strlen(op_.kinds)); }

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  nvinfer1::IPluginV3* made = nullptr;
  status_of(op_.name, [&] { made = new Plugin(*this); });
  return made;
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, DataType const* inputs,
                                   int32_t count) const noexcept {
  return status_of(op_.name, [&] {
    if (count != input_count() || output_count != 1) throw std::runtime_error("a wrong number of inputs or outputs");
    for (int32_t place = 0; place < count; ++place) {
      if (!takes(static_cast<Kind>(op_.kinds[place]), inputs[place], inputs[0])) {
        throw std::runtime_error("input " + std::to_string(place) + " has a type that no kernel takes, or another " +
                                 "than input 0; floats are of one type: float32, float16 or bfloat16");
      }
    }
    outputs[0] = inputs[0];
  });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t count, nvinfer1::DimsExprs const*, int32_t,
                                nvinfer1::DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  return status_of(op_.name, [&] {
    if (count != input_count() || output_count != 1) throw std::runtime_error("a wrong number of inputs or outputs");
    if (inputs[op_.x].nbDims < 1 || inputs[op_.weight].nbDims < 1) throw std::runtime_error("an input without axes");
    outputs[0] = inputs[op_.x];
    outputs[0].d[outputs[0].nbDims - 1] = inputs[op_.weight].d[0];
  });
}

bool Plugin::supportsFormatCombination(int32_t place, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t count,
                                       int32_t output_count) noexcept {
  if (count != input_count() || output_count != 1) return false;
  nvinfer1::PluginTensorDesc const& asked = tensors[place].desc;
  Kind const kind = place < count ? static_cast<Kind>(op_.kinds[place]) : Kind::kFloat;
  return asked.format == nvinfer1::TensorFormat::kLINEAR && takes(kind, asked.type, tensors[0].desc.type);
}

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t count,
                                nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
  return status_of(op_.name, [&] {
    if (count != input_count()) throw std::runtime_error("a wrong number of inputs");
    char const* element = element_of(inputs[0].desc.type);
    if (element == nullptr) throw std::runtime_error("no kernel for the type of input 0");
    int64_t const d_in = last(inputs[op_.x].desc.dims);
    int64_t const d_out = inputs[op_.weight].desc.dims.d[0];
    int64_t const rank = op_.down < 0 ? 0 : inputs[op_.down].desc.dims.d[0];
    bool const ready = kernel_.element == element && kernel_.d_in == d_in && kernel_.d_out == d_out &&
                       kernel_.rank == rank;
    if (!ready) {
      take(find(op_.name, element, d_in, d_out, rank));
      loaded_.reset();
    }
  });
}

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t, nvinfer1::PluginTensorDesc const*,
                              int32_t) noexcept {
  return status_of(op_.name, [&] {
    Dims const& x = inputs[op_.x].dims;
    if (x.nbDims < (op_.columns == Columns::kExamples ? 2 : 1)) throw std::runtime_error("an input misses axes");
    tokens_ = within<int32_t>(rows(x, op_.columns == Columns::kExamples ? 1 : 0), "tokens");
    int64_t columns = 1;
    if (op_.columns == Columns::kExamples) columns = x.d[0];
    if (op_.columns == Columns::kFeatures) columns = tiles(kernel_.d_out, kernel_.columns);
    grid_.x = within<uint32_t>(tiles(tokens_, kernel_.rows), "blocks");
    grid_.y = within<uint16_t>(columns, "blocks along y");
    grid_.threads = within<uint32_t>(kernel_.threads, "threads");
    grid_.shared = within<uint32_t>(kernel_.shared, "shared memory");
    // Here and not in enqueue, which may be captured into a CUDA graph.
    if (loaded_ == nullptr) loaded_ = std::make_unique<LoadedKernel>(found_.ptx, kernel_.entry);
  });
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*, void const* const* inputs,
                        void* const* outputs, void*, cudaStream_t stream) noexcept {
  return status_of(op_.name, [&] {
    if (loaded_ == nullptr) throw std::runtime_error("enqueue before the shapes were told");
    if (grid_.x == 0 || grid_.y == 0) return;
    // Inputs, then the one whole number, then the output: a pointer to each.
    std::vector<void*> arguments;
    for (int32_t place = 0; place < input_count(); ++place) {
      arguments.push_back(const_cast<void const**>(inputs + place));
    }
    arguments.push_back(&tokens_);
    arguments.push_back(const_cast<void**>(outputs));
    loaded_->launch(grid_, arguments.data(), stream);
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
  int32_t const failed = status_of(op_.name, [&] {
    fields_ = {
        {kLineField, found_.line.data(), nvinfer1::PluginFieldType::kCHAR, within<int32_t>(found_.line.size(), "line")},
        {kPtxField, found_.ptx.data(), nvinfer1::PluginFieldType::kCHAR, within<int32_t>(found_.ptx.size(), "PTX")},
    };
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  });
  return failed ? nullptr : &collection_;
}

}  // namespace gatefx
