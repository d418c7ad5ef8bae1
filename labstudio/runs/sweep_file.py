"""A sweep's file (TOML): a baseline, and named experiments that each change something in it.

[baseline]                        # the experiment called "baseline"
question = "How far does the plain recipe get?"
seeds = [0, 1, 2]                 # one run each; the others differ from one another by chance alone
model = { preset = "char-mini" }  # fields of GPTConfig
train.max_steps = 300             # fields of TrainConfig
data.tokenizer = "bpe"            # fields of DataConfig

[experiments.context_16]
question = "What does a shorter context cost?"
prediction = "A little: most of the next character is in the last few."
if_higher = "Characters further back are of use."  # what that would mean; also if_lower, if_unclear
change_our_mind = "A training ten times as long that ends otherwise."
model.context_length = 16         # everything else as in the baseline

All these texts may be left out.  The report quotes them; of if_lower, if_higher and if_unclear the one that
fits the held-out loss, which is unclear up to two spreads of seeds.  Other texts make no other experiment.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from labkit.config import DataConfig, GPTConfig, TrainConfig
from labkit.io import check_name
from labkit.model import GPT

SHIPPED = Path(__file__).resolve().parent / "sweeps"
_TABLES = {
    "model": ["preset", *(field.name for field in fields(GPTConfig) if field.name != "vocab_size")],
    "train": [field.name for field in fields(TrainConfig) if field.name != "seed"],
    "data": [field.name for field in fields(DataConfig)],
}
_WORDS = ("question", "prediction", "if_lower", "if_higher", "if_unclear", "change_our_mind")
_TEXTS = (*_WORDS, "topic", "against", "init_from")
_EITHER = (("max_steps", "epochs"), ("batch_size", "batch_tokens"))


class SweepError(ValueError):
    """A sweep's file, or what it asks for, cannot be run; the message names file, experiment and field."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of the results: a model, its data and its training, run once per seed."""

    name: str
    words: dict[str, str]
    """Question, prediction, what each outcome means, what would change our mind; "" where nothing is said."""
    topic: str
    """Experiments of one topic are drawn together."""
    against: str | None
    """The experiment whose result this one is compared with."""
    init_from: str | None
    """The experiment whose final weights this one starts from."""
    seeds: tuple[int, ...]
    preset: str
    shape: dict[str, Any]
    train: TrainConfig
    data: DataConfig


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """What a sweep's file says, checked."""

    name: str
    title: str
    experiments: tuple[Experiment, ...]

    def smoke(self) -> SweepFile:
        """The same experiments in a few steps each, under another name: does everything run at all?"""
        few = {"max_steps": 4, "epochs": None, "warmup_steps": None, "eval_windows": 4}
        return SweepFile(
            name=f"{self.name}-smoke",
            title=f"{self.title} (smoke test: the numbers mean nothing)",
            experiments=tuple(
                replace(each, seeds=each.seeds[:1], train=replace(each.train, **few))  # type: ignore[arg-type]
                for each in self.experiments
            ),
        )


def read_sweep(file: str | Path) -> SweepFile:
    """Read and check a sweep's file: a path, or the name of a shipped one (report, base, scaling).

    data.sequences may name several files: the first that exists is trained on, in place of the corpus.
    Raises SweepError, naming file, experiment and field, before anything runs.
    """
    import tomllib

    path = _find(file)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"{path}: cannot be read as TOML ({error}).") from error
    _check_name(path.stem, f"{path}: name")
    _check_keys(f"{path}:", content, ("title", "baseline", "experiments"))
    title = content.get("title", path.stem)
    for name, kind in (("title", str), ("baseline", dict), ("experiments", dict)):
        if not isinstance(content.get(name, kind()), kind):
            raise SweepError(
                f"{path}: {name}={content[name]!r} must be {'text' if kind is str else 'a table'}."
            )
    if not content.get("baseline"):
        raise SweepError(f"{path}: there is no [baseline], which every experiment changes something in.")
    baseline = _Entry(f"{path}: [baseline]", "baseline", content["baseline"])
    entries = {"baseline": baseline}
    for name, table in content.get("experiments", {}).items():
        where = f"{path}: [experiments.{name}]"
        _check_name(name, f"{where}: name")
        if name == "baseline":
            raise SweepError(f"{where}: [baseline] has this name; choose another.")
        if not isinstance(table, dict):
            raise SweepError(f"{where} must be a table, such as train.learning_rate = 1e-3.")
        entries[name] = _Entry(where, name, table, baseline)
    experiments = {name: entry.build() for name, entry in entries.items()}
    for checked in entries.values():
        checked.check_references(experiments)
    settled = (_settled(experiments, each) for each in experiments.values())
    return SweepFile(name=path.stem, title=title, experiments=tuple(settled))


def shipped_sweeps() -> list[str]:
    """Names of the sweeps that come with labkit."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def _find(file: str | Path) -> Path:
    path = Path(file).expanduser()
    if not path.is_file() and str(file) in shipped_sweeps():
        return SHIPPED / f"{file}.toml"
    if not path.is_file():
        raise SweepError(
            f"There is no sweep {str(file)!r}. Give a .toml file, or one of {', '.join(shipped_sweeps())}."
        )
    return path


class _Entry:
    """One table of the file: the baseline, or an experiment laid over it."""

    def __init__(self, where: str, name: str, table: dict[str, Any], baseline: _Entry | None = None) -> None:
        self.where, self.name, self.table = where, name, table
        _check_keys(where, table, (*_TABLES, *_TEXTS, "seeds"))
        for word in _TEXTS:
            if not isinstance(table.get(word, ""), str):
                self.fail(f"{word}={table[word]!r} must be text.")
        self.values: dict[str, dict[str, Any]] = {}
        for section, known in _TABLES.items():
            own = table.get(section, {})
            if not isinstance(own, dict):
                self.fail(f"{section}={own!r} must be a table, such as {section}.{known[0]} = …")
            _check_keys(f"{where} {section}.", own, known)
            inherited = dict(baseline.values[section]) if baseline else {}
            for one, other in (*_EITHER, *(pair[::-1] for pair in _EITHER)):
                if one in own:
                    inherited.pop(other, None)
            self.values[section] = inherited | own
        self.seeds: tuple[int, ...] = self._seeds(baseline.seeds[:1] if baseline else (0,))

    def fail(self, message: str) -> NoReturn:
        raise SweepError(f"{self.where} {message}")

    def _seeds(self, default: tuple[int, ...]) -> tuple[int, ...]:
        seeds = self.table.get("seeds", default)
        whole = isinstance(seeds, list | tuple) and all(type(seed) is int and seed >= 0 for seed in seeds)
        if not whole or not seeds or len(set(seeds)) < len(seeds):
            self.fail(f"seeds={seeds!r} must be a list of different whole numbers, such as [0, 1, 2].")
        return tuple(seeds)

    def build(self) -> Experiment:
        """The experiment, its settings checked by the configurations themselves."""
        shape, data = dict(self.values["model"]), dict(self.values["data"])
        preset = shape.pop("preset", "char-mini")
        if isinstance(data.get("sequences"), list):
            data["sequences"] = next((each for each in data["sequences"] if Path(each).is_file()), None)
            if data["sequences"]:
                data = {key: data[key] for key in ("sequences", "tokenizer") if key in data}
        try:
            config = GPTConfig.preset(preset, **shape)
            train = TrainConfig(**self.values["train"])
            train.sequences_per_step(config.context_length)
            self._check_freeze(config, train)
            data_config = DataConfig(**data)
        except (TypeError, ValueError) as error:
            self.fail(str(error))
        return Experiment(
            name=self.name,
            words={word: self.table.get(word, "") for word in _WORDS},
            topic=self.table.get("topic", ""),
            against=self.table.get("against"),
            init_from=self.table.get("init_from"),
            seeds=self.seeds,
            preset=preset,
            shape=shape,
            train=train,
            data=data_config,
        )

    def _check_freeze(self, config: GPTConfig, train: TrainConfig) -> None:
        with torch.device("meta"):
            names = [name for name, _ in GPT(config).named_parameters()]
        for prefix in train.freeze:
            if not any(name.startswith(prefix) for name in names):
                tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
                self.fail(f"train.freeze: no parameter's name begins with {prefix!r}. There are {tops}.")

    def check_references(self, experiments: dict[str, Experiment]) -> None:
        """Raise SweepError for a reference to an experiment that does not exist or cannot be used."""
        here = experiments[self.name]
        for word, other in (("against", here.against), ("init_from", here.init_from)):
            if other is not None and other not in experiments:
                self.fail(f"{word}={other!r} is no experiment of this file. {_nearest(other, experiments)}")
        if here.against is not None and not _same_text(here, experiments[here.against]):
            self.fail(f"against={here.against!r} is measured on other held-out text, so it compares nothing.")
        seen = [self.name]
        while (source := experiments[seen[-1]].init_from) is not None:
            if source in seen:
                self.fail(f"init_from goes in a circle: {' from '.join([*seen, source])}.")
            seen.append(source)


def _settled(experiments: dict[str, Experiment], each: Experiment) -> Experiment:
    """With the baseline to compare with, where nothing else is named and the two can be compared."""
    baseline = experiments["baseline"]
    if each.against is not None or each is baseline or not _same_text(each, baseline):
        return each
    return replace(each, against="baseline")


def _same_text(one: Experiment, other: Experiment) -> bool:
    return all(
        getattr(one.data, name) == getattr(other.data, name)
        for name in ("corpus", "tokenizer", "val_groups", "sequences")
    )


def _check_keys(where: str, table: dict[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            space = "" if where.endswith(".") else " "
            raise SweepError(f"{where}{space}{key} is not known. {_nearest(key, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"Did you mean {close[0]}?" if close else f"Choose from {', '.join(names)}."


def _check_name(name: str, what: str) -> None:
    try:
        check_name(name, what)
    except ValueError as error:
        raise SweepError(str(error)) from error
