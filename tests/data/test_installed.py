"""The source that reads files of installed packages."""

import json

import pytest

from data.sources import Installed


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of installed packages with two headers and one description."""
    for name, text in (("b/deep/two.h", "second"), ("b/one.h", "first \u00e9"), ("b-1.dist-info/METADATA", "said")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("data.sources.sysconfig.get_path", lambda kind: str(tmp_path))
    return tmp_path


def test_every_matching_file_is_a_document_once_in_the_order_of_names(packages):
    source = Installed(["b/**/*.h", "b/one.h", "*.dist-info/METADATA"])
    assert list(source.documents()) == ["said", "second", "first \u00e9"]
    assert list(Installed("b/*.h").documents()) == ["first \u00e9"]


def test_the_signature_changes_with_the_files_and_the_identity_does_not(packages):
    source = Installed("b/**/*.h")
    before, identity = source.signature(), source.identity()
    (packages / "b/one.h").write_text("another text")
    assert source.signature() != before and source.identity() == identity
    assert json.loads(json.dumps(identity)) == identity


def test_patterns_that_match_nothing_are_named(packages):
    with pytest.raises(ValueError, match=r"patterns='c/\*.h' matches no file in"):
        list(Installed(["b/*.h", "c/*.h"]).documents())
    with pytest.raises(ValueError, match="names no file"):
        Installed([])
