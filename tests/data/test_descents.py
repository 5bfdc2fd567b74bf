import numpy as np
import pytest

from data.descents import descent, is_held_out, loss_at, tokens_to


def test_crossings_lie_between_evaluations_in_log_tokens():
    rows = [
        {"tokens": 50, "loss": 1.0},
        {"tokens": 100, "eval_loss": 5.0, "eval_loss_a": 6.0},
        {"tokens": 200, "eval_loss": 4.0, "eval_loss_a": 5.0},
        {"tokens": 300, "loss": 1.0, "eval_loss": float("nan")},
        {"tokens": 400, "eval_loss": 4.5, "eval_loss_a": 4.2, "eval_loss/code": 1.0},
        {"tokens": 800, "eval_loss": 3.0, "eval_loss_a": 3.5},
    ]
    line = descent(rows)
    assert line.tolist() == [[100, 5.0], [200, 4.0], [400, 4.0], [800, 3.0]]  # the lowest so far, of whichever is lower
    assert tokens_to(line, 4.5) == pytest.approx(100 * 2**0.5)
    assert tokens_to(line, 3.5) == pytest.approx(400 * 2**0.5)
    assert tokens_to(line, 2.9) == np.inf and np.isnan(tokens_to(line, 5.0))
    assert loss_at(line, 100 * 2**0.5) == pytest.approx(4.5) and np.isnan(loss_at(line, 900))


def test_a_run_without_evaluations_never_was_anywhere():
    assert tokens_to(descent([{"tokens": 1, "loss": 2.0}]), 3.0) == np.inf
    assert is_held_out("eval_loss_tail") and not is_held_out("eval_loss/code")
