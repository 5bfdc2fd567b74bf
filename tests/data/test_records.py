import json
import multiprocessing

import pytest

from data.records import RunWriter, load_curves, load_runs, lock_run, read_metrics, write_once

RUN = {
    "run_id": "r1",
    "data_fingerprint": "d",
    "heldout_fingerprint": "h",
    "tokenizer_fingerprint": "t",
    "N": 10,
}


def write(folder, tokens, upto, start=0):
    writer = RunWriter(folder, start, {"threads": 1})
    for t in range(start + tokens, upto + 1, tokens):
        writer.log({"step": t // tokens, "tokens": t, "loss": 1 / t})
    return writer


def test_a_torn_last_line_is_ignored(tmp_path):
    write(tmp_path, 10, 50)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        assert [row["tokens"] for row in read_metrics(path)] == [10, 20, 30, 40]


def test_a_line_damaged_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"tokens": 1}\n{"tok\n{"tokens": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tokens_that_do_not_increase_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"tokens": 2}\n{"tokens": 2}\n')
    with pytest.raises(ValueError, match="two writers"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_resumed_writer_keeps_the_rows_up_to_its_checkpoint_and_no_torn_line(tmp_path):
    write(tmp_path, 10, 50)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"tokens": 60, "lo')
    write(tmp_path, 10, 60, start=30).close("completed", "budget", {"tokens": 60})
    assert [row["tokens"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30, 40, 50, 60]
    lives = [json.loads(line) for line in (tmp_path / "lives.jsonl").read_text().splitlines()]
    assert [(life["tokens_start"], life["tokens_end"], life["exit"]) for life in lives] == [
        (0, None, None),
        (30, 60, "completed"),
    ]


def _hold(folder, held, done):
    with lock_run(folder):
        held.set()
        done.wait()


def test_a_run_that_a_live_process_writes_is_refused_and_free_after_it_died(tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    held.wait()
    with pytest.raises(ValueError, match=f"is being written by process {process.pid}"), lock_run(tmp_path):
        pass
    process.kill()
    process.join()
    with lock_run(tmp_path):
        assert (tmp_path / "lock").read_text().startswith("process ")


def test_other_content_than_the_run_began_with_is_refused_and_both_are_shown(tmp_path):
    write_once(tmp_path, RUN)
    write_once(tmp_path, RUN)
    with pytest.raises(ValueError, match="data_fingerprint=d, and it is other now"):
        write_once(tmp_path, RUN | {"data_fingerprint": "other"})


def test_runs_and_curves_are_read_back(tmp_path):
    folder = tmp_path / "exp" / "r1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("peak_lr: 0.1\nmodel: {d_model: 8}\n")
    write_once(folder, RUN)
    writer = write(folder, 10, 30)
    assert load_runs(tmp_path).status[0] == "unfinished"
    writer.close("completed", "budget", {"tokens": 30, "flops": 5.0, "eval_loss": 2.0})
    (run,) = load_runs(tmp_path).to_dict("records")
    expected = {"N": 10, "D": 30, "C": 5.0, "eval_loss": 2.0, "peak_lr": 0.1, "model.d_model": 8, "status": "completed"}
    assert run | expected == run
    curves = load_curves(tmp_path)
    assert list(curves.tokens) == [10, 20, 30] and set(curves.run_id) == {"r1"}


def test_a_run_that_failed_before_it_had_a_record_is_listed(tmp_path):
    folder = tmp_path / "exp" / "r2"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("peak_lr: 0.1\n")
    (folder / "summary.json").write_text('{"status": "failed", "stop_reason": "OSError: no space"}')
    (run,) = load_runs(tmp_path).to_dict("records")
    assert run["run_id"] == "r2" and run["status"] == "failed" and run["peak_lr"] == 0.1


def test_a_published_table_enters_by_a_column_map(tmp_path):
    (tmp_path / "table.csv").write_text("params,loss\n10,2.5\n")
    assert load_runs(tmp_path / "table.csv", {"N": "params"}).N[0] == 10
    with pytest.raises(ValueError, match=r"columns\.N=size: .* has no such column; it has params, loss"):
        load_runs(tmp_path / "table.csv", {"N": "size"})


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no runs"):
        load_runs(tmp_path)
