import numpy as np
import pandas as pd
import pytest

from scaling.fit import Huber, fit


@pytest.fixture
def recovers():
    """The fit of `law` to points without noise gives `truth` back, from wide starts, in the table's units."""

    def check(law, truth, table, rel=1e-6, starts=64, loss=None, **settings):
        table = pd.DataFrame(table)
        exact = table.assign(**{law.target: law.predict(truth, law.features(table))})
        found = fit(law, exact, loss=loss or Huber(), starts=starts, **settings)
        assert found.params == pytest.approx(truth, rel=rel), found.minima[:3]
        assert found.converged
        return found

    return check


@pytest.fixture
def respects_units():
    """Units change parameters as the law says they do, and predictions not at all."""

    def check(law, truth, table, seed=0):
        rng = np.random.default_rng(seed)
        features = law.features(pd.DataFrame(table))
        scale = {unit: float(np.exp(rng.uniform(-5, 5))) for unit in sorted(law.units)}
        scaled = {name: values * scale[name] if name in scale else values for name, values in features.items()}
        here, there = law.predict(truth, features), law.predict(law.rescale(truth, scale), scaled)
        np.testing.assert_allclose(there, here * scale.get(law.target, 1.0), rtol=1e-9)

    return check
