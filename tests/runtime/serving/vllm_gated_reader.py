"""Run by an interpreter with vLLM: generate greedily from a folder with gates, through gatefx's plugin.

python vllm_gated_reader.py FOLDER PROMPTS OPTIONS ANSWERS

PROMPTS and OPTIONS (of vllm.LLM) are JSON, lists of ids and a dict; ANSWERS is a file to write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def main(folder: str, prompts: str, options: str, answers: str) -> None:
    """Write the tokens of each prompt."""
    llm = LLM(
        model=folder, dtype="float32", max_model_len=64, skip_tokenizer_init=True, enable_prefix_caching=False,
        **json.loads(options),
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=8, detokenize=False, ignore_eos=True)
    asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in json.loads(prompts)]
    tokens = [list(answer.outputs[0].token_ids) for answer in llm.generate(asked, greedy)]
    Path(answers).write_text(json.dumps(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
