// Plays TensorRT for one plugin: builds it, keeps its fields, makes it again from them and runs it once.
//   check LIBRARY OPERATOR RANK   status 0, or the number of the step that failed; what the plugin complains of on stderr
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

class Logger : public ILogger {
  void log(Severity, char const* text) noexcept override { std::fprintf(stderr, "%s\n", text); }
};

class Finder : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger_; }

 private:
  Logger logger_;
};

struct Tensor {
  DataType type;
  std::vector<int64_t> sizes;
};

PluginTensorDesc described(Tensor const& tensor) {
  PluginTensorDesc made{};
  made.dims.nbDims = static_cast<int32_t>(tensor.sizes.size());
  for (size_t axis = 0; axis < tensor.sizes.size(); ++axis) made.dims.d[axis] = tensor.sizes[axis];
  made.type = tensor.type;
  made.format = TensorFormat::kLINEAR;
  return made;
}

std::vector<Tensor> inputs_of(std::string const& op, int64_t rank) {
  int64_t const b = 3, t = 100, in = 45;
  if (op == "RoutedRows") {
    DataType const f = DataType::kBF16;
    return {{f, {b, t, in}}, {f, {130, in}}, {f, {130, in}}, {f, {130}}, {DataType::kBOOL, {b, t}},
            {DataType::kINT64, {b * t}}};
  }
  DataType const f = op == "GatedLora" ? DataType::kHALF : DataType::kFLOAT;
  std::vector<Tensor> all = {{f, {b, t, 67}}, {f, {b, t, in}}, {f, {rank, in}}, {f, {67, rank}}};
  if (op == "GatedLora") {
    all.push_back({DataType::kINT64, {b, rank}});
  } else {
    all.push_back({f, {rank, rank}});
    all.push_back({f, {}});
  }
  all.push_back({f, {}});
  return all;
}

// Types, layouts and the size of the output, as a build asks for them; the output, or no axes after a refusal.
Tensor built(IPluginV3OneBuild& build, std::vector<Tensor> const& inputs) {
  std::vector<DataType> types;
  for (Tensor const& one : inputs) types.push_back(one.type);
  DataType answer{};
  auto const count = static_cast<int32_t>(inputs.size());
  if (build.getNbOutputs() != 1 || build.getOutputDataTypes(&answer, 1, types.data(), count) != 0) return {};
  std::vector<DataType> mixed = types;
  mixed[1] = mixed[1] == DataType::kHALF ? DataType::kFLOAT : DataType::kHALF;
  if (build.getOutputDataTypes(&answer, 1, mixed.data(), count) == 0) return {};
  return {types[0], inputs[0].sizes};
}

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) return 1;
  auto creators_of = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  auto complain_to = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  if (creators_of == nullptr || complain_to == nullptr) return 1;
  Finder finder;
  complain_to(&finder);

  std::string const op = arguments[2];
  int32_t count = 0;
  IPluginCreatorInterface* const* all = creators_of(count);
  IPluginCreatorV3One* creator = nullptr;
  for (int32_t place = 0; place < count; ++place) {
    auto* one = static_cast<IPluginCreatorV3One*>(all[place]);
    if (op == one->getPluginName() && std::strcmp(one->getPluginNamespace(), "gatefx") == 0) creator = one;
  }
  if (creator == nullptr) return 2;

  PluginFieldCollection const nothing{};
  std::unique_ptr<IPluginV3> plugin(creator->createPlugin(op.c_str(), &nothing, TensorRTPhase::kBUILD));
  auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  std::vector<Tensor> const inputs = inputs_of(op, std::atoll(arguments[3]));
  Tensor output = built(*build, inputs);
  if (output.sizes.empty()) return 2;
  output.sizes.back() = op == "RoutedRows" ? 130 : 67;
  std::printf("output");
  for (int64_t size : output.sizes) std::printf(" %lld", static_cast<long long>(size));
  std::printf("\n");

  std::vector<DynamicPluginTensorDesc> open;
  std::vector<PluginTensorDesc> fixed;
  for (Tensor const& one : inputs) {
    fixed.push_back(described(one));
    open.push_back({fixed.back(), fixed.back().dims, fixed.back().dims, fixed.back().dims});
  }
  PluginTensorDesc const answer = described(output);
  open.push_back({answer, answer.dims, answer.dims, answer.dims});
  auto const inputs_count = static_cast<int32_t>(inputs.size());
  for (int32_t place = 0; place <= inputs_count; ++place) {
    if (!build->supportsFormatCombination(place, open.data(), inputs_count, 1)) return 2;
  }
  if (build->configurePlugin(open.data(), inputs_count, &open.back(), 1) != 0) return 3;
  auto* before = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  PluginFieldCollection const* kept = before->getFieldsToSerialize();
  if (kept == nullptr) return 4;

  // As in another process: no folder, only what the engine kept.
  unsetenv("GATEFX_KERNELS");
  std::unique_ptr<IPluginV3> again(creator->createPlugin(op.c_str(), kept, TensorRTPhase::kRUNTIME));
  if (again == nullptr || creator->createPlugin(op.c_str(), &nothing, TensorRTPhase::kRUNTIME) != nullptr) return 5;
  auto* run = static_cast<IPluginV3OneRuntime*>(again->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::unique_ptr<IPluginV3> attached(run->attachToContext(nullptr));
  run = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::vector<void const*> from;
  for (uintptr_t place = 1; place <= inputs.size(); ++place) from.push_back(reinterpret_cast<void const*>(0x1000 * place));
  void* to = reinterpret_cast<void*>(0x1000 * (inputs.size() + 1));
  if (run->enqueue(fixed.data(), &answer, from.data(), &to, nullptr, nullptr) == 0) return 6;
  if (run->onShapeChange(fixed.data(), inputs_count, &answer, 1) != 0) return 7;
  return run->enqueue(fixed.data(), &answer, from.data(), &to, nullptr, nullptr) == 0 ? 0 : 8;
}
