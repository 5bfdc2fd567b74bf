"""`fulcrum export`: the weights of a checkpoint as safetensors, with configuration and tokenizer, for other programs.

    checkpoint -- train.checkpoint.read_weights --> our parameters -- llama_layout --> Llama's, config.json  --> out/
    the run's tokenizer -- tokenizer_files --> tokenizer.json, tokenizer_config.json                         --> out/

Hugging Face's Llama computes what our model computes, and so do two of its descendants where the shape differs:
    swiglu             llama    (LlamaForCausalLM)
    swiglu, QK-norm    qwen3    (Qwen3ForCausalLM: RMSNorm of each head's queries and keys before the rotation)
    gelu               arcee    (ArceeForCausalLM: an MLP of two matrices)
Anything else is named and refused; `layout=fulcrum` takes every shape, under our own names.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from data.files import read_json, read_yaml
from data.prepare import Request, cache_folder
from data.records import checkpoint_folder, checkpoints, find_run
from data.shards import Vocabulary
from data.tokenizers import END_OF_TEXT
from optim.plan import plan_of
from train.shape import Shape

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

Json = dict[str, Any]

OUTSIDE_BLOCKS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
IN_BLOCKS = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def export_command(cfg: DictConfig) -> None:
    """Writes what `cfg` asks for and says what it was."""
    for key, what in (("run", "<id or folder of a run>"), ("out", "<folder to make>")):
        if cfg[key] is None:
            raise ValueError(f"export needs {key}={what}, as in fulcrum export run=r0123456789a out=exported.")
    tokens = cfg.tokens
    if tokens is not None and (not isinstance(tokens, int | float) or tokens != int(tokens)):
        raise ValueError(f"tokens={tokens}: the tokens of a checkpoint are a whole number, as in tokens=1048576.")
    run, out = find_run(str(cfg.run), Path(str(cfg.runs))), Path(str(cfg.out))
    print(export(run, out, None if tokens is None else int(tokens), cfg.average, cfg.layout))


def export(run: Path, out: Path, tokens: int | None = None, average: str | None = None, layout: str = "llama") -> str:
    """Writes the weights of the run in `run`, or one of its averages, into the new folder `out`, in float32.

    `tokens`: of the checkpoint; None: the newest. `layout`: llama or fulcrum. Returns a line that says what was
    written. ValueError for what is not there, is damaged, or does not fit the layout; nothing is written then.
    """
    if layout not in ("llama", "fulcrum"):
        raise ValueError(f"layout={layout!r} is unknown: use llama or fulcrum.")
    if out.exists():
        raise ValueError(f"out={out} exists: remove it, or name a folder that does not exist yet.")
    checkpoint = find_checkpoint(run, tokens)
    config, identity = read_yaml(run / "config.yaml"), read_json(run / "run.json")
    if not identity:
        raise ValueError(f"{run} has no run.json, which says how large its vocabulary is: restore it.")
    vocab_size = identity["vocab_size"]
    if not config["model"]["_target_"].endswith(".Shape"):
        raise ValueError(f"run={run}: only transformers are exported, not {config['model']['_target_']}.")
    shape: Shape = instantiate(config["model"], vocab_size=config["model"].get("vocab_size") or vocab_size)
    if layout == "llama":
        architecture(shape)  # what does not fit is said before anything large is read
    if average is not None:
        check_average(config, average, int(checkpoint.name))
    vocabulary = Request(config["data"], config["tokenizer"], cache_folder(config["launch"]["cache"])).vocabulary()
    if vocabulary.fingerprint != identity["tokenizer_fingerprint"]:
        raise ValueError(
            f"{vocabulary.file or 'bytes'} is not the tokenizer of {run} (its fingerprint is {vocabulary.fingerprint}, "
            f"and run.json has {identity['tokenizer_fingerprint']}): restore the text that it was trained on."
        )

    weights = read_checkpoint(checkpoint, shape, average)
    files = tokenizer_files(vocabulary, identity["sequence_length"])
    if layout == "fulcrum":
        settings = {"model": asdict(shape), "vocab_size": vocab_size, "eos": vocabulary.eos}
        kind = "Fulcrum's own names"
    else:
        settings, weights = llama_layout(shape, vocab_size, weights)
        # a document begins after the end of another: what ends one also begins one
        ends = {"bos_token_id": vocabulary.eos, "eos_token_id": vocabulary.eos}
        settings |= {"max_position_embeddings": identity["sequence_length"], **ends}
        files["generation_config.json"] = _json(ends)
        kind = settings["architectures"][0]
        for warning in differences(shape):
            print(f"warning: {warning}", file=sys.stderr)
    files["config.json"] = _json(settings)
    origin = {"run_id": identity["run_id"], "tokens": str(int(checkpoint.name)), "average": average or "none"}
    write(out, files, weights, origin)
    which = f"its average {average}" if average else "its weights"
    parameters = sum(weight.numel() for weight in weights.values())
    return f"{out}: {run.name} at {int(checkpoint.name):,} tokens, {which} as {kind}, {parameters:,} parameters"


# ---------------------------------------------------------------------------------------------------- what is there


def find_checkpoint(run: Path, tokens: int | None) -> Path:
    """The folder of the checkpoint at `tokens`, or of the newest. ValueError names those that there are."""
    there = checkpoints(run)
    if not there:
        raise ValueError(f"{run} has no checkpoint: train it first (`fulcrum train`), or copy its checkpoints there.")
    if tokens is not None and tokens not in there:
        raise ValueError(
            f"tokens={tokens}: {run} has no checkpoint there, but at {', '.join(map(str, there))}. "
            "Use one of these, or leave tokens out for the newest."
        )
    return checkpoint_folder(run, there[-1] if tokens is None else tokens)


def check_average(config: Mapping[str, Any], average: str, tokens: int) -> None:
    """ValueError where the run keeps no such average, or it holds no iterate yet after `tokens` tokens."""
    averages = config["averages"] or {}
    if average not in averages:
        known = ", ".join(averages) or "none"
        raise ValueError(f"average={average} is not kept by this run (it keeps: {known}). Name one, or leave it out.")
    plan = plan_of(config)
    boundaries = np.append(plan.steps().tokens_before, plan.final_tokens)
    weights = instantiate(averages[average]).weights(boundaries)
    if not weights[boundaries[1:] <= tokens].any():
        begins = boundaries[1:][weights > 0].min()
        raise ValueError(
            f"average={average} begins after {begins} tokens, and the checkpoint is at {tokens}: it holds nothing yet. "
            "Use a later checkpoint, or leave average out."
        )


def read_checkpoint(folder: Path, shape: Shape, average: str | None) -> dict[str, Tensor]:
    """The parameters of `train.model.Transformer` by name, or an average of them. ValueError for a damaged file."""
    from train.checkpoint import damage, read_weights

    if problem := damage(folder):
        raise ValueError(f"checkpoint {folder} is damaged ({problem}): name another one with tokens=.")
    flat = read_weights(folder, average)
    sizes = shape.parameters()
    if {name: math.prod(size) for name, size in sizes.items()} != {name: flat[name].numel() for name in flat}:
        raise ValueError(f"{folder} holds another model than config.yaml of its run describes: restore config.yaml.")
    return {name: flat[name].view(size) for name, size in sizes.items()}


# ---------------------------------------------------------------------------------------------------- model


def architecture(shape: Shape) -> tuple[str, str]:
    """`model_type` and class of Hugging Face's model that computes the same. ValueError names what does not fit."""
    if shape.mlp == "gelu" and shape.qk_norm:
        raise ValueError(
            "model.mlp=gelu together with model.qk_norm=true fits no Hugging Face layout. swiglu fits with and without "
            "QK-norm, gelu without. Use layout=fulcrum for plain safetensors under our own names."
        )
    if shape.qk_norm:
        return "qwen3", "Qwen3ForCausalLM"
    if shape.d_model % shape.n_heads:
        raise ValueError(
            f"model.n_heads={shape.n_heads} does not divide model.d_model={shape.d_model}, which Hugging Face's "
            f"configuration refuses without QK-norm. Use layout=fulcrum for plain safetensors under our own names."
        )
    return ("llama", "LlamaForCausalLM") if shape.mlp == "swiglu" else ("arcee", "ArceeForCausalLM")


def differences(shape: Shape) -> list[str]:
    """What a reader of the Llama layout may do otherwise than the model that was trained, as whole sentences."""
    said = []
    if shape.document_mask:
        said.append(
            "model.document_mask=true: the layout has no such mask. The weights are right for one document at a time; "
            "several in one sequence see each other there."
        )
    if shape.mlp == "gelu":
        said.append(
            "model.mlp=gelu: exported as arcee with hidden_act=gelu_pytorch_tanh, which transformers computes exactly. "
            "Programs that know arcee with its own relu2 only refuse it, or compute something else."
        )
    return said


def llama_layout(shape: Shape, vocab_size: int, weights: Mapping[str, Tensor]) -> tuple[Json, dict[str, Tensor]]:
    """config.json and the weights by Hugging Face's names, of the parameters of `train.model.Transformer`.

    The rows of the padding beyond `vocab_size` ids are cut off: there they have logits -inf with us, and no mask there.
    A tied head is left out, as `tie_word_embeddings` says. What muP divides logits and scores by is within the head and
    the queries' gains or matrices; a tied head then differs from the embedding, and is written. ValueError where the
    shape does not fit (`architecture`).
    """
    growth = shape.growth
    tied = shape.tied and growth.width == 1
    model_type, class_name = architecture(shape)
    config = {
        "architectures": [class_name],
        "model_type": model_type,
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.d_head,
        "hidden_act": "silu" if shape.mlp == "swiglu" else "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        # transformers reads the first until version 4, the second since version 5
        "rope_theta": float(shape.rope_base),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(shape.rope_base)},
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({} if shape.qk_norm else {"mlp_bias": False}),
    }
    renamed = {}
    for name in shape.parameters():
        is_row_per_token = name in ("embedding.weight", "head.weight")
        renamed[_llama_name(name)] = weights[name][:vocab_size].clone() if is_row_per_token else weights[name]
        if name.endswith("attention.q_norm.weight" if shape.qk_norm else "attention.q.weight") and growth.head != 1:
            renamed[_llama_name(name)] = weights[name] / math.sqrt(growth.head)
    if growth.width != 1:
        head = weights["embedding.weight" if shape.tied else "head.weight"]
        renamed[_llama_name("head.weight")] = head[:vocab_size] / growth.width
    return config, renamed


def _llama_name(name: str) -> str:
    if in_block := re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name):
        return f"model.layers.{in_block[1]}.{IN_BLOCKS[in_block[2]]}.weight"
    return f"{OUTSIDE_BLOCKS[name.removesuffix('.weight')]}.weight"


# ---------------------------------------------------------------------------------------------------- tokenizer


def tokenizer_files(vocabulary: Vocabulary, sequence_length: int) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json that give the ids that `data.tokenizers.Tokenizer.encode_batch` gives.

    So they truncate, pad and add nothing, and read special tokens spelled out in a text as ordinary text.
    """
    content = json.loads(byte_tokenizer() if vocabulary.file is None else vocabulary.file.read_text("utf-8"))
    content |= {"truncation": None, "padding": None, "post_processor": None}
    (end_of_text,) = [token["content"] for token in content["added_tokens"] if token["id"] == vocabulary.eos]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": sequence_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {"tokenizer.json": _json(content), "tokenizer_config.json": _json(config)}


def byte_tokenizer() -> str:
    """`data.tokenizers.Bytes` as a tokenizer.json: byte-level BPE without merges, its 256 symbols in the bytes' order.

    The symbols are GPT-2's (openai/gpt-2, encoder.py): printable bytes stand for themselves, the others for 256, 257...
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return str(tokenizer.to_str())


# ---------------------------------------------------------------------------------------------------- files


def write(out: Path, files: Mapping[str, str], weights: dict[str, Tensor], origin: dict[str, str]) -> None:
    """Makes the folder `out` with `files` and the weights, in shards beyond 5 GB, or does not make it at all.

    `origin` goes into the weights' metadata.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError

    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was cut off by a kill
    temporary.mkdir(parents=True)
    try:
        save_torch_state_dict(weights, temporary, metadata=origin)
        for name, content in files.items():
            (temporary / name).write_text(content, "utf-8")
        for path in temporary.iterdir():
            shutil.copymode(temporary / next(iter(files)), path)  # safetensors makes files for their owner alone
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(temporary, out)
    except SafetensorError as error:
        raise OSError(f"out={out}: the weights cannot be written ({error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
