// The CPU kernels as torch operators gatefx_native::*, and on request as the kernels of gatefx::*, which Python defines.
// Only torch's stable interface is used, so one build serves every torch from the targeted version on.
#include <torch/csrc/stable/library.h>

#include "../entry_points.h"
#include "packed_layers.h"
#include "updates.h"

namespace gatefx {
namespace {

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("gated_lora", TORCH_BOX(&gated_lora));
  library.impl("token_gated_lora", TORCH_BOX(&token_gated_lora));
  library.impl("packed_gated_linear", TORCH_BOX(&packed_gated_linear));
  library.impl("packed_token_gated_linear", TORCH_BOX(&packed_token_gated_linear));
  library.impl("packed_routed_linear", TORCH_BOX(&packed_routed_linear));
}

STABLE_TORCH_LIBRARY(gatefx_native, library) {
  library.def(
      "gated_lora(Tensor base, Tensor x, Tensor lora_a, Tensor lora_b, Tensor indices, Tensor scale) -> Tensor");
  library.def(
      "token_gated_lora(Tensor base, Tensor x, Tensor lora_a, Tensor lora_b, Tensor gram, Tensor threshold, "
      "Tensor scale) -> Tensor");
  library.def(
      "packed_gated_linear(Tensor x, Tensor panels, Tensor bias, Tensor lora_a, Tensor directions, Tensor indices, "
      "Tensor scale, SymInt d_out) -> Tensor");
  library.def(
      "packed_token_gated_linear(Tensor x, Tensor panels, Tensor bias, Tensor lora_a, Tensor directions, Tensor gram, "
      "Tensor threshold, Tensor scale, SymInt d_out) -> Tensor");
  library.def(
      "packed_routed_linear(Tensor x, Tensor panels0, Tensor panels1, Tensor bias, Tensor choice, SymInt d_out) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gatefx_native, CPU, library) { implement(library); }

}  // namespace
}  // namespace gatefx

// From now on the operators gatefx::* run these kernels on CPU tensors.
GATEFX_EXPORT void gatefx_serve_torch() {
  using torch::stable::detail::StableLibrary;
  static StableLibrary library(StableLibrary::Kind::IMPL, "gatefx", "CPU", __FILE__, __LINE__);
  static const bool done = (gatefx::implement(library), true);
  (void)done;
}
