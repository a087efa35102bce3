// The part of ONNX Runtime's stable C interface that a custom-operator library needs, written by hand.
//
// OrtApi is a table of function pointers that only ever grows at its end, and OrtCustomOp a struct that does the same,
// so this view holds for every runtime from 1.18 on.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gatefx::ort {

// ParallelFor came with 1.17, GetMayInplace with 1.18; with 1.24 the sizes of a tensor became readable in place.
constexpr uint32_t kOldestApi = 18, kSizesInPlaceApi = 24;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct ShapeInfo;
struct ShapeInferContext;

enum class Element : int { kFloat = 1, kInt64 = 7, kBool = 9, kFloat16 = 10, kDouble = 11, kBfloat16 = 16 };
enum class Code : int { kFail = 1, kInvalidArgument = 2 };
constexpr int kInputRequired = 0, kMemoryDefault = 0;

struct ApiBase {
  const void* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// Places in the table of OrtApi.
enum Slot : size_t {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kInfoGetFloat = 85,
  kInfoGetInteger = 86,
  kContextGetInput = 90,
  kContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kGetConstantInput = 249,
  kParallelFor = 274,
  kGetSizesInPlace = 414,
};

class Api {
 public:
  Api() = default;
  Api(const void* table, bool sizes_in_place)
      : table_(static_cast<const void* const*>(table)), sizes_in_place_(sizes_in_place) {}

  explicit operator bool() const { return table_ != nullptr; }
  bool sizes_in_place() const { return sizes_in_place_; }

  // A call of the function in `slot`, which returns a Status unless told otherwise.
  template <class Result = Status*, class... Arguments>
  Result call(Slot slot, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table_[slot]))(arguments...);
  }
  Status* error(Code code, const char* text) const { return call(kCreateStatus, int(code), text); }

 private:
  const void* const* table_ = nullptr;
  bool sizes_in_place_ = false;
};

// OrtCustomOp with the members that 1.18 knows.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const void*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  Element (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  Element (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const void*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace gatefx::ort
