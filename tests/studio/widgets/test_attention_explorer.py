"""The attention explorer without a browser: numbers, texts, places, messages, the figure."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labkit import GPT, GPTConfig
from labkit.analysis import attention_maps, attention_steps, head_scores, queries_and_keys
from labkit.text import CharTokenizer, GPT2Tokenizer
from labstudio import AttentionExplorer
from labstudio.widgets import attention_figure
from labstudio.widgets.attention import LONGEST, STEPS
from labstudio.widgets.base import css, javascript

TOKENIZER = CharTokenizer.from_text("to be, or not <b>&\n\u202e\u200b𝕏א")
LAYERS, HEADS, TEXT = 2, 6, "to be, or"


def gpt(seed: int = 0, tokenizer: Any = TOKENIZER, **changes: Any) -> GPT:
    torch.manual_seed(seed)
    settings = {"context_length": 11, "d_model": 24, "n_layers": LAYERS, "n_heads": HEADS, "dropout": 0.5}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **(settings | changes)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(autouse=True)
def no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))


def explorer(model: GPT | None = None, text: str = TEXT, **options: Any) -> AttentionExplorer:
    return AttentionExplorer(model or gpt(), TOKENIZER, text, **options)


def matrices(some: AttentionExplorer) -> Tensor:
    """(4, seq, seq), as the browser reads the bytes."""
    seq = len(some.pictures["labels"])
    return torch.from_numpy(np.frombuffer(some.enlarged["matrices"], "<f4").copy()).view(4, seq, seq)


def thumbnails(some: AttentionExplorer) -> Tensor:
    """(layers, heads, seq, seq) in 0 to 255, as the browser reads the bytes."""
    seq, shape = len(some.pictures["labels"]), (some.pictures["layers"], some.pictures["heads"])
    return torch.from_numpy(np.frombuffer(some.pictures["weights"], np.uint8).copy()).view(*shape, seq, seq)


def ids_of(text: str) -> Tensor:
    return torch.tensor([TOKENIZER.encode(text)])


# Numbers


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_kv_heads": 2}, {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}],
    ids=["plain", "grouped queries", "rotary"],
)
@pytest.mark.parametrize("causal", [True, False])
def test_every_head_has_the_numbers_of_the_pure_functions(changes: dict[str, Any], causal: bool) -> None:
    model = gpt(**changes)
    some = explorer(model)
    some.causal = causal
    queries, keys = queries_and_keys(model, ids_of(TEXT))
    steps = attention_steps(queries[:, 0], keys[:, 0], causal=causal)
    for layer in range(LAYERS):
        for head in range(HEADS):
            some.layer, some.head = layer, head
            assert (some.enlarged["layer"], some.enlarged["head"]) == (layer, head)
            for number, name in enumerate(STEPS):
                torch.testing.assert_close(matrices(some)[number], getattr(steps, name)[layer, head])
    weights = attention_maps(model, ids_of(TEXT), causal=causal)
    assert (thumbnails(some) / 255 - weights[:, 0]).abs().max() <= 0.5 / 255 + 1e-6
    for name, values in head_scores(weights, ids_of(TEXT)).items():
        shown = torch.tensor(some.pictures["scores"][name.replace("_", " ")])
        torch.testing.assert_close(shown, values)
    assert some.enlarged["head_dim"] == 4
    assert some.pictures["causal"] is causal
    assert some.error == ""


QUERIES = torch.tensor([[0.0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 2, 0], [2, 2, 0, 0]])
KEYS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [2, 0, 0, 2]])
WORDS = ["a", "horse", "my", "kingdom"]
MANY = torch.ones(1, LONGEST + 1, 2)


def test_what_is_given_by_hand_gives_what_the_hand_computes() -> None:
    some = AttentionExplorer.by_hand(QUERIES[None], KEYS[None], WORDS)
    raw, scaled, masked, weights = matrices(some)
    assert raw.tolist() == [[0, 2, 2, 0], [2, 0, 2, 4], [0, 2, 0, 0], [2, 2, 4, 4]]
    assert torch.equal(scaled, raw / 2)
    assert masked[1].tolist() == [1, 0, -math.inf, -math.inf]
    e = math.e
    assert weights[1].tolist() == pytest.approx([e / (e + 1), 1 / (e + 1), 0, 0])
    assert round(weights[1, 0].item(), 3) == 0.731
    assert thumbnails(some)[0, 0, 1].tolist() == [186, 69, 0, 0]
    assert repr(some) == "AttentionExplorer(by hand)"
    assert (some.pictures["labels"], some.model_names, some.error) == (WORDS, [], "")
    assert some.pictures["scores"]["induction"] == [[None]]  # no word comes twice


def test_layers_and_heads_given_by_hand_keep_their_places() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(3, 2, 5, 7, generator=generator) for _ in range(2))
    some = AttentionExplorer.by_hand(queries, keys, list("abcab"))
    some.layer, some.head = 2, 1
    torch.testing.assert_close(matrices(some)[0], queries[2, 1] @ keys[2, 1].T)
    assert (some.pictures["layers"], some.pictures["heads"]) == (3, 2)
    weights = attention_steps(queries, keys).weights[:, None]
    expected = head_scores(weights, torch.tensor([[0, 1, 2, 0, 1]]))["induction"]
    torch.testing.assert_close(torch.tensor(some.pictures["scores"]["induction"]), expected)


@pytest.mark.parametrize(
    ("queries", "keys", "tokens", "message"),
    [
        (QUERIES, KEYS, WORDS, r"queries have shape \(4, 4\).*queries\[None\]"),
        (QUERIES[None, :3], KEYS[None], WORDS, r"\(1, 3, 4\) and keys \(1, 4, 4\) differ"),
        (QUERIES[None], KEYS[None], WORDS[:3], "3 tokens for 4 positions"),
        (QUERIES[None] * math.nan, KEYS[None], WORDS, "not finite"),
        (QUERIES[None, :0], KEYS[None, :0], [], r"shape \(1, 0, 4\)"),
        (MANY, MANY, ["a"] * (LONGEST + 1), "128 at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_by_hand_is_refused(
    queries: Tensor, keys: Tensor, tokens: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionExplorer.by_hand(queries, keys, tokens)


# Texts and models


def test_hidden_signs_have_names_and_parts_of_characters_too() -> None:
    some = explorer(text="<b>\u202e\u200b𝕏א\n")
    assert some.pictures["labels"] == ["<", "b", ">", "U+202E", "U+200B", "𝕏", "א", "\n"]
    tokenizer = GPT2Tokenizer()
    model = gpt(tokenizer=tokenizer)
    labels = AttentionExplorer(model, tokenizer, "a 𝕏").pictures["labels"]
    assert labels[0] == "a"
    assert any("\\x" in label for label in labels)
    hand = AttentionExplorer.by_hand(QUERIES[None], KEYS[None], ["\u202e", "<script>", "\u200b", "x"])
    assert hand.pictures["labels"] == ["U+202E", "<script>", "U+200B", "x"]


def test_of_a_long_text_the_end_is_read() -> None:
    model = gpt()
    some = explorer(model, "to be, or not to be")
    assert some.notice == "The text has 19 tokens; the last 11 are read and shown."
    assert "".join(some.pictures["labels"]) == "r not to be"
    queries, keys = queries_and_keys(model, ids_of("r not to be"))
    torch.testing.assert_close(matrices(some), torch.stack(
        [getattr(attention_steps(queries[0, 0, 0], keys[0, 0, 0]), name) for name in STEPS]))  # fmt: skip
    some.text = "to"
    assert (some.notice, some.pictures["labels"]) == ("", ["t", "o"])
    wide = explorer(gpt(context_length=300), "o" * 200)
    assert wide.notice == f"The text has 200 tokens; the last {LONGEST} are read and shown."


def test_one_token_has_nothing_to_score() -> None:
    some = explorer(text="t")
    assert some.pictures["scores"] == {}
    assert matrices(some)[3].tolist() == [[1]]


def test_without_a_model_the_shipped_one_reads() -> None:
    some = AttentionExplorer()
    assert some.error == ""
    assert repr(some) == "AttentionExplorer(shipped model)"
    assert some._repr_mimebundle_()[0]["text/plain"] == repr(some)
    assert " kingdom" in some.pictures["labels"]
    with pytest.raises(ValueError, match="give a model and its tokenizer, or neither"):
        AttentionExplorer(gpt())


def test_another_model_shows_a_place_that_it_has() -> None:
    small = gpt(n_layers=1, n_heads=2)
    some = explorer(models={"small": (small, TOKENIZER)})
    assert some.model_names == ["this notebook's model", "small", "shipped model"]
    some.layer, some.head = 1, 5
    some.model_name = "small"
    assert (some.layer, some.head, some.error) == (0, 1, "")
    assert (some.pictures["layers"], some.pictures["heads"], some.enlarged["head"]) == (1, 2, 1)
    queries, keys = queries_and_keys(small, ids_of(TEXT))
    torch.testing.assert_close(matrices(some)[0], (queries @ keys.mT)[0, 0, 1])


def test_a_model_that_cannot_be_loaded_leaves_the_one_before() -> None:
    def broken() -> tuple[GPT, CharTokenizer]:
        raise OSError("no such file")

    some = explorer(models={"gone": broken})
    before = some.pictures
    some.model_name = "gone"
    assert some.error == "The model 'gone' cannot be loaded: no such file"
    assert (some.model_name, some.pictures) == ("this notebook's model", before)
    some.text = "to"
    assert some.error == ""


def test_a_model_trained_further_is_read_again_when_asked() -> None:
    model = gpt()
    some = explorer(model)
    before = some.enlarged
    with torch.no_grad():
        model.blocks[0].attention.query.weight.mul_(2)
    some.head = 1
    some.head = 0
    assert some.enlarged == before
    some._handle_custom_msg({"do": "read"}, [])
    queries, keys = queries_and_keys(model, ids_of(TEXT))
    torch.testing.assert_close(matrices(some)[0], (queries @ keys.mT)[0, 0, 0])
    assert some.enlarged != before


def test_reading_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = gpt().train()
    state = torch.get_rng_state()
    explorer(model).text = "be"
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_runs_in_another_thread_can_be_read() -> None:
    model, stop = gpt(dropout=0.0), threading.Event()
    some = explorer(model)
    expected = matrices(some)

    def train() -> None:
        while not stop.is_set():
            model.loss(ids_of("to be or no"), ids_of("o be or not"))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(20):
            some.read()
            assert some.error == ""
            torch.testing.assert_close(matrices(some), expected)
    finally:
        stop.set()
        thread.join()


def test_moves_of_head_view_and_step_do_not_run_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    some = explorer()
    monkeypatch.setattr("labstudio.widgets.attention.read_text", lambda *_: pytest.fail("read again"))
    some.head, some.view, some.step, some.causal = 3, "arcs", "raw", False
    assert some.error == ""


# What cannot be used


BAD = [
    ("layer", LAYERS, "layer=2 is not there: this model has layers 0 to 1."),
    ("layer", -1, "layer=-1 is not there"),
    ("head", "x", "head='x' is not there: this model has heads 0 to 5."),
    ("head", 1.5, "head=1.5 is not there"),
    ("head", True, "head=True is not there"),
    ("view", "pie", "view='pie' is not known. Choose from matrix, arcs, table."),
    ("step", None, "step=None is not known. Choose from raw, scaled, masked, weights."),
    ("causal", "no", "causal='no' is not known. Choose from True, False."),
    ("text", "", "text='' is empty; type at least one character."),
    ("text", "to ß", "'ß' is not in the alphabet"),
]


@pytest.mark.parametrize(("trait", "value", "message"), BAD)
def test_bad_input_is_explained_and_the_picture_stays(trait: str, value: Any, message: str) -> None:
    some = explorer()
    good, pictures, enlarged = getattr(some, trait), some.pictures, some.enlarged
    setattr(some, trait, value)
    assert message in some.error
    assert some.invalid == trait
    assert (some.pictures, some.enlarged) == (pictures, enlarged)
    setattr(some, trait, good)
    assert (some.error, some.invalid) == ("", "")


def test_a_model_with_nan_or_attention_of_another_kind_is_explained() -> None:
    model = gpt()
    with torch.no_grad():
        model.token_embedding.weight.fill_(torch.nan)
    assert "not finite" in explorer(model).error

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=1, keepdim=True).expand_as(x)

    other = gpt()
    other.blocks[1].attention = Mean()  # type: ignore[assignment]
    some = explorer(other)
    assert "The Mean of layer 1 has no query" in some.error
    assert (some.pictures, some.enlarged) == ({}, {})


def test_a_bad_beginning_is_explained_and_mended() -> None:
    some = explorer(text="")
    assert "is empty" in some.error
    some.text = "to be"
    assert (some.error, len(some.pictures["labels"])) == ("", 5)


# The wire


def test_the_state_is_json_but_for_the_bytes() -> None:
    some = explorer(text="to")
    state = some.get_state(["pictures", "enlarged", "layer", "error"])
    assert isinstance(state["pictures"].pop("weights"), bytes)
    assert isinstance(state["enlarged"].pop("matrices"), bytes)
    assert json.loads(json.dumps(state, allow_nan=False))["pictures"]["labels"] == ["t", "o"]


def test_another_head_sends_its_matrices_and_no_thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    some = explorer()
    sent: list[str] = []
    monkeypatch.setattr(
        some, "send_state", lambda key=None: sent.extend([key] if isinstance(key, str) else key)
    )
    some.set_state({"layer": 1, "head": 4})
    assert "enlarged" in sent
    assert "pictures" not in sent
    assert (some.enlarged["layer"], some.enlarged["head"]) == (1, 4)


def test_many_moves_at_once_end_in_the_last_one() -> None:
    some = explorer()
    heads = [threading.Thread(target=some.set_state, args=({"head": head % HEADS},)) for head in range(40)]
    texts = [threading.Thread(target=some.set_state, args=({"text": TEXT[: 2 + n]},)) for n in range(7)]
    for thread in (*heads, *texts):
        thread.start()
    for thread in (*heads, *texts):
        thread.join()
    assert some.error == ""
    assert "".join(some.pictures["labels"]) == some.text
    assert some.enlarged["head"] == some.head
    queries, keys = queries_and_keys(gpt(), ids_of(some.text))
    torch.testing.assert_close(matrices(some)[0], (queries @ keys.mT)[0, 0, some.head])


def test_its_files_are_joined() -> None:
    assert "export default { render }" in javascript("attention_parts", "attention_views", "attention")
    assert ".la-matrix" in css("attention")


# The figure


def test_the_figure_shows_all_four_steps_with_their_numbers() -> None:
    figure = attention_figure(attention_steps(QUERIES, KEYS), WORDS)
    assert len(figure.axes) == 8  # and a colour bar each
    for axes, name in zip(figure.axes[:4], STEPS, strict=True):
        shown = getattr(attention_steps(QUERIES, KEYS), name)
        assert [text.get_text() for text in axes.texts] == [
            f"{value:.2f}" for value in shown.flatten().tolist()
        ]
        assert axes.get_xlabel() == "looks at (key)"
    with pytest.raises(ValueError, match="3 tokens; expected"):
        attention_figure(attention_steps(QUERIES, KEYS), WORDS[:3])
