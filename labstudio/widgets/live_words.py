"""What LiveRun says and which buttons it offers, in each of its states.

ready        nothing has begun              training, paused   a thread is at work
offered      an interrupted run was found   stopped, failed    it ended early
busy         it is being trained elsewhere  finished           it ended after the last step
"""

from __future__ import annotations

from typing import Any


def words(state: str, *, name: str, step: int, resumable: bool) -> str:
    """A sentence or two for the reader.  step: the last one that is recorded."""
    rebuild = "" if resumable else " Run the cell that builds the trainer again, then this one."
    return {
        "ready": "Nothing is trained yet.",
        "offered": f"This run was interrupted after step {step}. Resume goes on from its last checkpoint; "
        "Start anew leaves it as it is and begins another run.",
        "busy": f"Run {name} is being trained elsewhere. Wait for it or stop it, then look again; Start anew "
        "begins another run.",
        "training": "Other cells can run meanwhile.",
        "paused": f"Paused after step {step}. Step takes one step, Resume goes on.",
        "stopped": f"Stopped after step {step}, which is saved. Resume goes on from it, in a new kernel too.",
        "failed": f"Ended by an error after step {step}.{rebuild}",
        "finished": f"Trained to the end, step {step}.",
    }[state]


def buttons(state: str, *, saved: int, resumable: bool, fresh: bool, here: bool) -> list[dict[str, Any]]:
    """What the view offers: `do`, `label` and `enabled` of each button, in an order that stays.

    saved: the step of the newest checkpoint.  resumable: whether going on may help.  fresh: whether the
    trainer has taken no step.  here: whether it is this process that trains a busy run.
    """
    if state == "offered":
        found = [("resume", f"Resume from step {saved}", resumable), ("start_anew", "Start anew", fresh)]
    elif state == "busy":
        found = [("look", "Look again", True), ("stop", "Stop it", here), ("start_anew", "Start anew", fresh)]
    else:
        at_work = state in ("training", "paused")
        can = at_work or state in ("ready", "stopped") or (state == "failed" and resumable)
        first = {"ready": ("resume", "Start"), "training": ("pause", "Pause")}
        found = [
            (*first.get(state, ("resume", "Resume")), can),
            ("step", "Step", can),
            ("stop", "Stop", at_work),
            ("sample", "Sample now", at_work),
        ]
    return [{"do": do, "label": label, "enabled": enabled} for do, label, enabled in found]
