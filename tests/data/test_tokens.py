"""Reading prepared shards: windows, document boundaries, truncation and damage."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.shards
import data.tokens
from data.prepare import prepare
from data.tokens import Tokens

BYTES = {"_target_": "data.tokenizers.Bytes"}


def corpus(folder, documents):
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    return {"sources": {"here": {"_target_": "data.sources.Files", "paths": str(folder / "*.jsonl")}}, "heldout": 0.2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.shards, "SMALLEST_CHUNK", 100)
        documents = [f"document {i} " + "x" * (i * 7 % 40) for i in range(120)]
        yield prepare(corpus(folder / "text", documents), BYTES, folder / "cache", processes=1)


def whole(tokens: Tokens) -> np.ndarray:
    return np.concatenate([np.fromfile(tokens.folder / shard["file"], tokens.dtype) for shard in tokens.shards])


def test_stream_is_the_concatenation_of_the_shards(prepared):
    tokens = prepared.sources["here"]
    assert len(tokens.shards) > 10
    read = tokens.read(0, tokens.n_tokens)
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, whole(tokens))


@given(st.data())
def test_windows_cut_the_stream_wherever_shards_end(prepared, draw):
    tokens = prepared.sources["here"]
    length = draw.draw(st.integers(0, 400))
    starts = np.array(draw.draw(st.lists(st.integers(0, tokens.n_tokens - length), min_size=0, max_size=5)), np.int64)
    stream = whole(tokens)
    windows = tokens.windows(starts, length)
    assert windows.shape == (len(starts), length)
    for start, window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(window, stream[start : start + length])


@given(st.data())
def test_document_ids_count_the_ends_of_text_before_a_position(prepared, draw):
    tokens = prepared.sources["here"]
    length = draw.draw(st.integers(1, 400))
    start = draw.draw(st.integers(0, tokens.n_tokens - length))
    ends = np.cumsum(whole(tokens) == prepared.eos)
    expected = np.concatenate([[0], ends])[start : start + length]  # the eos still belongs to its document
    np.testing.assert_array_equal(tokens.document_ids(np.array([start, start]), length), [expected, expected])
    assert ends[-1] == tokens.n_documents


def test_reading_beyond_the_stream_is_an_error(prepared):
    tokens = prepared.sources["here"]
    for start, length in ((-1, 2), (tokens.n_tokens - 1, 2)):
        with pytest.raises(IndexError, match=str(tokens.n_tokens)):
            tokens.read(start, length)
        with pytest.raises(IndexError, match=str(tokens.n_tokens)):
            tokens.document_ids(np.array([start]), length)


def test_more_shards_than_mappings_read_the_same(prepared, monkeypatch):
    monkeypatch.setattr(data.tokens, "_MOST_MAPPED", 2)
    tokens = Tokens(prepared.sources["here"].folder, "train")
    np.testing.assert_array_equal(tokens.read(0, tokens.n_tokens), whole(tokens))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damaged_shard_is_named_and_only_it_is_rebuilt(tmp_path, monkeypatch, capfd, damage):
    monkeypatch.setattr(data.shards, "SMALLEST_CHUNK", 100)
    config = corpus(tmp_path / "text", [f"document number {i}" for i in range(60)])
    first = prepare(config, BYTES, tmp_path / "cache", processes=1)
    tokens = first.sources["here"]
    files = {path: (path.read_bytes(), path.stat().st_ino) for path in tokens.folder.glob("*.*")}
    path = tokens.folder / (tokens.shards[2]["file"] if damage != "manifest" else "manifest.json")
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])
    else:
        path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=rf"{path.name}.*fulcrum data"):
        Tokens(tokens.folder, "train").verify()
    again = prepare(config, BYTES, tmp_path / "cache", processes=1)
    assert path.name in capfd.readouterr().err
    assert {path: path.read_bytes() for path in files} == {path: content for path, (content, _) in files.items()}
    replaced = {path.name for path, (_, inode) in files.items() if path.stat().st_ino != inode}
    chunk = tokens.shards[2]["file"].removeprefix("train-").removesuffix(".bin")
    assert all(name == "manifest.json" or chunk in name for name in replaced)
    again.sources["here"].verify()
    assert again.fingerprint == first.fingerprint
