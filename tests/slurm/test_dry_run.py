"""`dry_run=true` as a user meets it: all points are validated and shown, nothing is started or written."""

import pytest

from conf.points import expand
from slurm.dry_run import describe


@pytest.mark.usefixtures("hydra_conf")
def test_each_point_is_shown_with_its_size_and_a_grouping_only_once(tiny):
    grid = [
        [*tiny, "optimizer=muon", "dry_run=true", f"model.d_model={d}", f"seed={s}"] for d in (16, 8) for s in (0, 1)
    ]
    points = expand(grid)
    text = describe(points)
    for point in points:
        assert f"{point.run_id} " in text and f"default/{point.run_id}\n" in text
        for value in (
            f"N {point.shape.N:,}",
            f"steps {point.plan.serial_steps}",
            f"tokens {point.plan.final_tokens:,}",
        ):
            assert value in text
    assert text.count("  Muon: 14 tensors, ") == 2 and text.count(f"  optimizer as for {points[0].run_id}") == 1
    hidden = (
        sum(rows * columns for rows, columns in list(points[0].shape.parameters().values())[2:6]) * 2 + 2 * 3 * 16 * 32
    )
    assert f"  Muon: 14 tensors, {hidden:,} parameters, weight decay 0.1, rate x 1" in text
    assert "  AdamW: 2 tensors, 12,288 parameters, weight decay 0.1, rate x 1\n    embedding.weight head.weight" in text
    assert "blocks.*.attention.q.weight" in text and "blocks.1" not in text


@pytest.mark.usefixtures("hydra_conf")
def test_a_dry_run_names_the_run_that_would_be_trained(tiny):
    assert expand([[*tiny, "dry_run=true"]])[0].run_id == expand([tiny])[0].run_id


def test_a_dry_run_writes_nothing_needs_no_torch_and_still_refuses_bad_points(fulcrum, tiny, tmp_path, monkeypatch):
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "block"))
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", "-m", *tiny, "optimizer=swan,shampoo", "optimizer.weight_decay=null", "dry_run=true"]
    good = fulcrum(*arguments, "optimizer.timescale=0.5")
    assert good.returncode == 0, good.stderr
    assert "2 points would be trained" in good.stdout and "SWAN: 14 tensors" in good.stdout
    single = fulcrum("train", *tiny, "dry_run=true")
    assert single.returncode == 0 and "1 point would be trained" in single.stdout, single.stderr
    bad = fulcrum(*arguments, "optimizer.timescale=0.5,0.001")
    assert bad.returncode == 1 and "2 of 4 points are not valid" in bad.stderr and "Traceback" not in bad.stderr
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before
