// One class for all plugins: what they differ in stands in operators.h.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "driver.h"
#include "kernel_table.h"
#include "operators.h"

namespace gatefx {

constexpr char kNamespace[] = "gatefx";
constexpr char kVersion[] = "1";

// A plugin of one node. While an engine is built it finds its kernel in a folder's table by the sizes of its inputs;
// the kernel is then part of the engine, and a plugin that is made from it when it runs needs no file.
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(Operator const& op) noexcept : op_(op) {}
  Plugin(Operator const& op, Found kernel);
  Plugin(Plugin const& other) : op_(other.op_), found_(other.found_), kernel_(other.kernel_) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  char const* getPluginName() const noexcept override { return op_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, nvinfer1::DataType const* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count, nvinfer1::DimsExprs const* shapes,
                          int32_t shape_count, nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t place, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t input_count,
                                 int32_t output_count) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                        nvinfer1::PluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* input_types, nvinfer1::PluginTensorDesc const* output_types,
                  void const* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  int32_t input_count() const noexcept;
  void take(Found found);

  Operator const& op_;
  Found found_;
  Kernel kernel_{};
  // Of this plugin alone: a kernel belongs to the CUDA context that was current when it was loaded.
  std::unique_ptr<LoadedKernel> loaded_;
  LoadedKernel::Grid grid_{};
  int32_t tokens_ = 0;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Names of the fields by which an engine keeps a plugin.
constexpr char kLineField[] = "kernel";
constexpr char kPtxField[] = "ptx";

}  // namespace gatefx
