"""Logistic problems: the margin is what was asked for, and labels follow the model that draws them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.separable import LogisticModel, LogisticProblem, separable


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(2, 40), dimension=st.integers(2, 30), margin=st.floats(1e-3, 1.0), seed=st.integers(0, 10**6)
)
def test_the_largest_margin_of_separable_data_is_the_one_asked_for(samples, dimension, margin, seed):
    problem = separable(samples, dimension, margin, seed)
    nearest = problem.signed[:2].mean(axis=0)  # a point of the hull: no margin exceeds its norm
    assert np.linalg.norm(nearest) == pytest.approx(margin, rel=1e-9)
    reached = problem.labels * (problem.rows @ nearest) / np.linalg.norm(nearest)
    assert reached.min() == pytest.approx(margin, rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(problem.rows, axis=1), 1.0, rtol=1e-12)
    assert problem.radius == pytest.approx(1.0)


def test_separable_data_differ_with_the_seed_alone_and_have_both_labels():
    one, again, other = (separable(50, 5, 0.1, seed) for seed in (0, 0, 1))
    assert (one.rows == again.rows).all() and (one.labels == again.labels).all()
    assert not np.allclose(one.rows, other.rows)
    assert set(one.labels) == {-1.0, 1.0}


def test_rows_of_separable_data_lie_between_the_margin_and_twice_it():
    problem = separable(500, 8, 0.2, seed=3)
    along = problem.signed @ problem.signed[:2].mean(axis=0) / 0.2
    assert along.max() < 0.4 and np.quantile(along, 0.9) > 0.37


def test_labels_of_the_model_are_as_probable_as_it_says():
    model = LogisticModel(np.array([1.0, 0.5, 0.1]), np.array([2.0, -1.0, 3.0]))
    problem = model.sample(200_000, seed=1)
    score = problem.rows @ model.target
    mean = np.tanh(score / 2.0)  # of y given x
    for weight in (np.ones_like(score), score, score**2, np.abs(score) > 2):
        z = (weight * (problem.labels - mean)).sum() / np.sqrt((weight**2 * (1 - mean**2)).sum())
        assert abs(z) < 4
    np.testing.assert_allclose(problem.rows.T @ problem.rows / 200_000, np.diag(model.eigenvalues), atol=0.012)


def test_labels_times_rows_are_all_that_matters():
    problem = LogisticProblem(np.array([[1.0, 2.0], [3.0, -4.0]]), np.array([1, -1]))
    assert problem.signed.tolist() == [[1.0, 2.0], [-3.0, 4.0]]
    assert (problem.samples, problem.dimension, problem.radius) == (2, 2, 5.0)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: LogisticProblem(np.ones((2, 2)), np.array([0, 1])), "write 0 as -1"),
        (lambda: LogisticProblem(np.ones((2, 2)), np.array([1, 1, 1])), "one for each of the 2 rows"),
        (lambda: LogisticProblem(np.ones(2), np.array([1, 1])), "samples, dimension"),
        (lambda: LogisticProblem(np.full((1, 1), np.nan), np.array([1])), "finite"),
        (lambda: separable(1, 2, 0.1, 0), "samples=1"),
        (lambda: separable(2, 1, 0.1, 0), "dimension=1"),
        (lambda: separable(2, 2, 1.1, 0), "margin=1.1"),
        (lambda: separable(2, 2, 0.0, 0), "margin=0.0"),
        (lambda: LogisticModel(np.array([1.0, 0.0]), np.ones(2)), "eigenvalues"),
        (lambda: LogisticModel(np.ones(2), np.ones(3)), "target"),
        (lambda: LogisticModel(np.ones(2), np.ones(2)).sample(0, 0), "samples=0"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()
