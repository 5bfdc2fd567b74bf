"""Prepares data for runs: `python -m data` reads a JSON list of records from stdin; `fulcrum data` calls `command`.

A record: {run_id, data, tokenizer, cache, verify, sequence_length, unique_tokens, seed}. Every distinct
(data, tokenizer, cache) is prepared once, then each record is held against what is there.
Exit status 1 and `error: ...` lines on stderr where something does not fit.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from data.batches import sample_order
from data.prepare import NotPrepared, Prepared, cache_folder, prepare
from data.records import end_with_parent


def check_fits(prepared: Prepared, sequence_length: int) -> None:
    """Raises ValueError where a split is too short for one sequence and the token after it."""
    for split, sources in (("training", prepared.sources), ("held-out", prepared.heldout)):
        for name, tokens in sources.items():
            if sequence_length + 1 > tokens.n_tokens:
                raise ValueError(
                    f"sequence_length={sequence_length} needs {sequence_length + 1} tokens, and the {split} split of "
                    f"data.sources.{name} has {tokens.n_tokens}. Use sequence_length <= {tokens.n_tokens - 1}, "
                    "more text, or another data.heldout"
                )


def problems(records: Sequence[Mapping[str, Any]], make: bool = True) -> dict[str, list[str]]:
    """Prepares what the records need, each distinct data once: error -> the runs that have it.

    Where not `make`, nothing is prepared: NotPrepared where something would be.
    """
    prepared: dict[str, Prepared | ValueError] = {}
    errors: dict[str, list[str]] = {}
    for record in records:
        key = json.dumps([record[field] for field in ("data", "tokenizer", "cache")], sort_keys=True)
        try:
            if key not in prepared:
                try:
                    cache = cache_folder(record["cache"])
                    prepared[key] = prepare(
                        record["data"], record["tokenizer"], cache, verify=record["verify"] and make, make=make
                    )
                except NotPrepared:
                    raise
                except ValueError as error:
                    prepared[key] = error
            found = prepared[key]
            if isinstance(found, ValueError):
                raise found
            check_fits(found, record["sequence_length"])
            order = sample_order(found, record["sequence_length"], record["seed"], record["unique_tokens"])
            if record["largest_batch"] > sum(order.unique):
                raise ValueError(
                    f"ramp: the largest batch has {record['largest_batch']} sequences, the data {sum(order.unique)}: a "
                    "step would hold a sequence twice. Use a smaller batch, ramp.max_batch_size, or more data"
                )
        except NotPrepared:
            raise
        except ValueError as error:
            errors.setdefault(str(error), []).append(record["run_id"])
    return errors


def main() -> int:
    """Prepares what the records on stdin need. Returns the exit status."""
    end_with_parent()
    errors = problems(json.load(sys.stdin))
    for message, runs in errors.items():
        print(f"error: {message} ({', '.join(runs)})", file=sys.stderr)
    return 1 if errors else 0


def command(cfg: Mapping[str, Any]) -> None:
    """What `fulcrum data` runs: prepares `data` with `tokenizer` in `launch.cache` and prints what is there."""
    if cfg.get("dry_run"):
        raise ValueError(
            "dry_run=true: `fulcrum data` has no dry run; leave it out, or use `fulcrum train dry_run=true`."
        )
    launch = cfg.get("launch") or {}
    cache = cache_folder(launch.get("cache"))
    prepared = prepare(cfg["data"], cfg["tokenizer"], cache)
    print(table(prepared))
    if cfg.get("sequence_length"):
        check_fits(prepared, cfg["sequence_length"])


def table(prepared: Prepared) -> str:
    """The summary as text; the folders follow in full, for copying."""
    header = ("source", "split", "documents", "tokens", "bytes/token", "shards", "unigram nats/token", "fingerprint")
    rows = [header] + [
        (
            row["source"], row["split"], f"{row['documents']:,}", f"{row['tokens']:,}", f"{row['bytes_per_token']:.3f}",
            str(row["shards"]), f"{row['unigram_loss']:.4f}" if row["unigram_loss"] else "", row["fingerprint"][:12],
        )
        for row in prepared.summary()
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if 2 <= i <= 6 else cell.ljust(width) for i, (cell, width) in enumerate(cells)
        ).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    folders = [f"{name}: {tokens.folder}" for name, tokens in prepared.sources.items()]
    tokenizer = prepared.tokenizer_file or "bytes"
    vocabulary = f"tokenizer: {tokenizer}, vocabulary {prepared.vocab_size}, end of text {prepared.eos}"
    return "\n".join([*lines, *folders, vocabulary])


if __name__ == "__main__":
    sys.exit(main())
