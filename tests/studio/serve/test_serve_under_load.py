"""Sixteen clients for a while: no error, no text of another, no growth, a fair share for each."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import psutil
import pytest
from serving import CHARACTERS, running, tiny_app, tiny_model

from labkit import SampleConfig
from labkit.generation import complete

CLIENTS = 16
SECONDS = 10 * int(os.environ.get("LABKIT_SOAK", "1"))
PROMPTS = ["a", "abc. ", "日é", "j\n", "hij" * 9]
SETTINGS: list[dict[str, Any]] = [
    {"max_tokens": 5},
    {"max_tokens": 40, "temperature": 0.7},
    {"max_tokens": 90, "top_p": 0.9, "n": 3},
    {"max_tokens": 60, "stop": ["ab", "."]},
]


def expected_texts() -> dict[tuple[int, int, int], list[str]]:
    """What every request gives alone."""
    model = tiny_model(CHARACTERS.vocab_size)
    texts = {}
    for number, asked in enumerate(SETTINGS):
        changed = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in asked.items()}
        config = SampleConfig(**changed | {"stop": tuple(asked.get("stop", ()))})
        for which, prompt in enumerate(PROMPTS):
            for seed in range(4):
                found = complete(model, CHARACTERS, prompt, config, seed=seed)
                texts[number, which, seed] = [each.text for each in found]
    return texts


@pytest.mark.long
def test_sixteen_clients_at_once() -> None:
    expected = expected_texts()
    process = psutil.Process()
    served = [0] * CLIENTS
    wrong: list[str] = []
    memory: list[int] = []

    with running(tiny_app(waiting=CLIENTS)) as server:
        end = time.monotonic() + SECONDS

        def client(number: int) -> None:
            draw = random.Random(number)
            openai = server.openai()
            while time.monotonic() < end:
                case = draw.randrange(len(SETTINGS)), draw.randrange(len(PROMPTS)), draw.randrange(4)
                asked = {"model": "tiny", "prompt": PROMPTS[case[1]], "seed": case[2], **SETTINGS[case[0]]}
                texts = [""] * len(expected[case])
                try:
                    if draw.random() < 0.5:
                        for event in openai.completions.create(**asked, stream=True):
                            texts[event.choices[0].index] += event.choices[0].text
                    else:
                        texts = [choice.text for choice in openai.completions.create(**asked).choices]
                except Exception as error:
                    wrong.append(repr(error))
                else:
                    if texts != expected[case]:
                        wrong.append(f"{case}: {texts} is not {expected[case]}")
                    served[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 4)
        memory.append(process.memory_info().rss)
        for thread in threads:
            thread.join()
        memory.append(process.memory_info().rss)
        assert server.service.scheduler.open == 0

    megabytes = [round(size / 1e6) for size in memory]
    print(
        f"{sum(served)} requests in {SECONDS} s; each client {min(served)} to {max(served)}; MB {megabytes}"
    )
    assert wrong == []
    assert min(served) > 0
    assert max(served) <= 3 * min(served)
    assert memory[1] - memory[0] < 60e6
