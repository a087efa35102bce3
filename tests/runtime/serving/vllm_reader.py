"""Run by an interpreter with vLLM: load gatefx's plugin, resolve adapters by name, generate greedily with the first.

GATEFX_VLLM_ADAPTERS=FOLDER python vllm_reader.py BASE PROMPTS ANSWERS ADAPTER [REFUSED …]

PROMPTS is JSON, lists of ids; ANSWERS a file to write, for vLLM's processes write to standard output too.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.plugins import load_general_plugins


def main(base: str, prompts: str, answers: str, adapter: str, *refused: str) -> None:
    """Write tokens with the adapter and without, and why each other adapter is refused."""
    load_general_plugins()
    resolver = LoRAResolverRegistry.get_resolver("gatefx")
    reasons = {}
    for name in refused:
        try:
            found = asyncio.run(resolver.resolve_lora(base, name))
            reasons[name] = "no such adapter" if found is None else "taken"
        except ValueError as error:
            reasons[name] = str(error)
    request = asyncio.run(resolver.resolve_lora(base, adapter))
    llm = LLM(
        model=base, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=16, max_model_len=64,
        skip_tokenizer_init=True, enable_prefix_caching=False,
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=8, detokenize=False, ignore_eos=True)
    asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in json.loads(prompts)]
    tokens = [
        [list(answer.outputs[0].token_ids) for answer in llm.generate(asked, greedy, lora_request=chosen)]
        for chosen in (request, None)
    ]
    Path(answers).write_text(json.dumps({"adapted": tokens[0], "base": tokens[1], "refused": reasons}))


if __name__ == "__main__":
    main(*sys.argv[1:])
