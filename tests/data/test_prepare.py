"""Preparation: the split, determinism, interruption, change, tokenizers and errors."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import data.__main__
import data.shards
from data import tokenizers
from data.prepare import Request, default_cache, open_prepared, prepare
from data.tokenizers import load, vocab_size_of
from data.tokens import Tokens

BYTES = {"_target_": "data.tokenizers.Bytes"}
BPE = {"_target_": "data.tokenizers.BPE", "vocab_size": 300}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(data.shards, "SMALLEST_CHUNK", 2000)


def write(path, documents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))


def config(folder, heldout=0.1, **more):
    return {
        "sources": {"here": {"_target_": "data.sources.Files", "paths": f"{folder}/*.jsonl"}},
        "heldout": heldout,
    } | more


def sentences(n, seed=0):
    draw = np.random.default_rng(seed)
    words = ["the", "law", "of", "loss", "scales", "with", "tokens", "and", "size", "\u00e9t\u00e9", "\n"]
    return [f"{i} " + " ".join(draw.choice(words, 12)) for i in range(n)]


def texts_of(prepared, split):
    tokens = (prepared.sources if split == "train" else prepared.heldout)["here"]
    stream, tokenizer = tokens.read(0, tokens.n_tokens), load(prepared.tokenizer_file)
    ends = np.flatnonzero(stream == prepared.eos)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return [tokenizer.decode(stream[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tokenizer", [BYTES, BPE])
def test_every_document_comes_back_in_order_with_its_end_of_text(tmp_path, tokenizer):
    documents = sentences(200)
    write(tmp_path / "a.jsonl", documents)
    prepared = prepare(config(tmp_path), tokenizer, tmp_path / "cache", processes=1)
    train, held = texts_of(prepared, "train"), texts_of(prepared, "heldout")
    assert sorted(train + held) == sorted(documents)
    assert train == [text for text in documents if text in set(train)]
    assert len(train) == prepared.sources["here"].n_documents
    assert prepared.heldout["here"].text_bytes == sum(len(text.encode()) for text in held)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(40)), copies=st.lists(st.integers(0, 39), max_size=20))
def test_heldout_documents_depend_on_neither_order_nor_duplicates(tmp_path_factory, order, copies):
    folder, documents = tmp_path_factory.mktemp("split"), sentences(40)
    write(folder / "one" / "a.jsonl", documents)
    write(folder / "two" / "a.jsonl", [documents[i] for i in [*order, *copies]])
    one, two = (prepare(config(folder / name, 0.3), BYTES, folder / "cache", processes=1) for name in ("one", "two"))
    assert set(texts_of(one, "heldout")) == set(texts_of(two, "heldout"))
    assert not set(texts_of(two, "heldout")) & set(texts_of(two, "train"))


def test_heldout_share_is_about_what_was_asked(tmp_path):
    write(tmp_path / "a.jsonl", sentences(2000))
    held = prepare(config(tmp_path, 0.1), BYTES, tmp_path / "cache", processes=1).heldout["here"].n_documents
    assert 150 < held < 250  # 200 +- 3.7 standard deviations


def test_shards_are_the_same_for_one_and_two_processes(tmp_path):
    write(tmp_path / "a.jsonl", sentences(300))
    one = prepare(config(tmp_path), BPE, tmp_path / "one", processes=1)
    two = prepare(config(tmp_path), BPE, tmp_path / "two", processes=2)
    assert len(one.sources["here"].shards) > 3
    assert contents(one.sources["here"].folder) == contents(two.sources["here"].folder)
    assert one.fingerprint == two.fingerprint and one.heldout_fingerprint == two.heldout_fingerprint


KILLED = """
import json, sys, time
import data.shards, data.sources
from pathlib import Path
from data.prepare import prepare
data.shards.SMALLEST_CHUNK = 2000
rows = data.sources._json_rows
def slow(path, stream):
    for row in rows(path, stream):
        time.sleep(0.003)
        yield row
data.sources._json_rows = slow
prepare(json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]), processes=2)
"""


def test_killed_preparation_resumes_to_identical_files(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", sentences(600))
    asked = config(tmp_path)
    undisturbed = prepare(asked, BYTES, tmp_path / "one", processes=1).sources["here"].folder
    command = [sys.executable, "-c", KILLED, json.dumps(asked), json.dumps(BYTES), str(tmp_path / "two")]
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    folder = tmp_path / "two" / "tokens" / undisturbed.name
    while len(finished := list(folder.glob("chunk-*.json"))) < 3:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / "manifest.json").exists()
    (folder / "train-00009-0.bin.1.tmp").write_bytes(b"left behind")
    kept = {path: path.stat().st_ino for path in finished}

    resumed = prepare(asked, BYTES, tmp_path / "two", processes=1).sources["here"].folder
    assert contents(resumed) == contents(undisturbed)
    assert kept == {path: path.stat().st_ino for path in finished}, "finished chunks were written again"
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the killed process"
        time.sleep(0.05)


def test_damaged_finished_chunk_is_not_taken_over_on_resume(tmp_path):
    write(tmp_path / "a.jsonl", sentences(300))
    folder = prepare(config(tmp_path), BYTES, tmp_path / "cache", processes=1).sources["here"].folder
    before = contents(folder)
    (folder / "manifest.json").unlink()
    shard = sorted(folder.glob("train-*.bin"))[1]
    shard.write_bytes(bytes(shard.stat().st_size))
    prepare(config(tmp_path), BYTES, tmp_path / "cache", processes=1)
    assert contents(folder) == before


@pytest.mark.parametrize("tokenizer", [BYTES, BPE])
def test_edited_source_is_prepared_again_under_a_live_reader(tmp_path, tokenizer):
    documents = sentences(300)
    write(tmp_path / "a.jsonl", documents)
    first = prepare(config(tmp_path), tokenizer, tmp_path / "cache", processes=1)
    tokens = first.sources["here"]
    before = tokens.read(0, tokens.n_tokens)
    time.sleep(0.01)
    documents[150] += " edited, so that a trained tokenizer learns other merges" * 20
    write(tmp_path / "a.jsonl", documents)
    second = prepare(config(tmp_path), tokenizer, tmp_path / "cache", processes=1)
    assert second.fingerprint != first.fingerprint
    assert sorted(texts_of(second, "train") + texts_of(second, "heldout")) == sorted(documents)
    np.testing.assert_array_equal(tokens.read(0, tokens.n_tokens), before)
    tokens.document_ids(np.array([0]), tokens.n_tokens)  # index files are opened late, and must still be there
    fresh = prepare(config(tmp_path), tokenizer, tmp_path / "other", processes=1)
    assert fresh.fingerprint == second.fingerprint
    assert fresh.tokenizer_fingerprint == second.tokenizer_fingerprint


def test_folder_keeps_two_generations_and_no_more(tmp_path):
    documents, generations = sentences(300), []
    for edit in range(4):
        documents[0] = f"edit {edit}"
        write(tmp_path / "a.jsonl", documents)
        os.utime(tmp_path / "a.jsonl", ns=(edit, edit))
        folder = prepare(config(tmp_path), BYTES, tmp_path / "cache", processes=1).sources["here"].folder
        generations.append({shard["file"] for shard in Tokens(folder, "train").shards})
    there = {path.name for path in folder.glob("train-*.bin")}
    assert there == generations[-1] | generations[-2]


def test_touched_but_equal_source_rewrites_no_shard(tmp_path):
    write(tmp_path / "a.jsonl", sentences(300))
    first = prepare(config(tmp_path), BPE, tmp_path / "cache", processes=1)
    shards = {path: path.stat().st_ino for path in first.sources["here"].folder.glob("*.bin")}
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    second = prepare(config(tmp_path), BPE, tmp_path / "cache", processes=1)
    assert (second.fingerprint, second.tokenizer_fingerprint) == (first.fingerprint, first.tokenizer_fingerprint)
    assert shards == {path: path.stat().st_ino for path in second.sources["here"].folder.glob("*.bin")}


def test_second_call_reads_no_text(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", sentences(100))
    prepare(config(tmp_path), BPE, tmp_path / "cache", processes=1)
    monkeypatch.setattr("data.sources.Files.documents", lambda self: pytest.fail("read again"))
    prepare(config(tmp_path), BPE, tmp_path / "cache", processes=1)


def test_concurrent_preparations_wait_for_one_another(tmp_path):
    write(tmp_path / "a.jsonl", sentences(150))
    command = [sys.executable, "-c", KILLED, json.dumps(config(tmp_path)), json.dumps(BYTES), str(tmp_path / "cache")]
    start = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **start) for _ in range(2)]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    assert sorted("prepared here" in error for error in errors) == [False, True], errors


def test_open_prepared_needs_no_raw_text_and_says_how_to_prepare(tmp_path):
    write(tmp_path / "text" / "a.jsonl", sentences(100))
    asked = config(tmp_path / "text")
    for tokenizer in (BYTES, BPE):
        with pytest.raises(ValueError, match=r"not prepared.*fulcrum data"):
            open_prepared(asked, tokenizer, tmp_path / "cache")
    made = prepare(asked, BPE, tmp_path / "cache", processes=1)
    (tmp_path / "text" / "a.jsonl").unlink()
    assert open_prepared(asked, BPE, tmp_path / "cache").fingerprint == made.fingerprint


def test_damaged_tokenizer_is_named_and_made_again(tmp_path):
    write(tmp_path / "a.jsonl", sentences(100))
    made = prepare(config(tmp_path), BPE, tmp_path / "cache", processes=1)
    made.tokenizer_file.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing or damaged"):
        open_prepared(config(tmp_path), BPE, tmp_path / "cache")
    again = prepare(config(tmp_path), BPE, tmp_path / "cache", processes=1)
    assert again.tokenizer_fingerprint == made.tokenizer_fingerprint


def test_weights_are_shares_of_tokens_unless_given(tmp_path):
    write(tmp_path / "a.jsonl", sentences(300))
    write(tmp_path / "b.jsonl", sentences(100, seed=1))
    sources = {name: {"_target_": "data.sources.Files", "paths": f"{tmp_path}/{name}.jsonl"} for name in "ab"}
    by_size = prepare({"sources": sources, "heldout": 0.1}, BYTES, tmp_path / "cache", processes=1)
    tokens = {name: by_size.sources[name].n_tokens for name in "ab"}
    assert by_size.weights == {name: tokens[name] / sum(tokens.values()) for name in "ab"}
    given_weights = {"sources": sources, "heldout": 0.1, "weights": {"a": 1, "b": 3}}
    assert prepare(given_weights, BYTES, tmp_path / "cache").weights == {"a": 0.25, "b": 0.75}
    held = by_size.heldout
    expected = sum(t.manifest["unigram_loss"] * by_size.weights[name] for name, t in held.items())
    assert by_size.unigram_loss == pytest.approx(expected)
    assert [(row["source"], row["split"]) for row in by_size.summary()] == [
        ("a", "train"), ("a", "heldout"), ("b", "train"), ("b", "heldout"),
    ]  # fmt: skip


def test_unigram_loss_is_the_cross_entropy_of_the_smoothed_counts(tmp_path):
    write(tmp_path / "a.jsonl", sentences(200))
    prepared = prepare(config(tmp_path), BYTES, tmp_path / "cache", processes=1)
    train, held = (tokens["here"].read(0, tokens["here"].n_tokens) for tokens in (prepared.sources, prepared.heldout))
    log_p = {t: np.log((np.sum(train == t) + 1) / (len(train) + 257)) for t in np.unique(held).tolist()}
    assert prepared.unigram_loss == pytest.approx(-np.mean([log_p[t] for t in held.tolist()]), rel=1e-12)
    held_bytes = prepared.heldout["here"].text_bytes
    assert prepared.bytes_per_token_by_source["here"] == held_bytes / len(held)


def test_text_in_memory_is_bounded_by_chunks_in_flight(monkeypatch):
    class Endless:
        read = 0

        def documents(self):
            while True:
                Endless.read += 1
                yield f"{Endless.read:0100d}"

    written = []

    def write_slowly(chunk):
        written.append(chunk.number)
        return chunk.number

    monkeypatch.setattr(data.shards, "LARGEST_CHUNK", 3000)
    chunks = data.shards.chunks_of(Endless(), 0.1, "")
    sizes = [sum(len(raw) for raw, _ in next(chunks).documents) for _ in range(200)]
    assert max(sizes) < 3000 + 100  # a chunk ends with the document that fills it
    before = Endless.read
    results = data.shards._map(write_slowly, chunks, 1)
    next(results)
    assert Endless.read - before <= 31 and len(written) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heldout": 0}, r"data\.heldout=0 "),
        ({"heldout": 1e-9}, r"data\.heldout=1e-09 leaves the heldout split without any\. Raise"),
        ({"heldout": 1 - 1e-9}, r"leaves the train split without any\. Lower"),
        ({"sources": {}}, r"data\.sources is empty"),
        ({"weights": {"there": 1}}, r"data\.weights=.*here"),
        ({"weights": {"here": -1}}, r"data\.weights="),
        ({"holdout": 0.1}, r"data\.holdout is not known"),
        ({"sources": {"a/b": {"_target_": "data.sources.Stdlib"}}}, r"data\.sources\.a/b"),
        ({"sources": {"x": {"_target_": "data.sources.Files", "paths": "???"}}}, r"data\.sources\.x\.paths: .*value"),
        (
            {"sources": {"x": {"_target_": "data.sources.Files", "paths": "/nowhere/*"}}},
            r"data\.sources\.x: paths='/nowhere",
        ),
        ({"sources": {"x": {"_target_": "data.sources.Files", "path": "a"}}}, r"data\.sources\.x: .*path"),
    ],
)
def test_bad_configuration_names_key_value_and_fix(tmp_path, change, message):
    write(tmp_path / "a.jsonl", sentences(20))
    with pytest.raises(ValueError, match=message):
        prepare(config(tmp_path) | change, BYTES, tmp_path / "cache", processes=1)


@pytest.mark.parametrize("lines", ["", '{"text": ""}\n{"text": null}\n'])
def test_source_without_documents_is_refused(tmp_path, lines):
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=r"data\.sources\.here has no documents"):
        prepare(config(tmp_path), BYTES, tmp_path / "cache", processes=1)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE])
@pytest.mark.parametrize("processes", [1, 2])
def test_bad_line_is_named_with_its_source(tmp_path, tokenizer, processes):
    write(tmp_path / "a.jsonl", sentences(100))
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"data\.sources\.here: paths: .*b\.jsonl, line 1"):
        prepare(config(tmp_path), tokenizer, tmp_path / "cache", processes=processes)


def test_lone_surrogates_become_question_marks(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"text": "{i} \\ud800"}}' for i in range(40)))
    for tokenizer in (BYTES, BPE):
        with pytest.warns(UserWarning) if tokenizer is BPE else pytest.MonkeyPatch.context():
            prepared = prepare(config(tmp_path, 0.3), tokenizer, tmp_path / "cache", processes=1)
        assert sorted(texts_of(prepared, "train") + texts_of(prepared, "heldout")) == sorted(
            f"{i} ?" for i in range(40)
        )


# tokenizers


def special(names, letters="abcde"):
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.add_special_tokens(list(names))
    return tokenizer


@pytest.mark.parametrize("name", ["</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"])
def test_file_tokenizer_finds_its_end_of_text(tmp_path, name):
    special(["<pad>", name]).save(str(tmp_path / "t.json"))
    file = {"_target_": "data.tokenizers.File", "path": str(tmp_path / "t.json")}
    write(tmp_path / "a.jsonl", ["abc", "cab", "bac", "aabb", "ccaa", name])
    prepared = prepare(config(tmp_path, 0.5), file, tmp_path / "cache", processes=1)
    assert (prepared.eos, prepared.vocab_size, vocab_size_of(file)) == (6, 7, 7)
    both = [tokens["here"].read(0, tokens["here"].n_tokens) for tokens in (prepared.sources, prepared.heldout)]
    assert sum((stream == 6).sum() for stream in both) == 6  # the spelled-out one is not an end of text


def test_file_tokenizer_without_end_of_text_says_what_to_add(tmp_path):
    special(["<pad>"]).save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=r"no end-of-text token \(its special tokens: <pad>\)\. Add one of </s>"):
        vocab_size_of({"_target_": "data.tokenizers.File", "path": str(tmp_path / "t.json")})


@pytest.mark.parametrize("content", [None, "not json", "{}", "[]"])
def test_file_that_is_no_tokenizer_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.path='.*t\.json' is not a tokenizer\.json"):
        vocab_size_of({"_target_": "data.tokenizers.File", "path": str(tmp_path / "t.json")})


def test_file_tokenizer_neither_truncates_nor_pads(tmp_path):
    tokenizer = special(["<eos>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "t.json"))
    assert [len(ids) for ids in tokenizers.Library(tmp_path / "t.json").encode_batch(["a", "abcab"])] == [1, 5]


def test_special_token_spelled_out_in_text_is_ordinary_text(tmp_path):
    text = "before <|endoftext|> after"
    (tmp_path / "t.json").write_text(tokenizers.BPE(258).make(sentences(50)))
    library = load(tmp_path / "t.json")
    (ids,) = library.encode_batch([text])
    assert library.eos not in ids and library.decode(ids.tolist()) == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_encoding_and_decoding_give_the_text_back(tmp_path_factory, texts):
    for tokenizer in (load(None), library(tmp_path_factory)):
        assert [tokenizer.decode(ids.tolist()) for ids in tokenizer.encode_batch(texts)] == texts


def library(tmp_path_factory, made=[]):  # noqa: B006 (trained once)
    if not made:
        path = tmp_path_factory.mktemp("bpe") / "t.json"
        path.write_text(tokenizers.BPE(400).make(sentences(300)))
        made.append(load(path))
    return made[0]


def test_bpe_training_is_deterministic_across_processes(tmp_path):
    code = "import sys; from data.tokenizers import BPE; sys.stdout.write(BPE(500).make(open(sys.argv[1])))"
    write(tmp_path / "a.jsonl", sentences(500))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.jsonl")], cwd=ROOT, capture_output=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(3)
    }  # fmt: skip
    assert len(outputs) == 1


def test_bpe_learns_from_training_documents_only(tmp_path):
    documents = sentences(100)
    write(tmp_path / "a.jsonl", documents)
    request = Request(config(tmp_path, 0.3), BPE, tmp_path / "cache")
    prepared = prepare(config(tmp_path, 0.3), BYTES, tmp_path / "cache", processes=1)
    assert list(data.prepare._sample(request)) == texts_of(prepared, "train")


def test_bpe_on_little_text_keeps_its_size_and_warns(tmp_path):
    write(tmp_path / "a.jsonl", [f"{i}" for i in range(30)])
    asked = {"_target_": "data.tokenizers.BPE", "vocab_size": 5000}
    with pytest.warns(UserWarning, match=r"tokenizer\.vocab_size=5000: the text yields only \d+ tokens"):
        prepared = prepare(config(tmp_path, 0.3), asked, tmp_path / "cache", processes=1)
    assert prepared.vocab_size == 5000 == vocab_size_of(asked)
    manifest = json.loads((prepared.tokenizer_file.parent / "manifest.json").read_text())
    assert 257 <= manifest["tokens_in_file"] < 400


@pytest.mark.parametrize("size", [256, 0, "many"])
def test_bpe_below_the_bytes_is_refused(size):
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size="):
        vocab_size_of({"_target_": "data.tokenizers.BPE", "vocab_size": size})


def test_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    letters = [chr(0x20000 + i) for i in range(70_000)]
    special(["<eos>"], letters).save(str(tmp_path / "t.json"))
    write(tmp_path / "a.jsonl", [letters[69_000] + letters[i] for i in range(20)])
    file = {"_target_": "data.tokenizers.File", "path": str(tmp_path / "t.json")}
    prepared = prepare(config(tmp_path, 0.3), file, tmp_path / "cache", processes=1)
    assert prepared.sources["here"].dtype == np.uint32
    assert prepared.sources["here"].read(0, 1) == 69_000


# commands


def run_main(monkeypatch, capsys, records):
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(records)))
    status = data.__main__.main()
    return status, capsys.readouterr().err


def test_records_are_prepared_once_and_held_against_the_data(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.jsonl", sentences(100))
    record = {"run_id": "r1", "data": config(tmp_path), "tokenizer": BYTES, "cache": str(tmp_path / "cache"),
              "sequence_length": 64, "unique_tokens": None, "seed": 0, "largest_batch": 4, "verify": True}  # fmt: skip
    calls = []
    monkeypatch.setattr(data.__main__, "prepare", lambda *a, **k: calls.append(1) or prepare(*a, **k))
    assert run_main(monkeypatch, capsys, [record, record | {"run_id": "r2"}])[0] == 0
    assert len(calls) == 1
    long = record | {"run_id": "r3", "sequence_length": 4000}
    bad = record | {"run_id": "r4", "data": config(tmp_path, heldout=2)}
    status, errors = run_main(monkeypatch, capsys, [record, long, bad])
    assert status == 1
    assert "error: sequence_length=4000 needs 4001 tokens, and the held-out split of data.sources.here has" in errors
    assert "error: data.heldout=2" in errors and "(r4)" in errors and "r1" not in errors


def test_fulcrum_data_prints_a_table(tmp_path, capsys):
    write(tmp_path / "a.jsonl", sentences(100))
    data.__main__.command(
        {
            "data": config(tmp_path),
            "tokenizer": BYTES,
            "sequence_length": 16,
            "launch": {"cache": str(tmp_path / "cache")},
        }
    )
    printed = capsys.readouterr().out
    assert "heldout" in printed and "unigram nats/token" in printed and str(tmp_path / "cache" / "tokens") in printed


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FULCRUM_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("FULCRUM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fulcrum"


def test_every_shipped_configuration_builds():
    from omegaconf import OmegaConf

    for path in sorted((ROOT / "conf" / "data").glob("*.yaml")):
        shipped = OmegaConf.load(path)
        for name in {"files": ["paths"], "hub": ["dataset"]}.get(path.stem, []):
            shipped.sources[path.stem][name] = "x.txt"
        if "sources" in shipped:
            assert list(Request(shipped, BYTES, Path("cache")).sources) == list(shipped.sources)
    assert vocab_size_of(OmegaConf.load(ROOT / "conf" / "tokenizer" / "bpe.yaml")) == 1024
    assert vocab_size_of(OmegaConf.load(ROOT / "conf" / "tokenizer" / "bytes.yaml")) == 257
