"""How fast does labkit write, next to transformers, to reading everything anew, and to the machine's limit?

Same weights, same prompt, top-k 50, float32. In each round every contestant writes once; a figure is the
median over the rounds, a ratio the median of the ratios within the rounds. The limit of a step is the bytes
that it has to read (weights that multiply, and the filled part of the cache) over the read bandwidth of the
same number of threads. Other processes' load is measured meanwhile and named in the result.

    python benchmarks/decode.py [--threads 1 2] [--rounds 9] [--sizes char-mini 16M 124M]

On a GPU, transformers' compiled static cache comes in as well. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from machine import OtherLoad, alternately, ratio, read_bandwidth, save
from their_gpt2 import build_gpt2
from torch import Tensor, nn

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import generate, next_tokens

SIZES = {
    "char-mini": GPTConfig.preset("char-mini", vocab_size=78),
    "char-mini with GPT-2's GELU": GPTConfig.preset("char-mini", vocab_size=78, activation="gelu_tanh"),
    "16M": GPTConfig.preset("gpt2", n_layers=4, d_model=256, n_heads=4, context_length=256),
    "124M": GPTConfig.preset("gpt2"),
}
CASES = [
    ("char-mini", 1, 48),
    ("char-mini with GPT-2's GELU", 1, 48),
    ("char-mini", 16, 48),
    ("16M", 1, 64),
    ("16M", 16, 32),
    ("124M", 1, 32),
    ("124M", 16, 16),
]
PROMPT_TOKENS = 16
TOP_K = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, bandwidths = [], {}
    for threads in options.threads if device.type == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        bandwidths[threads] = read_bandwidth(device)
        for size, batch, new_tokens in CASES:
            if size in options.sizes:
                row = {"size": size, "batch": batch, "new_tokens": new_tokens, "threads": threads}
                rows.append(
                    row | measure(SIZES[size], batch, new_tokens, options.rounds, device, bandwidths[threads])
                )
                print_row(rows[-1])
    save(
        "decode" if device.type == "cpu" else "decode_gpu",
        {
            "rows": rows,
            "read_gb_per_s": {str(threads): round(value / 1e9, 1) for threads, value in bandwidths.items()},
            "rounds": options.rounds,
            "prompt_tokens": PROMPT_TOKENS,
            "top_k": TOP_K,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
    )


def measure(
    config: GPTConfig, batch: int, new_tokens: int, rounds: int, device: torch.device, bandwidth: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = GPT(config).to(device).eval()
    theirs = same_gpt2(model).to(device)
    ids = torch.randint(config.vocab_size, (batch, PROMPT_TOKENS), device=device)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-4, rtol=1e-3)
    settings = SampleConfig(max_new_tokens=new_tokens, top_k=TOP_K)
    contestants: dict[str, Callable[[], Any]] = {
        "labkit": lambda: generate(model, ids, settings),
        "transformers": lambda: their_generate(theirs, ids, new_tokens),
    }
    if device.type == "cuda":
        contestants["transformers static"] = lambda: their_generate(theirs, ids, new_tokens, static=True)
    if batch == 1:
        few = min(new_tokens, 8)  # at the end of the text, where a text is as long as the others' on average
        contestants["uncached"] = lambda: write_uncached(model, ids, new_tokens, few)
    load = OtherLoad()
    seconds = alternately(rounds, contestants)
    if batch == 1:
        seconds["uncached"] = [each * new_tokens / few for each in seconds["uncached"]]
    mine = statistics.median(seconds["labkit"])
    bytes_per_step = step_bytes(model, batch, PROMPT_TOKENS + new_tokens // 2)
    rates = {name: round(batch * new_tokens / statistics.median(each), 1) for name, each in seconds.items()}
    return {
        "tokens_per_s": rates,
        "ratios": {
            name: ratio(each, seconds["labkit"]) for name, each in seconds.items() if name != "labkit"
        },
        "share_of_limit": round(bytes_per_step / bandwidth / (mine / new_tokens), 2),
        "other_load_cores": load.cores(),
    }


def their_generate(model: nn.Module, ids: Tensor, new_tokens: int, static: bool = False) -> None:
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=True,
            top_k=TOP_K,
            pad_token_id=0,
            **({"cache_implementation": "static"} if static else {}),
        )


def write_uncached(model: GPT, ids: Tensor, new_tokens: int, count: int) -> None:
    """The last tokens of the middle of the text, with everything before each of them read anew."""
    settings = SampleConfig(top_k=TOP_K)
    uniforms = torch.rand(count, 1, dtype=torch.float64, device=ids.device)
    text = torch.cat([ids, ids.new_zeros(len(ids), (new_tokens - count) // 2)], dim=1)
    with torch.inference_mode():
        for uniform in uniforms:
            at = torch.full((len(text),), text.shape[1] - 1, device=text.device)
            drawn = next_tokens(model(text, at=at), settings, uniform)
            text = torch.cat([text, drawn[:, None]], dim=1)


def step_bytes(model: GPT, batch: int, length: int) -> float:
    """What one step has to read: every matrix once, and keys and values of so many tokens in every row."""
    weights = sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))
    config = model.config
    cache = 2 * config.n_layers * batch * config.kv_heads * config.head_dim * length * 4
    return weights + cache


def same_gpt2(model: GPT) -> nn.Module:
    """transformers' GPT-2 with this model's weights."""
    config = model.config
    theirs = build_gpt2(config).eval()
    inner = theirs.transformer
    pairs = [(inner.wte, model.token_embedding), (inner.ln_f, model.norm)]
    with torch.no_grad():
        inner.wpe.weight.copy_(model.positions.weight)
        for block, ours in zip(inner.h, model.blocks, strict=True):
            attention, mlp = ours.attention, ours.mlp
            qkv = (attention.query, attention.key, attention.value)
            block.attn.c_attn.weight.copy_(torch.cat([each.weight for each in qkv]).T)
            block.attn.c_attn.bias.copy_(torch.cat([each.bias for each in qkv]))
            pairs += [(block.ln_1, ours.norm1), (block.ln_2, ours.norm2)]
            for conv, linear in (
                (block.attn.c_proj, attention.out),
                (block.mlp.c_fc, mlp.up),
                (block.mlp.c_proj, mlp.down),
            ):
                conv.weight.copy_(linear.weight.T)
                conv.bias.copy_(linear.bias)
        for target, source in pairs:
            target.load_state_dict(source.state_dict())
    return theirs


def print_row(row: dict[str, Any]) -> None:
    rates = "  ".join(f"{name} {rate:,.1f}" for name, rate in row["tokens_per_s"].items())
    ratios = "  ".join(
        f"{each['median']}x {name} ({each['low']}-{each['high']})" for name, each in row["ratios"].items()
    )
    print(
        f"{row['size']:>9} batch {row['batch']:>2}, {row['threads']} thread(s): {rates} tokens/s; {ratios}; "
        f"{row['share_of_limit']:.0%} of the limit; others used {row['other_load_cores']} cores",
        flush=True,
    )


if __name__ == "__main__":
    main()
