"""Names in a folder of gated models for vLLM, for both environments: the one that writes it, and vLLM's own."""

UPDATE, SUFFIX = "update_", ".pt2"
"""How a site's file is named."""
ARCHITECTURES = {"LlamaForCausalLM": "GatefxLlamaForCausalLM"}
"""Architecture of the base model → the one with gates, as the folder's configuration names it."""
CLASSES = {"GatefxLlamaForCausalLM": "gatefx.runtime.serving.vllm_llama:GatefxLlamaForCausalLM"}
"""Architecture with gates → where its class is."""
