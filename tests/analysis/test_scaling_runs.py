"""The runs of the scaling sweep are real and of one recipe, and a law of the usual form describes them."""

from __future__ import annotations

import numpy as np

from labkit import GPTConfig
from labkit.analysis import fit_scaling_law, parameter_count
from labstudio.runs import kept_runs
from labstudio.runs.report import read_outcomes
from labstudio.runs.sweep_file import read_sweep

OUTCOMES, UNFINISHED = read_outcomes("scaling", kept_runs())


def measured() -> np.ndarray:
    """Width, weights without embeddings, characters and held-out loss of each run."""
    rows = []
    for each in OUTCOMES:
        config = GPTConfig(**each.config["model"])
        parameters = parameter_count(config, embeddings=False)
        rows += [(config.d_model, parameters, each.tokens, loss) for loss in each.val_losses]
    return np.array(rows)


def test_the_kept_runs_are_those_of_the_sweep() -> None:
    planned = {each.name: each for each in read_sweep("scaling").experiments}
    assert UNFINISHED == []
    assert set(planned) == {each.name for each in OUTCOMES}
    for each in OUTCOMES:
        plan = planned[each.name]
        assert each.seeds == plan.seeds
        assert each.total_steps == plan.train.max_steps
        assert each.config["model"]["d_model"] == plan.shape["d_model"]
        assert each.tokens == 1024 * each.total_steps


def test_only_the_width_and_the_number_of_steps_differ() -> None:
    def recipe(about: dict) -> tuple:
        settings = about["settings"]
        train = {key: value for key, value in settings["train"].items() if key != "max_steps"}
        shape = {key: value for key, value in settings["shape"].items() if key != "d_model"}
        return settings["preset"], shape, train, settings["data"]

    assert all(recipe(each.about) == recipe(OUTCOMES[0].about) for each in OUTCOMES)


def test_there_are_enough_sizes_and_budgets_and_no_text_runs_out() -> None:
    runs = measured()
    assert len(set(runs[:, 1])) >= 5
    assert len(set(runs[:, 2])) >= 5
    assert runs[:, 2].max() < 4.5e6


def test_more_text_is_better_at_every_width_and_more_width_with_every_budget() -> None:
    runs = measured()
    for fixed, varied in ((0, 2), (2, 0)):
        for value in set(runs[:, fixed]):
            chosen = runs[runs[:, fixed] == value]
            means = [chosen[chosen[:, varied] == each, 3].mean() for each in sorted(set(chosen[:, varied]))]
            assert all(np.diff(means) < 0), (value, means)


def test_a_law_describes_the_runs_once_they_are_long_enough() -> None:
    """The first 100 steps are spent on how often each character comes; no power of D describes that."""
    _, parameters, tokens, losses = measured().T
    long = tokens > 150_000
    law = fit_scaling_law(parameters[long], tokens[long], losses[long])
    misses = np.abs(losses / law.predict(parameters, tokens) - 1)
    assert misses[long].max() < 0.04
    assert np.median(misses[long]) < 0.01
    assert 0.05 < law.alpha < 0.5
    assert 0.3 < law.beta < 0.8
