"""Branches: runs that go on from a checkpoint of another run, their parent, which joins the sweep.

    overrides of the child --parent_overrides--> overrides of the parent -> its point
    begin(config, parent)   the child's `parent` becomes {run_id, tokens}: what it is, and where it starts
    keep_marks(points)      each parent's launch.checkpoint.marks: the checkpoints that it keeps for good

A child's run_id is made from its parent's, so no run can be its own ancestor. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from data.files import flatten, read_json, read_yaml
from data.records import COMPLETED, DIVERGED, checkpoints

if TYPE_CHECKING:
    from conf.points import Point

NO_PARENT = ["parent.tokens=null", "parent.overrides=[]"]

# weights, optimizer state and sample order depend on these; all else may change where a run branches off
_SAME = ("model", "data", "tokenizer", "sequence_length", "seed", "unique_tokens", "precision", "optimizer._target_")

# ---------------------------------------------------------------------------------------------------- overrides


def parent_overrides(own: Sequence[str], added: Sequence[str]) -> list[str]:
    """The parent's overrides: the child's `own`, which say nothing of `parent`, then those `added` for the parent.

    What is added replaces what the child says of the same key, and of all below it: `schedule=constant` leaves no
    `schedule.decay_fraction`, which the constant schedule would not know.
    """
    replaced = {_key(text) for text in added}
    return [text for text in own if not _lies_below(_key(text), replaced)] + list(added)


def without_parent(overrides: Sequence[str]) -> list[str]:
    """The overrides that are not about `parent`."""
    return [text for text in overrides if not _lies_below(_key(text), {"parent"})]


def quoted(override: str) -> str:
    """The override with quotes where Hydra's grammar wants them and nobody expects it to: around the elements of
    parent.overrides=[key=value,...], and around values that are one interpolation with another in it."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") == "parent.overrides" and value.startswith("[") and value.endswith("]"):
        elements = [text.strip() for text in _elements(value[1:-1])]
        return f"{key}=[{','.join(text if text[0] in _QUOTES else _quote(text) for text in elements if text)}]"
    if "${" in value[2:]:
        value = ",".join(_quote(text) if _is_nested(text) else text for text in _elements(value))
    return key + equals + value


_QUOTES = "'\""


def _quote(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _is_nested(value: str) -> bool:
    return value.startswith("${") and value.endswith("}") and "${" in value[2:]


def _elements(text: str) -> list[str]:
    """`text` cut at the commas that lie in no bracket and no quotes."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if quote or character in _QUOTES:
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not quote:
            found.append("")
        else:
            found[-1] += character
    return found


@cache
def _key(override: str) -> str:
    return OverridesParser.create().parse_override(quoted(override)).key_or_group


def _lies_below(key: str, others: set[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in others)


# ---------------------------------------------------------------------------------------------------- the child


def begin(asked: Mapping[str, Any], parent: Point) -> dict[str, Any]:
    """What a child's configuration says of its `parent`: run_id, and the tokens at the end of one of its steps.

    ValueError where the parent makes no step by the tokens that are `asked` for, or has ended before.
    """
    tokens, plan = asked["tokens"], parent.plan
    if not tokens > 0:
        raise ValueError(f"parent.tokens={tokens}: use a positive number of tokens.")
    start = plan.boundary(tokens)
    if tokens > plan.final_tokens:
        raise ValueError(
            f"parent.tokens={tokens:.15g}: the parent ends after {plan.final_tokens} tokens. Branch off earlier, or "
            "give it a larger total_tokens in parent.overrides."
        )
    if start == plan.start_tokens:
        first = start + plan.at(start).batch_size * plan.sequence_length
        raise ValueError(
            f"parent.tokens={tokens:.15g}: the first step of the parent ends after {first} tokens. Branch off there "
            "or later."
        )
    return {"run_id": parent.run_id, "tokens": start}


def check_same(child: Point, parent: Point) -> None:
    """ValueError with the key where the parent differs in what weights, optimizer or samples depend on."""
    if child.folder.parent != parent.folder.parent:
        raise ValueError(
            f"parent.overrides: the parent would lie in {parent.folder.parent}, its branch in {child.folder.parent}. "
            "Leave launch.runs and launch.experiment to the branch."
        )
    ours, theirs = (dict(flatten(_fixed(point.config))) for point in (child, parent))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{key}={ours.get(key)} in the branch and {theirs.get(key)} in its parent: a branch goes on with the "
                "parent's weights and samples. Use one value for both."
            )


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config["optimizer"]["_target_"] if "." in key else config[key] for key in _SAME}


# ---------------------------------------------------------------------------------------------------- checkpoints


def needs_parent(point: Point) -> bool:
    """Whether a branch has still to be started from its parent's checkpoint: it has none of its own."""
    if not point.parent:
        return False
    status, retry = read_json(point.folder / "summary.json").get("status"), point.config["launch"]["retry"]
    if status == DIVERGED:  # tried again, it starts anew
        return retry == DIVERGED
    return status != COMPLETED and not checkpoints(point.folder)


def keep_marks(points: Sequence[Point]) -> None:
    """Writes into launch.checkpoint.marks of each point what its branches, its own configuration and its record on
    disk ask it to keep. ValueError naming every checkpoint that is wanted and that the run will not write any more."""
    wanted: dict[Path, set[int]] = defaultdict(set)
    missing: dict[tuple[Path, int], None] = {}
    for child in points:
        if child.parent:
            tokens = child.config["parent"]["tokens"]
            wanted[child.parent].add(tokens)
            if needs_parent(child) and _is_past(child.parent, tokens):
                missing[child.parent, tokens] = None
    if missing:
        lines = [
            f"  {run} at {tokens} tokens; it has {', '.join(map(str, checkpoints(run))) or 'none'}"
            for run, tokens in missing
        ]
        raise ValueError(
            "these checkpoints of runs that are past them were not kept; nothing was started.\n" + "\n".join(lines) +
            "\nUse one that is there as parent.tokens, or add a label to parent.overrides (label=again): the parent is "
            "then trained anew and keeps it."
        )  # fmt: skip
    for point in points:
        kept = point.config["launch"]["checkpoint"]
        before = read_yaml(point.folder / "config.yaml").get("launch", {}).get("checkpoint", {}).get("marks", [])
        kept["marks"] = sorted({*kept["marks"], *before, *wanted[point.folder]})


def _is_past(run: Path, tokens: int) -> bool:
    """Whether a run that has no checkpoint after `tokens` will not write one either: it would resume behind it."""
    there = checkpoints(run)
    if tokens in there:
        return False
    return read_json(run / "summary.json").get("status") == COMPLETED or any(later > tokens for later in there)
