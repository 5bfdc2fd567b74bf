"""Text sources: what they read, and what they say about bad input."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.sources import Files, Hub, Stdlib

TEXTS = ["first\r\ndocument", "second \u00e9\u4e2d", "third"]


def compressed(path, raw: bytes):
    writers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(raw)
    else:
        path.write_bytes(writers.get(path.suffix, bytes)(raw))


def jsonl(texts, field="text"):
    return "\n".join(json.dumps({"id": i, field: text}) for i, text in enumerate(texts)).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_compressed_and_plain_files_yield_the_same_documents(tmp_path, suffix):
    compressed(tmp_path / f"a.jsonl{suffix}", jsonl(TEXTS))
    compressed(tmp_path / f"b.txt{suffix}", TEXTS[0].encode())
    source = Files([str(tmp_path / "*.txt*"), str(tmp_path / "*.jsonl*")])
    assert list(source.documents()) == [*TEXTS, TEXTS[0]]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_cut_off_compressed_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    compressed(path, jsonl([f"{i} {hash(i)} some text" for i in range(5000)]))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=path.name):
        list(Files(str(path)).documents())


def test_parquet_rows_are_documents_and_nulls_are_skipped(tmp_path):
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "body": [*TEXTS[:2], None, TEXTS[2]]}), tmp_path / "a.parquet")
    assert list(Files(str(tmp_path / "*.parquet"), text="body").documents()) == TEXTS


def test_files_come_sorted_and_once(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    source = Files([str(tmp_path / "c*"), str(tmp_path / "**" / "*.txt")])
    assert list(source.documents()) == ["a", "b", "c"]


def test_signature_changes_with_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    source = Files(str(tmp_path / "*.txt"))
    before = source.signature()
    assert source.signature() == before
    (tmp_path / "a.txt").write_text("two, longer")
    assert source.signature() != before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_missing_text_field_names_what_is_there(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_bytes(jsonl(TEXTS, "body"))
    else:
        pq.write_table(pa.table({"id": [1], "body": ["x"]}), path)
    with pytest.raises(ValueError, match=r"text='text' is not in .*a\.\w+.*body, id"):
        list(Files(str(path)).documents())


def test_bad_json_line_names_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n{"text": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 is not JSON"):
        list(Files(str(tmp_path / "a.jsonl")).documents())


def test_text_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ["a"]}')
    with pytest.raises(ValueError, match=r"text='text' holds a list.*a\.jsonl, line 1"):
        list(Files(str(tmp_path / "a.jsonl")).documents())


@pytest.mark.parametrize("name", ["a.csv", "a", "a.parquet.gz", "a.gz"])
def test_unknown_extension_is_named_with_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=rf"{name}, whose extension is unknown. Known: .txt, .jsonl, .parquet"):
        list(Files(str(tmp_path / name)).documents())


def test_damaged_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("this is not parquet")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        list(Files(str(tmp_path / "a.parquet")).documents())


@pytest.mark.parametrize("paths", [[], "", [""], [3]])
def test_paths_that_name_nothing_are_refused(paths):
    with pytest.raises(ValueError, match="paths="):
        Files(paths)


def test_glob_without_a_match_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"paths='.*nothing.*' matches no file"):
        Files(str(tmp_path / "nothing*.txt")).signature()


def test_stdlib_is_there_without_tests_and_without_this_machine():
    source = Stdlib()
    names = [entry[0] for entry in source.signature()]
    assert names == sorted(names)
    assert "json/decoder.py" in names
    assert not [name for name in names if name.startswith(("test/", "site-packages/", "config-", "_sysconfigdata"))]
    assert 5e6 < sum(entry[1] for entry in source.signature()) < 30e6


def test_hub_streams_a_local_dataset_in_order_and_stops_at_documents(tmp_path):
    for i in range(2):
        texts = [f"document {i}.{j}" for j in range(5)]
        pq.write_table(pa.table({"text": texts, "id": list(range(5))}), tmp_path / f"train-0000{i}.parquet")
    everything = [f"document {i}.{j}" for i in range(2) for j in range(5)]
    assert list(Hub(str(tmp_path)).documents()) == everything
    assert list(Hub(str(tmp_path), documents=7).documents()) == everything[:7]


def test_hub_names_a_missing_column_and_a_missing_dataset(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"text='text' is not in .*body, id"):
        list(Hub(str(tmp_path)).documents())
    with pytest.raises(ValueError, match="split 'validation'"):
        list(Hub(str(tmp_path), split="validation").documents())
    with pytest.raises(ValueError, match="cannot be opened"):
        list(Hub(str(tmp_path / "nowhere")).documents())


@pytest.mark.parametrize("documents", [0, -1, 1.5])
def test_hub_refuses_a_cap_that_is_no_number_of_documents(documents):
    with pytest.raises(ValueError, match="documents="):
        Hub("allenai/c4", documents=documents)


def test_a_text_file_too_large_to_be_one_document_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.LARGEST_DOCUMENT", 1 << 20)
    (tmp_path / "a.txt").write_bytes(b"x" * (1 << 20))
    assert len(list(Files([str(tmp_path / "a.txt")]).documents())) == 1
    (tmp_path / "b.txt").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match=r"b\.txt is one document of more than 1 MiB.*\.jsonl"):
        list(Files([str(tmp_path / "b.txt")]).documents())
