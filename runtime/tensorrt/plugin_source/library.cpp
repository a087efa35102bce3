// What TensorRT asks of a library of plugins when it loads one: who makes them, and whom they complain to.
// Nothing is registered before that: loadLibrary, load_library or trtexec --dynamicPlugins does it.
#include <array>
#include <atomic>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "logging.h"
#include "plugin.h"

namespace gatefx {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> g_finder{nullptr};

class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(Operator const& op) noexcept : op_(op) {}

  // For a build the node has no attributes that matter; for a run the engine hands back what the plugin left in it.
  nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    nvinfer1::IPluginV3* made = nullptr;
    status_of(op_.name, [&] {
      if (phase == nvinfer1::TensorRTPhase::kBUILD) {
        made = new Plugin(op_);
      } else {
        made = new Plugin(op_, {text(fields, kLineField), text(fields, kPtxField)});
      }
    });
    return made;
  }

  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &none_; }
  char const* getPluginName() const noexcept override { return op_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  static std::string text(nvinfer1::PluginFieldCollection const* fields, char const* name) {
    for (int32_t place = 0; fields != nullptr && place < fields->nbFields; ++place) {
      nvinfer1::PluginField const& field = fields->fields[place];
      if (std::strcmp(field.name, name) == 0 && field.data != nullptr && field.length >= 0) {
        return {static_cast<char const*>(field.data), static_cast<size_t>(field.length)};
      }
    }
    throw std::runtime_error(std::string("the engine lacks the field ") + name);
  }

  Operator const& op_;
  nvinfer1::PluginFieldCollection none_{};
};

template <size_t... Place>
std::array<Creator, sizeof...(Place)> creators(std::index_sequence<Place...>) {
  return {Creator(kOperators[Place])...};
}

}  // namespace

void complain(char const* name, char const* what) noexcept {
  nvinfer1::ILoggerFinder* finder = g_finder.load();
  nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger == nullptr) return;
  try {
    logger->log(nvinfer1::ILogger::Severity::kERROR, ("gatefx::" + std::string(name) + ": " + what).c_str());
  } catch (...) {
    // Out of memory for the message; the status still tells.
  }
}

}  // namespace gatefx

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  gatefx::g_finder.store(finder);
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
  constexpr size_t kCount = std::size(gatefx::kOperators);
  static auto creators = gatefx::creators(std::make_index_sequence<kCount>());
  static auto const pointers = [] {
    std::array<nvinfer1::IPluginCreatorInterface*, kCount> all{};
    for (size_t place = 0; place < kCount; ++place) all[place] = &creators[place];
    return all;
  }();
  count = static_cast<int32_t>(kCount);
  return pointers.data();
}
