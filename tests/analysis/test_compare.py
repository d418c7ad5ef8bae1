"""Two models on the same text: models made to know certain tokens, and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from labkit import GPT
from labkit.analysis import compare_models, evaluate_documents, total_score
from labkit.analysis.compare import _standard_error, _stretches, _t_quantile
from labkit.text import CharTokenizer, Document, train_bpe
from tests.variants import variant

LETTERS = CharTokenizer("abcdefgh\n ")
DRAWN = torch.randint(10, (3, 9000), generator=torch.Generator().manual_seed(7))
TEXTS = [Document(f"text {number}", LETTERS.decode(row)) for number, row in enumerate(DRAWN)]


def believer(weights: dict[str, float], tokenizer: CharTokenizer = LETTERS) -> GPT:
    """Expects each letter in proportion to its weight (1 when not given), whatever comes before."""
    model = variant("gpt2", vocab_size=tokenizer.vocab_size, n_layers=1, tie_weights=False)
    nn.init.zeros_(model.norm.weight)
    nn.init.zeros_(model.norm.bias)
    model.norm.bias.data[0] = 1
    model.head = nn.Linear(12, tokenizer.vocab_size, bias=False).double()
    nn.init.zeros_(model.head.weight)
    for letter, weight in weights.items():
        model.head.weight.data[tokenizer.encode(letter)[0], 0] = math.log(weight)
    return model


def test_the_model_that_knows_more_is_better_on_the_tokens_it_knows() -> None:
    plain, knowing = believer({}), believer({"a": 4.0})
    rare = Document("few", "bcdefgh " * 1500)
    often = Document("many", "aab " * 1500)
    found = compare_models(knowing, plain, LETTERS, [rare, often], stride=11)
    few, many = found.documents
    # 11 tokens, equally likely, against 14 shares of which "a" has 4
    assert many.score.loss == pytest.approx(math.log(14) - 3000 / 5999 * math.log(4), abs=1e-3)
    assert many.other.loss == pytest.approx(math.log(11))
    assert few.better == 0
    assert many.better == 2999 / 5999  # the first of the 3,000 is not predicted
    assert few.difference == pytest.approx((math.log(14) - math.log(11)) / math.log(2))
    assert many.difference < 0
    assert {LETTERS.decode([gap.token]) for gap in found.ahead} == {"a"}
    assert {LETTERS.decode([gap.token]) for gap in found.behind} == set("bcdefgh ")
    gap = found.ahead[0]
    assert (gap.loss, gap.other_loss) == pytest.approx((math.log(14 / 4), math.log(11)))
    text = often.text
    assert text[gap.position] == "a"
    assert gap.before == text[max(0, gap.position - 24) : gap.position]


def test_gaps_are_sorted_and_at_most_ten() -> None:
    first, other = variant("gpt2", vocab_size=11), variant("llama", vocab_size=11)
    texts = [Document(each.title, each.text[:200]) for each in TEXTS]
    found = compare_models(first, other, LETTERS, texts)
    gaps = [gap.other_loss - gap.loss for gap in found.ahead]
    assert len(gaps) == len(found.behind) == 10
    assert gaps == sorted(gaps, reverse=True)
    lost = [gap.other_loss - gap.loss for gap in found.behind]
    assert lost == sorted(lost)
    turned = compare_models(other, first, LETTERS, texts)
    assert [(gap.title, gap.position) for gap in turned.behind] == [
        (g.title, g.position) for g in found.ahead
    ]
    assert turned.total.difference == pytest.approx(-found.total.difference)
    assert turned.standard_error == pytest.approx(found.standard_error)
    assert turned.total.better == pytest.approx(1 - found.total.better)


def test_scores_are_those_of_each_model_alone() -> None:
    first, other = variant("gpt2", vocab_size=11), variant("llama", vocab_size=11)
    texts = [Document(each.title, each.text[:150]) for each in TEXTS]
    seen: list[int] = []
    found = compare_models(first, other, LETTERS, texts, stride=4, progress=seen.append)
    for model, chosen in ((first, "score"), (other, "other")):
        alone = list(evaluate_documents(model, LETTERS, texts, stride=4))
        assert [getattr(each, chosen) for each in found.documents] == alone
        assert getattr(found.total, chosen) == total_score(alone)
    assert sum(seen) == 2 * 3 * 149


# More than chance


def test_better_everywhere_is_more_than_chance_and_turned_around_too() -> None:
    good, poor = believer({"a": 1.2, "b": 1.1}), believer({"a": 0.5})
    found = compare_models(good, poor, LETTERS, TEXTS)
    assert (found.stretches, found.verdict) == (3 * 4, "first")  # of 2,250 bytes, as 2,048 are the least
    assert found.interval[1] < 0
    low, high = compare_models(poor, good, LETTERS, TEXTS).interval
    assert (low, high) == pytest.approx((-found.interval[1], -found.interval[0]))
    assert compare_models(poor, good, LETTERS, TEXTS).verdict == "other"


def test_a_model_against_itself_is_equal_and_different_errors_are_chance() -> None:
    same = compare_models(believer({"a": 2}), believer({"a": 2}), LETTERS, TEXTS)
    assert (same.verdict, same.total.difference, same.standard_error) == ("equal", 0, 0)
    assert same.ahead == same.behind == ()
    chance = compare_models(believer({"a": 1.3}), believer({"b": 1.3}), LETTERS, TEXTS)
    assert chance.verdict == "chance"
    assert chance.interval[0] < 0 < chance.interval[1]


def test_little_text_says_nothing() -> None:
    short = [Document("short", TEXTS[0].text[:300])]
    found = compare_models(believer({"a": 9}), believer({}), LETTERS, short)
    assert (found.stretches, found.verdict) == (1, "unknown")
    assert math.isnan(found.standard_error)
    assert not math.isnan(found.total.difference)


def test_the_interval_holds_the_truth_19_times_in_20() -> None:
    """400 texts drawn from known letters: what the difference is over endless text is known too."""
    draws = np.random.default_rng(3)
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    gain = np.log2([2, 1, 0.5, 1.4])  # bits that a letter costs one model more than the other
    truth = probabilities @ gain
    held = []
    for _ in range(400):
        letters = draws.choice(4, p=probabilities, size=(12, 2048))
        stretches = np.stack([gain[letters].sum(1), np.full(12, 2048)], axis=1)
        mean = stretches[:, 0].sum() / stretches[:, 1].sum()
        held.append(abs(mean - truth) < _t_quantile(11) * _standard_error(stretches))
    assert 0.92 < np.mean(held) < 0.98


def test_the_standard_error_by_hand() -> None:
    # 2 bits in 4 bytes, 1 in 4 and 0 in 2: 0.3 a byte, off by 0.8, -0.2 and -0.6
    stretches = np.array([[2.0, 4], [1, 4], [0, 2]])
    assert _standard_error(stretches) == pytest.approx(math.sqrt(1.5 * (0.64 + 0.04 + 0.36)) / 10)
    assert math.isnan(_standard_error(stretches[:1]))


def test_the_text_is_cut_into_about_thirty_stretches_that_hold_all_of_it() -> None:
    draws = np.random.default_rng(5)

    def costs(n_bytes: int, share: int) -> tuple[np.ndarray, np.ndarray]:
        ends = np.unique(draws.integers(1, n_bytes + 1, size=n_bytes // share))
        return ends, draws.normal(size=len(ends))

    documents = [(costs(n, 3), costs(n, 5), n) for n in (100_003, 70_001, 511, 40_000)]
    rows = _stretches(documents)
    assert len(rows) == 14 + 10 + 1 + 6
    assert rows[:, 1].sum() == 210_515
    assert rows[:14, 1].sum() == 100_003
    differences = [first[1].sum() - other[1].sum() for first, other, _ in documents]
    assert rows[:, 0].sum() == pytest.approx(sum(differences))
    assert rows[24].tolist() == pytest.approx([differences[2], 511])
    assert len(_stretches(documents[2:3])) == 1
    nothing = np.array([9]), np.array([0.0])
    assert _stretches([((np.array([9]), np.array([1.0])), nothing, 9)] * 70).tolist() == [[1, 9]] * 70


def test_a_token_belongs_to_the_stretch_that_it_ends_in() -> None:
    first = np.array([1, 2048, 2049, 4096]), np.array([1.0, 2, 4, 8])
    other = np.array([3000, 4096]), np.array([0.5, 0.25])
    assert _stretches([(first, other, 4096)]).tolist() == [[3, 2048], [12 - 0.75, 2048]]


@pytest.mark.parametrize("freedom", [4, 7, 19, 200])
def test_the_quantile_is_students(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert _t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02)
    assert math.isnan(_t_quantile(0))


# Different tokenizers


def test_different_tokenizers_are_compared_by_bytes_from_where_both_have_read_a_token() -> None:
    text = "the cat and the hat and the rat " * 300
    pieces = train_bpe(text, 270)
    letters = CharTokenizer.from_text(text)
    first, other = variant("gpt2", vocab_size=letters.vocab_size), variant("llama", vocab_size=270)
    found = compare_models(first, other, letters, [Document("rhyme", text)], other_tokenizer=pieces)
    [pair] = found.documents
    start = len(pieces.token_bytes(pieces.encode(text)[0]))
    assert start > 1  # else this test shows nothing
    assert pair.score.n_bytes == pair.other.n_bytes == len(text) - start
    assert pair.score.tokens == len(text) - start
    assert pair.other.tokens == len(pieces.encode(text)) - 1
    [alone] = evaluate_documents(other, pieces, [Document("rhyme", text)])
    assert pair.other.bits_per_byte == pytest.approx(alone.bits_per_byte)
    assert math.isnan(pair.better)
    assert math.isnan(found.total.better)
    assert found.ahead == found.behind == ()
    assert found.stretches == 5  # of 2,048 bytes at least
    assert not math.isnan(found.standard_error)


def test_the_same_meaning_is_the_same_tokenizer() -> None:
    found = compare_models(
        believer({"a": 2}), believer({}), LETTERS, TEXTS, other_tokenizer=CharTokenizer("\n hgfedcba")
    )
    assert found.ahead


def test_what_does_not_compare_is_named() -> None:
    documents = [
        Document("strange", "abç"),
        Document("letter", "a"),
        Document("replaced", "ab!ab!"),
        *TEXTS[:1],
    ]
    lossy = CharTokenizer("abcdefgh\n ?", unknown="?")
    first, other = believer({}), believer({}, lossy)
    found = compare_models(first, other, LETTERS, documents, other_tokenizer=lossy)
    skipped = [each.score.skipped for each in found.documents]
    assert "'ç' is not in the alphabet" in skipped[0]
    assert skipped[1].startswith("too short")
    assert "'!' is not in the alphabet" in skipped[2]
    assert skipped[3] == ""
    assert found.total.score == found.documents[3].score.__class__(
        "total", 8999, 8999, found.total.score.nats
    )
    wider = CharTokenizer("abcdefgh\n !")
    found = compare_models(believer({}, wider), other, wider, documents[2:], other_tokenizer=lossy)
    assert found.documents[0].score.skipped == "one of the tokenizers does not keep all of this text"
    with pytest.raises(ValueError, match=r"No text could be measured \(strange: characters: 'ç'"):
        compare_models(first, first, LETTERS, documents[:1])


def test_pieces_that_never_end_together_are_too_short() -> None:
    """ab·c and a·bc have no end in common before the last."""
    first, other = (train_bpe(text, 258, progress=False) for text in ("ab " * 9, "bc " * 9))
    assert [first.tokenize("abc"), other.tokenize("abc")] == [["ab", "c"], ["a", "bc"]]
    model, documents = (
        variant("gpt2", vocab_size=258),
        [Document("short", "abc"), Document("long", "abc" * 9)],
    )
    found = compare_models(model, model, first, documents, other_tokenizer=other)
    skipped = "too short: the tokenizers agree on no place inside it where a token ends"
    assert [each.other.skipped for each in found.documents] == [skipped, ""]
    assert found.total.score.n_bytes == found.total.other.n_bytes == 24
