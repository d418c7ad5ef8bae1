"""`labkit runs`."""

from __future__ import annotations

from tyro.conf import Positional


def runs(name: Positional[str | None] = None) -> int:
    """List the runs, or show one.

    Args:
        name: The run to show: what it was started with, and its held-out loss over time.
    """
    import pandas as pd

    from labkit.training import Run, list_runs

    if name is not None:
        run = Run.open(name)
        for section, values in run.config().items():
            print(f"{section}: {values}")
        print(run.metrics("evaluation").to_string(index=False))
        return 0
    rows = []
    for run in list_runs():
        evaluations = run.metrics("evaluation")
        last = evaluations.iloc[-1].to_dict() if len(evaluations) else {}
        rows.append(
            {
                "run": run.id,
                "parameters": f"{run.config()['parameters']:,}",
                "steps": f"{int(last.get('step', 0))}/{run.config()['total_steps']}",
                "val loss": last.get("val_loss"),
                "perplexity": last.get("perplexity"),
            }
        )
    print(pd.DataFrame(rows).round(3).to_string(index=False) if rows else "No runs yet: labkit train")
    return 0
