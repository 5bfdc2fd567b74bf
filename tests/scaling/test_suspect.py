import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import fit
from scaling.laws import AdditiveMixture, Chinchilla, DataConstrained, KaplanData, PowerLaw, Routed
from scaling.rows import Rows, prepare

LAW = Chinchilla()
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}


def points(sizes=5, budgets=5, noise=0.01) -> pd.DataFrame:
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, budgets)))
    loss = LAW.predict(TRUTH, {"N": n, "D": d}) * np.exp(noise * np.random.default_rng(0).normal(size=n.size))
    return pd.DataFrame({"N": n, "D": d, "loss": loss})


def recorded() -> pd.DataFrame:
    """A clean table with every column that the checks read."""
    table = points()
    table = table.assign(C=6 * table["N"] * table["D"], run_id=[f"r{k}" for k in range(25)], status="completed")
    table = table.assign(stop_reason="budget", sequence_length=2048, unique_tokens=2 * table["D"], N_convention="total")
    return table.assign(tokenizer_fingerprint="t", heldout_fingerprint="h")


def notes(table: pd.DataFrame, law=LAW, **settings) -> tuple[str, ...]:
    return prepare(law, table, **settings).notes


def test_a_clean_table_gives_no_note():
    assert notes(points()) == () and notes(recorded()) == ()


# --- missing and impossible values -------------------------------------------------------------------------------


@given(
    st.sampled_from(["N", "D", "loss", "C"]), st.sampled_from([0.0, -1.0, np.nan, np.inf, "n/a"]), st.integers(0, 24)
)
@settings(max_examples=25)
def test_a_value_that_no_run_can_have_is_refused_with_column_row_run_and_value(column, value, row):
    table = recorded().astype({column: object})
    table.loc[row, column] = value
    with pytest.raises(ValueError) as error:
        prepare(LAW, table)
    said = str(error.value)
    assert f"{column} (column {column}) must be a positive number in every row; 1 of 25 are not" in said
    assert f"the first is row {row} (run r{row}): {value!r}" in said


def test_numbers_written_as_text_are_numbers():
    text = points().astype(str)
    assert prepare(LAW, text).table["N"].tolist() == prepare(LAW, points()).table["N"].tolist()


def test_a_column_of_the_table_may_have_another_name_and_the_message_gives_both():
    table = points().rename(columns={"N": "params"})
    table.loc[2, "params"] = -3.0
    with pytest.raises(ValueError, match=r"N \(column params\) must be a positive number.*the first is row 2"):
        prepare(LAW, table, columns={"N": "params"})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"M": "N"}, "columns.M: Chinchilla reads N, D, loss, C only"),
        ({"N": "size"}, "no column 'size' for Chinchilla's N; it has N, D, loss.*Name it: columns.N=<column>"),
    ],
)
def test_a_wrong_column_map_is_refused(columns, words):
    with pytest.raises(ValueError, match=words):
        prepare(LAW, points(), columns=columns)


@pytest.mark.parametrize(
    "weights", [np.ones(24), np.full(25, np.nan), np.zeros(25), np.r_[-1.0, np.ones(24)], np.r_[np.inf, np.ones(24)]]
)
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match=r"not negative and not all zero|one number per row"):
        prepare(LAW, points(), weights=weights)


def test_weights_follow_their_rows_and_their_unit_does_not_matter():
    table = points().assign(w=np.arange(1.0, 26.0), status=["failed"] + ["completed"] * 24)
    named, given = prepare(LAW, table, weights="w"), prepare(LAW, table, weights=7 * table["w"].to_numpy())
    assert named.table["weight"].to_dict() == pytest.approx(given.table["weight"].to_dict())
    ratio = named.table["weight"] / table["w"].loc[named.table.index]
    assert ratio.to_numpy() == pytest.approx(ratio.iloc[0])


# --- settings: enough of them, and varying -----------------------------------------------------------------------


def test_a_fixed_parameter_needs_no_row_of_its_own():
    table = points().iloc[[0, 7, 13, 19, 24]]
    with pytest.raises(ValueError, match=r"5 parameters to fit.*5 rows at 5 distinct settings.*one row more"):
        prepare(LAW, table)
    assert len(prepare(LAW, table, fixed={"E"}).table) == 5


@pytest.mark.parametrize(
    ("column", "fixed", "named"),
    [("N", set(), "A and alpha"), ("N", {"A"}, "alpha"), ("D", set(), "B and beta"), ("D", {"beta"}, "B")],
)
def test_a_constant_column_is_refused_with_the_parameters_that_it_leaves_open(column, fixed, named):
    with pytest.raises(ValueError, match=rf"Column {column} is 1e\+08 in all 25 rows: {named} of Chinchilla cannot be"):
        prepare(
            LAW, points().assign(**{column: 1e8}, **{"DN"["ND".index(column)]: np.geomspace(1e6, 1e9, 25)}), fixed=fixed
        )


def test_a_constant_column_is_allowed_where_its_parameters_are_fixed():
    table = points().assign(N=1e8)
    table["D"] = np.geomspace(1e8, 1e11, 25)
    table["loss"] = LAW.predict(TRUTH, table)
    found = fit(LAW, table, starts=16, fixed={"A": 400.0, "alpha": 0.34})
    assert found.params == pytest.approx(TRUTH, rel=1e-5)


def test_axes_of_two_values_are_told():
    (said,) = notes(points(sizes=2, budgets=6))
    assert said.startswith("N takes 2 values only, too few to tell E and A and alpha apart")


@pytest.mark.parametrize("power", [1.0, 0.5, -1.0])
def test_sizes_on_one_line_are_told(power):
    table = points().assign(N=np.geomspace(1e6, 1e9, 25))
    table["D"] = 1e9 * (table["N"] / 3e7) ** power
    assert any(text.startswith("N and D rise together in all runs") for text in notes(table))
    assert not any("rise together" in text for text in notes(points()))


# --- what does not compare ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "what", "fix"),
    [
        ("tokenizer_fingerprint", "tokenizers", "compare columns.loss=eval_bits_per_byte on the same text"),
        ("heldout_fingerprint", "held-out sets", "Fit one group at a time (filter)"),
        ("N_convention", "ways of counting N", "Count N in one way in all rows"),
    ],
)
def test_groups_that_do_not_compare_are_refused_listed_and_given_a_way_out(column, what, fix):
    table = recorded().assign(**{column: ["one"] * 15 + ["other"] * 8 + [None] * 2})
    with pytest.raises(ValueError) as error:
        fit(LAW, table)
    said = str(error.value)
    assert (
        f"3 different {what}, which do not compare: {column} is one (15 runs), other (8 runs), unknown (2 runs)" in said
    )
    assert fix in said


def test_groups_of_runs_that_are_left_out_do_not_count():
    table = recorded().assign(tokenizer_fingerprint=["t"] * 20 + ["u"] * 5, status=["completed"] * 20 + ["failed"] * 5)
    assert len(prepare(LAW, table).table) == 20


def test_bits_per_byte_compare_across_tokenizers_but_not_across_held_out_sets():
    table = recorded().assign(tokenizer_fingerprint=["t"] * 15 + ["u"] * 10, eval_bits_per_byte=points()["loss"] / 3)
    per_byte = {"loss": "eval_bits_per_byte"}
    assert len(prepare(LAW, table, columns=per_byte).table) == 25
    with pytest.raises(ValueError, match="different tokenizers"):
        prepare(LAW, table)
    with pytest.raises(ValueError, match="different held-out sets"):
        prepare(LAW, table.assign(heldout_fingerprint=["h"] * 15 + ["i"] * 10), columns=per_byte)


def test_rows_that_count_n_otherwise_than_their_neighbours_are_told():
    table = recorded()
    table.loc[[3, 18], "N"] *= 1.6  # embeddings counted here only
    (said,) = notes(table)
    assert "C / 6 N D of 2 rows (the first is row 3) is off that of rows of similar N by more than 25%" in said
    assert "is N counted with embeddings in some rows" in said


@given(st.floats(0.5, 1.0), st.integers(0, 100))
@settings(max_examples=10)
def test_flops_that_depend_smoothly_on_size_are_one_convention(share, seed):
    table = recorded()
    table["C"] *= 1 + 3 * share * (1e6 / table["N"]) ** 0.5  # head and attention weigh most in small models
    assert notes(table.sample(frac=1, random_state=seed)) == ()


def test_different_sequence_lengths_are_told_with_their_counts():
    (said,) = notes(recorded().assign(sequence_length=[2048] * 20 + [4096] * 5))
    assert said.startswith("Sequence lengths differ: 2048 (20 rows), 4096 (5 rows).")


# --- repeated data, copies, runs that ended otherwise ------------------------------------------------------------


@pytest.mark.parametrize(
    "column", ["U", "unique_tokens", "tokens_before_repeat", "train_tokens_available", "train_tokens"]
)
def test_repeated_data_under_a_law_of_fresh_tokens_is_told_with_its_worst_case(column):
    table = points()
    (said,) = notes(table.assign(**{column: table["D"] / np.r_[3.5, 2.0, np.ones(23)]}))
    assert said.startswith(
        "2 runs saw their data more than once (up to 3.5 times): Chinchilla takes every token as new"
    )


def test_repeated_data_is_no_news_to_a_law_that_reads_distinct_tokens_or_no_tokens():
    table = points().assign(U=points()["D"] / 4)
    assert not any("more than once" in text for text in notes(table, DataConstrained(tied=True)))
    assert not any("more than once" in text for text in notes(table, PowerLaw(x=("N",), y="loss")))
    assert any("more than once" in text for text in notes(table, KaplanData()))


def test_rows_without_a_count_of_distinct_tokens_are_taken_as_fresh():
    table = points().assign(unique_tokens=[None] * 24 + [1e3], train_tokens=1e12)
    (said,) = notes(table)
    assert said.startswith("1 runs saw their data more than once")


def test_the_first_count_of_distinct_tokens_that_a_row_has_is_the_one_that_counts():
    counts = {"tokens_before_repeat": [1e3, None, 1e12] + [None] * 22, "unique_tokens": [1e12, 1e3, 1e3] + [None] * 22}
    (said,) = notes(points().assign(**counts))
    assert said.startswith("2 runs saw their data more than once")


def test_rows_that_share_some_numbers_are_no_copies():
    table = points()
    table.loc[1, "loss"] = table.loc[0, "loss"]
    assert not any("copies" in text for text in notes(table))


@pytest.mark.parametrize("copies", [1, 3])
def test_copied_rows_are_counted(copies):
    for table in (points(), recorded()):
        (said,) = notes(pd.concat([table, *[table.tail(1)] * copies], ignore_index=True))
        assert said == f"{copies} rows are exact copies of others: they count twice unless you remove them."


def test_seeds_of_one_setting_are_no_copies():
    other = points().assign(loss=points()["loss"] * 1.001)
    assert notes(pd.concat([points(), other], ignore_index=True)) == ()


def test_runs_that_did_not_complete_are_left_out_whatever_their_numbers_and_counted_by_status():
    table = recorded()
    table.loc[[1, 2], ["status", "loss"]] = ["diverged", np.nan]
    table.loc[3, ["status", "N"]] = ["failed", -1.0]
    table.loc[4, ["status", "loss"]] = [None, np.nan]
    rows = prepare(LAW, table)
    assert rows.excluded == {"diverged": 2, "failed": 1, "unfinished": 1}
    assert sorted(rows.table.index) == [0, *range(5, 25)]
    (said,) = rows.notes
    assert said.startswith("4 runs that did not complete are left out:") and "2 diverged" in said


def test_runs_that_stopped_early_are_told_with_the_reasons_where_a_table_says_no_more():
    (said,) = notes(
        recorded().drop(columns="status").assign(stop_reason=["target", "hopeless", None] + ["budget"] * 22)
    )
    assert said.startswith("2 runs stopped early (hopeless, target)")


# --- units -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("N", lambda x: x / 1e6, "are these parameters (not millions or billions of them)?"),
        ("N", lambda x: x / 1e9, "are these parameters"),
        ("D", lambda x: x / 1e6, "are these tokens (not millions or billions of them)?"),
        ("D", lambda x: x / 1e9, "are these tokens"),
        ("C", lambda x: x / 8.64e19, "are these FLOPs (not PetaFLOP-days or GPU-hours)?"),
        ("loss", np.exp, "are these nats per token (not perplexity, or a total)?"),
        ("loss", lambda x: x * 2048, "are these nats per token"),
        ("loss", lambda x: x / 2048, "are these nats per token"),
    ],
)
def test_units_wrong_by_powers_of_ten_are_asked_about(column, change, words):
    table = recorded()
    table[column] = change(table[column])
    said = notes(table.drop(columns="unique_tokens"))
    assert any(
        text.startswith(f"{column} is {table[column].median():.3g} in the middle") and words in text for text in said
    )


@pytest.mark.parametrize("factor", [1e-3, 1e-2, 1e2, 1e3])
def test_flops_that_do_not_belong_to_the_sizes_are_told(factor):
    table = recorded()
    table["C"] *= factor
    (said,) = notes(table)
    assert said.startswith(f"C is {factor:.2g} times 6 N D in the middle of the rows: a unit is wrong")


@given(st.floats(0.4, 3.0))
@settings(max_examples=10)
def test_other_ways_of_counting_flops_are_not_taken_for_wrong_units(factor):
    assert notes(recorded().assign(C=recorded()["C"] * factor)) == ()


# --- other laws --------------------------------------------------------------------------------------------------


def test_weights_of_a_mixture_must_sum_to_one():
    table = points().assign(h_web=0.5, h_code=0.6)
    with pytest.raises(ValueError, match=r"h_web \+ h_code is 1.1 in a row and must be 1"):
        prepare(AdditiveMixture(("web", "code")), table)


def test_a_share_must_lie_between_zero_and_one():
    table = points().assign(h_web=np.r_[1.5, np.full(24, 0.5)], h_code=np.r_[-0.5, np.full(24, 0.5)])
    with pytest.raises(ValueError, match=r"h_web \(column h_web\) must be a number from 0 to 1.*the first is row 0"):
        prepare(AdditiveMixture(("web", "code")), table)


def test_columns_of_other_laws_are_checked_too():
    with pytest.raises(ValueError, match=r"E .*must be a positive number"):
        prepare(Routed(), points().assign(E=0.0))


# --- the rows themselves -----------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_numbers_and_nothing_else():
    one: Rows = prepare(LAW, recorded())
    same = recorded().sample(frac=1, random_state=1).assign(run_id=[f"q{k}" for k in range(25)], remark="x")
    assert prepare(LAW, same).fingerprint == one.fingerprint
    for column in ("N", "D", "loss", "C"):
        other = recorded()
        other.loc[3, column] *= 1 + 1e-12
        assert prepare(LAW, other).fingerprint != one.fingerprint


def test_compute_is_taken_from_the_table_or_else_6nd_and_which_is_said():
    six, own = prepare(LAW, points()), prepare(LAW, points().assign(C=7 * points()["N"] * points()["D"]))
    assert six.convention["C"] == "6 N D" and own.convention["C"] == "as counted by column C"
    assert (six.table["C"] / six.table["N"] / six.table["D"]).to_numpy() == pytest.approx(6.0)
    assert (own.table["C"] / own.table["N"] / own.table["D"]).to_numpy() == pytest.approx(7.0)
    assert prepare(LAW, recorded()).convention["C"] == "6 N D"
