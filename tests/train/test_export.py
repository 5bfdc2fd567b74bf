"""Exported weights in the hands of `transformers`: the same logits and the same ids. Nothing asks the network."""

import importlib
import json
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, load_model

from conf.points import expand
from data.files import write_json
from data.prepare import open_prepared, prepare
from data.records import latest_row, write_once
from data.shards import Vocabulary
from data.tokenizers import BPE, Bytes, load
from fulcrum import COMMANDS
from train import checkpoint
from train.export import (
    architecture,
    byte_tokenizer,
    check_average,
    export,
    export_command,
    find_checkpoint,
    find_run,
    llama_layout,
    tokenizer_files,
    write,
)
from train.model import Transformer, initialize
from train.run import held_out_batches
from train.shape import Shape

SHAPE = Shape(d_model=16, n_layers=2, n_heads=4, d_ff=24, vocab_size=50, rope_base=500.0)
SHAPES = {
    "llama": SHAPE,
    "grouped": replace(SHAPE, n_kv_heads=2),
    "tied": replace(SHAPE, tied=True, n_kv_heads=1),
    "wide_heads": replace(SHAPE, head_dim=10),
    "masked": replace(SHAPE, document_mask=True),
    "qk_norm": replace(SHAPE, qk_norm=True, n_kv_heads=2),
    "qk_norm_tied_odd_heads": replace(SHAPE, qk_norm=True, tied=True, n_heads=3, n_kv_heads=1, head_dim=6),
    "gelu": replace(SHAPE, mlp="gelu", n_kv_heads=2),
    "gelu_tied_wide_heads": replace(SHAPE, mlp="gelu", tied=True, head_dim=6),
    "no_padding": replace(SHAPE, vocab_size=128),
    "mup": replace(SHAPE, parametrization="mup", base_width=6, base_head_dim=3),
    "mup_qk_norm_tied": replace(SHAPE, parametrization="mup", base_width=4, base_head_dim=1, qk_norm=True, tied=True),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[None]:
    asked = []

    def refuse(_: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []


def build(shape, vocab_size=None):
    """A model whose every parameter is far from where it starts: gains too."""
    model = Transformer(shape, vocab_size or shape.vocab_size)
    initialize(model, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
        if not shape.tied:
            model.embedding.weight *= 0.003  # so small that the first norms tell their epsilon
    return model


def opened(folder):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), "every parameter is there, and nothing else"
    return model


def written(shape, vocab_size, folder):
    config, weights = llama_layout(shape, vocab_size, dict(build(shape, vocab_size).named_parameters()))
    write(folder, {"config.json": json.dumps(config)}, weights, {})
    return config


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits(tmp_path, name):
    shape = SHAPES[name]
    config = written(shape, shape.vocab_size, tmp_path / "out")
    tokens = torch.randint(0, shape.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    theirs = opened(tmp_path / "out")
    assert theirs.config.model_type == config["model_type"]
    assert theirs.dtype == torch.float32
    ours = build(shape)(tokens)[..., : shape.vocab_size]
    assert ours.abs().max() > 1
    assert theirs(tokens).logits.shape == ours.shape
    assert (theirs(tokens).logits - ours).abs().max() < 1e-5 * ours.abs().max()


@torch.no_grad()
def test_ids_that_are_never_predicted_are_cut_off(tmp_path):
    """A model may have rows for more ids than the tokenizer gives; beyond those its logits are -inf."""
    shape = replace(SHAPE, vocab_size=200)
    written(shape, 50, tmp_path / "out")
    tokens = torch.arange(50)[None]
    theirs = opened(tmp_path / "out")(tokens).logits
    assert theirs.shape[-1] == 50
    torch.testing.assert_close(theirs, build(shape, 50)(tokens)[..., :50], rtol=1e-5, atol=1e-5)


def test_large_weights_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", small_shards)
    written(SHAPE, 50, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert opened(tmp_path / "out").num_parameters() == SHAPE.N + 2 * 50 * SHAPE.d_model


def small_shards(weights, folder, metadata):
    from huggingface_hub.serialization import save_torch_state_dict

    save_torch_state_dict(weights, folder, metadata=metadata, max_shard_size=5000)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (replace(SHAPE, mlp="gelu", qk_norm=True), ("model.mlp=gelu", "model.qk_norm=true", "layout=fulcrum")),
        (
            replace(SHAPE, n_heads=3, n_kv_heads=3, head_dim=6),
            ("model.n_heads=3", "layout=fulcrum"),
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_named(shape, names):
    with pytest.raises(ValueError) as refused:
        architecture(shape)
    for name in names:
        assert name in str(refused.value)


@pytest.mark.parametrize("largest", [4096, 40_000])
def test_a_disk_that_is_full_is_said_and_leaves_nothing_behind(tmp_path, largest):
    _, weights = llama_layout(SHAPE, 50, dict(build(SHAPE).named_parameters()))
    (tmp_path / ".out.tmp").mkdir()  # an export that was killed
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        with pytest.raises(OSError, match=r"out=.* the weights cannot be written" if largest == 4096 else "large"):
            write(tmp_path / "out", {"config.json": "x" * 50_000}, weights, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- tokenizer

TEXTS = [
    "",
    "Hello, world!\n\n\tdef f(x):  return x",
    "naïve 日本語 🙂 \x00\x7f",
    " a <|endoftext|> b ",
    "'ll we've   ",
]


def ids_of(tokenizer, text):
    return tokenizer(text)["input_ids"]


def exported_tokenizer(vocabulary, folder, files=None):
    from transformers import AutoTokenizer

    folder.mkdir()
    for name, content in (files or tokenizer_files(vocabulary, 64)).items():
        (folder / name).write_text(content, "utf-8")
    # as it lies in an export: beside a model's configuration
    (folder / "config.json").write_text(json.dumps(llama_layout(SHAPE, 50, dict(build(SHAPE).named_parameters()))[0]))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def bytes_exported(tmp_path_factory):
    return exported_tokenizer(Vocabulary(None, "", 257, 256), tmp_path_factory.mktemp("bytes") / "out")


def test_the_byte_tokenizer_has_every_byte_and_the_end_of_text(bytes_exported):
    from tokenizers.pre_tokenizers import ByteLevel

    content = json.loads(byte_tokenizer())
    assert set(content["model"]["vocab"]) == set(ByteLevel.alphabet())
    assert sorted(content["model"]["vocab"].values()) == list(range(256))
    assert len(bytes_exported) == 257 and bytes_exported.eos_token_id == 256


@given(st.one_of(st.sampled_from(TEXTS), st.text()))
def test_the_byte_tokenizer_gives_our_ids(bytes_exported, text):
    (ours,) = Bytes().encode_batch([text.encode("utf-8", "replace").decode()])
    assert ids_of(bytes_exported, text) == ours.tolist()


@given(st.lists(st.integers(0, 256)))
def test_the_byte_tokenizer_decodes_any_bytes_as_we_do(bytes_exported, ids):
    assert bytes_exported.decode(ids, skip_special_tokens=True) == Bytes().decode(ids)


def files_of_tokenizers(folder):
    """A BPE as ours is trained; and one that truncates, pads and adds a beginning, as downloaded ones do."""
    from tokenizers import Tokenizer, processors

    plain = folder / "plain.json"
    plain.write_text(BPE(vocab_size=300).make(TEXTS * 20))
    changed = Tokenizer.from_file(str(plain))
    changed.add_special_tokens(["<s>"])
    changed.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 300)])
    changed.enable_truncation(4)
    changed.enable_padding(length=32)
    changed.save(str(folder / "changed.json"))
    return {"plain": plain, "changed": folder / "changed.json"}


@pytest.mark.filterwarnings("ignore:tokenizer.vocab_size")
@pytest.mark.parametrize("kind", ["plain", "changed"])
def test_a_tokenizer_file_gives_our_ids(tmp_path, kind):
    file = files_of_tokenizers(tmp_path)[kind]
    ours = load(file)
    theirs = exported_tokenizer(Vocabulary(file, "", ours.vocab_size, ours.eos), tmp_path / "out")
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eos and len(theirs) == ours.vocab_size
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert ids_of(theirs, text) == ids.tolist()
        assert theirs.decode([*ids.tolist(), ours.eos], skip_special_tokens=True) == text


# ---------------------------------------------------------------------------------------------------- what is there


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the one point of these tests lies once it is trained, and what it is."""
    return tmp_path_factory.mktemp("kept") / "run", []


@pytest.fixture
def run(hydra_conf, tiny, life, kept, tmp_path):
    """A trained point with four checkpoints; each test has its own copy."""
    folder, points = kept
    if not points:
        (point,) = expand([[*tiny, "+averages.tail={_target_:optim.averaging.Tail,start:0.5}", *CHECKPOINTS]])
        prepare(point.config["data"], point.config["tokenizer"], Path(point.config["launch"]["cache"]))
        point.folder.mkdir(parents=True)
        (point.folder / "config.yaml").write_text(yaml.safe_dump(point.config))
        status, trained = life(point)
        assert status == "completed"
        write_once(point.folder, trained.identity)
        (point.folder / "checkpoints" / "000000008000").mkdir()  # as a kill leaves it: without a manifest
        shutil.copytree(point.folder, folder)
        points.append(point)
    (point,) = points
    own = tmp_path / "runs" / "default" / point.run_id
    return replace(point, folder=shutil.copytree(folder, own, dirs_exist_ok=True))


CHECKPOINTS = ["launch.checkpoint.every_tokens=1600", "launch.checkpoint.keep=9"]
SAVED_AT = [1728, 3264, 4800, 6400]  # the ends of the first steps of 192 tokens beyond multiples of 1600


def weights_at(run, tokens, average=None):
    """The weights of a checkpoint, by our names."""
    flat = checkpoint.read_weights(run.folder / "checkpoints" / f"{tokens:012d}", average)
    return {name: flat[name].view(size) for name, size in run.shape.parameters().items()}


@torch.no_grad()
@pytest.mark.parametrize("average", [None, "tail"])
def test_the_exported_model_has_the_loss_that_the_run_recorded(run, tmp_path, average):
    export(run.folder, tmp_path / "out", average=average)
    model = opened(tmp_path / "out")
    prepared = open_prepared(run.config["data"], run.config["tokenizer"], Path(run.config["launch"]["cache"]))
    ((data, samples),) = held_out_batches(prepared, run.config["eval"]["tokens"], 32, False).values()
    (batch,) = data.micro_batches(0, samples, 0, 1, samples)
    logits = model(torch.from_numpy(batch.tokens)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    recorded = latest_row(run.folder)["eval_loss_tail" if average else "eval_loss"]
    assert loss.item() == pytest.approx(recorded, rel=1e-5)


@torch.no_grad()
def test_a_run_is_exported_whole(run, tmp_path):
    from safetensors import safe_open
    from transformers import AutoTokenizer

    out = tmp_path / "new" / "out"
    line = export(run.folder, out)
    assert run.run_id in line and "6,400 tokens" in line and "Qwen3ForCausalLM" in line
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names and [out] == list(out.parent.iterdir())
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "the weights are as readable as the rest"
    tokenizer, model = AutoTokenizer.from_pretrained(out), opened(out)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 32
    assert model.config.vocab_size == len(tokenizer) == 257
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 256
    written = model.generate(max_new_tokens=3, do_sample=False)
    assert written[0, 0] == 256, "without a prompt it begins where a document ends, as in training"
    with safe_open(out / "model.safetensors", "pt") as file:
        origin = file.metadata()
    assert (origin["run_id"], origin["tokens"], origin["average"]) == (run.run_id, "6400", "none")


def test_a_checkpoint_and_an_average_are_chosen(run, tmp_path):
    differing = []
    for tokens, average in ((3264, None), (6400, None), (6400, "tail")):
        export(run.folder, tmp_path / f"{tokens}{average}", tokens, average, layout="fulcrum")
        found = load_file(tmp_path / f"{tokens}{average}" / "model.safetensors")
        for name, weight in weights_at(run, tokens, average).items():
            assert torch.equal(found[name], weight)
        differing.append(found["head.weight"])
    assert len({float(weight.norm()) for weight in differing}) == 3


def test_our_own_layout_says_what_model_it_is(run, tmp_path):
    export(run.folder, tmp_path / "out", layout="fulcrum")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model"] == asdict(run.shape) and config["eos"] == 256
    model = Transformer(Shape(**config["model"]), config["vocab_size"])
    load_model(model, tmp_path / "out" / "model.safetensors")
    for name, weight in weights_at(run, 6400).items():
        assert torch.equal(model.get_parameter(name), weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 2000}, "tokens=2000: .* at 1728, 3264, 4800, 6400"),
        ({"tokens": 8000}, "tokens=8000"),
        ({"average": "tale"}, "average=tale is not kept by this run .*tail"),
        ({"tokens": 1728, "average": "tail"}, "average=tail begins after 3264 tokens, and the checkpoint is at 1728"),
        ({"layout": "lama"}, "layout='lama' is unknown: use llama or fulcrum"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(run, tmp_path, arguments, message):
    assert [int(path.parent.name) for path in sorted(run.folder.glob("checkpoints/*/manifest.json"))] == SAVED_AT
    with pytest.raises(ValueError, match=message):
        export(run.folder, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"out=.* exists"):
        export(run.folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_checkpoint_is_not_exported(run, tmp_path):
    path = next((run.folder / "checkpoints" / "000000006400").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"000000006400 is damaged .*{path.name} differs"):
        export(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(run.folder, tmp_path / "out", 4800)
    assert (tmp_path / "out").exists()


def test_another_model_than_the_checkpoints_is_refused(run, tmp_path):
    config = run.config | {"model": run.config["model"] | {"d_ff": 40}}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="holds another model"):
        export(run.folder, tmp_path / "out")


def test_another_tokenizer_than_the_runs_is_refused(run, tmp_path):
    identity = json.loads((run.folder / "run.json").read_text())
    write_json(run.folder / "run.json", identity | {"tokenizer_fingerprint": "another"})
    with pytest.raises(ValueError, match="is not the tokenizer"):
        export(run.folder, tmp_path / "out")


def test_a_document_mask_is_warned_of(run, tmp_path, capsys):
    config = run.config | {"model": run.config["model"] | {"document_mask": True}}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    export(run.folder, tmp_path / "out")
    assert "warning: model.document_mask=true" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint"):
        find_checkpoint(tmp_path, None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run": None}, "export needs run="),
        ({"out": None}, "export needs out="),
        ({"tokens": 3264.5}, "tokens=3264.5"),
        ({"run": "r00"}, "run=r00"),
    ],
)
def test_the_command_says_what_it_needs(tmp_path, changed, message):
    given = {"run": "r0", "runs": str(tmp_path), "tokens": None, "average": None, "layout": "llama", "out": "out"}
    with pytest.raises(ValueError, match=message):
        export_command(OmegaConf.create(given | changed))


def test_the_command_exports(run, tmp_path, capsys):
    config_name, module, function, _ = COMMANDS["export"]
    given = [f"run={run.run_id}", f"runs={tmp_path}/runs", f"out={tmp_path}/out", "tokens=3.264e3", "average=tail"]
    getattr(importlib.import_module(module), function)(compose(config_name, given))
    assert "3,264 tokens, its average tail" in capsys.readouterr().out
    assert (tmp_path / "out" / "config.json").exists()


def test_an_average_has_begun_with_the_first_step_that_counts(run):
    check_average(run.config, "tail", 3264)
    with pytest.raises(ValueError, match="average=tail begins after 3264 tokens"):
        check_average(run.config, "tail", 3072)


def test_a_run_is_found_by_its_id_or_its_folder(tmp_path):
    folder = tmp_path / "first" / "r123"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    assert find_run("r123", tmp_path) == find_run(str(folder), tmp_path / "nowhere") == folder
    with pytest.raises(ValueError, match=r"run=r124: no such run below .*nearest are r123"):
        find_run("r124", tmp_path)
    folder.rename(folder.parent / "r124")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ValueError, match=r"run=r124 lies in .*first.* and .*second"):
        find_run("r124", tmp_path)
