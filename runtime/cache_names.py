"""The names of a cache: what a prefill answers beside its logits, and what a decode reads and answers again.

    past_key_values.{i}.key     (B, H_kv, S_g, d)      keys of layer i, in the order in which tokens came
    past_key_values.{i}.value   (B, H_kv, S_g, d)
    past_positions.{g}          (B, S_g) int64         where in the text the rows of group g stand
    past_mask.{g}               (B, S_g) int64         1 at rows that later tokens may see
    ranks.{router}              (B, S, r) int64        what a router chose for the whole sequence; never changes

A static cache has all its rows from the start; where new ones go is an input of the decode too:

    cache_position.{g}          (T,) int64             which rows of group g the new tokens write

An encoder-decoder keeps rows of two kinds: those of its answer's tokens, and those of the encoder, which stay.

    past_cross.{i}.key          (B, H, S, d)           what layer i reads of the encoder's tokens that are kept
    past_cross.{i}.value        (B, H, S, d)
    past_cross_mask             (B, S) int64           1 at those that are real

Every row of an answer is seen by all later ones, and stands at its place: these need no positions and no mask.

A prompt that is read in parts adds, while it lasts,

    past_scores.{gate}          (B, N + 1)             the histogram of a gate on tokens, and how many tokens it saw

A prefill leaves out the positions and the mask of group 0, which are its inputs. Answers hold what stands after the new
tokens under `present.…` instead of `past_key_values.…` or `past_…`. A group is a run of layers that keep the same rows:
one for models whose tokens all stay, one more for every cut.
"""

from __future__ import annotations

from dataclasses import dataclass

LOGITS = "logits"
CROSS_MASK = "past_cross_mask"
#: The two forms of a decoder's cache, as manifests name them: one that grows, one whose size is fixed.
GROWING, STATIC = "dynamic", "static"
#: Files of an exported decoder beside its prefill.
DECODE_FILE, PART_FILE = "decode.onnx", "part.onnx"
MASKS = "past_mask."
#: Where each prompt ends, (B,) int64, as an input of the program that reads parts.
PROMPT_END = "prompt_end"
_PRESENT = "present"


@dataclass(frozen=True)
class CacheLayout:
    """Which rows each layer keeps.

    Attributes:
        groups: of every layer, in order, the number of its group.
    """

    groups: tuple[int, ...]

    @property
    def group_count(self) -> int:
        """G."""
        return max(self.groups) + 1


def key_name(layer: int) -> str:
    """The keys of a layer, as an input."""
    return f"past_key_values.{layer}.key"


def value_name(layer: int) -> str:
    """The values of a layer, as an input."""
    return f"past_key_values.{layer}.value"


def cross_key_name(layer: int) -> str:
    """What a layer of an encoder-decoder reads of the encoder, as an input."""
    return f"past_cross.{layer}.key"


def cross_value_name(layer: int) -> str:
    """Its values, as an input."""
    return f"past_cross.{layer}.value"


def is_cross(name: str) -> bool:
    """Whether an input holds what is read of an encoder."""
    return name.startswith("past_cross")


def is_states(name: str) -> bool:
    """Whether an input or answer of the cache holds keys or values."""
    return name.endswith((".key", ".value"))


def positions_name(group: int) -> str:
    """Positions of a group's rows, as an input."""
    return f"past_positions.{group}"


def mask_name(group: int) -> str:
    """Which of a group's rows are seen, as an input."""
    return f"{MASKS}{group}"


def cache_position_name(group: int) -> str:
    """Where new rows of a group go in a static cache, as an input."""
    return f"cache_position.{group}"


def is_past(name: str) -> bool:
    """Whether an input holds rows of a decoder's cache."""
    return name.startswith("past_") and not is_cross(name) and not is_seen(name)


def group_of(past: str, layout: CacheLayout) -> int:
    """The group of an input that holds rows."""
    number = int(past.split(".")[1])
    return layout.groups[number] if is_states(past) else number


def ranks_name(router: str) -> str:
    """What a router chose, as an answer of the prefill and an input of the decode."""
    return f"ranks.{router}"


def seen_name(gate: str) -> str:
    """The scores that a gate on tokens has seen of a prompt so far, as an input of the program that reads parts."""
    return f"past_scores.{gate}"


def is_seen(name: str) -> bool:
    """Whether an input holds scores that were seen."""
    return name.startswith(seen_name(""))


def present_of(past: str) -> str:
    """The answer's name for an input of the cache."""
    return past.replace("past_key_values", _PRESENT) if "key_values" in past else past.replace("past", _PRESENT)


def past_of(present: str) -> str:
    """The input's name for an answer of the cache."""
    states = present.startswith(f"{_PRESENT}.")
    return present.replace(_PRESENT, "past_key_values" if states else "past", 1)


def is_present(output: str) -> bool:
    """Whether an answer is part of the cache."""
    return output.startswith(_PRESENT)
