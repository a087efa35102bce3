"""Names in a folder of gated models for vLLM, for both environments: the one that writes it, and vLLM's own."""

UPDATE, SUFFIX = "update_", ".pt2"
"""How a site's file is named."""
ARCHITECTURES = {"LlamaForCausalLM": "GatefxLlamaForCausalLM"}
"""Architecture of the base model → the one with gates, as the folder's configuration names it."""
CLASSES = {"GatefxLlamaForCausalLM": "gatefx.runtime.serving.vllm_llama:GatefxLlamaForCausalLM"}
"""Architecture with gates → where its class is."""
DIGEST = "gatefx_programs"
"""Entry of the folder's configuration that tells its programs apart: vLLM keys its cache of compiled code by it."""
PASSES = "gatefx_passes"
"""Entry of vLLM's `--additional-config`: where passes for its compilation are, "package.module:NAME"."""
