"""`labkit sweep`."""

from __future__ import annotations

from tyro.conf import Positional


def sweep(
    file: Positional[str],
    devices: str | None = None,
    workers: int | None = None,
    only: str | None = None,
    smoke: bool = False,
) -> int:
    """Run named experiments side by side and write their report.

    The same command again goes on where it was stopped and skips what has finished.

    Args:
        file: A .toml file, or one that comes with labkit: report, base, scaling.
        devices: Such as cuda:0,cuda:1: one experiment on each at a time.
        workers: Experiments at a time on the CPU, one thread each; as many as cores when not given.
        only: Names of experiments, such as baseline,lr_1e-3; all when not given.
        smoke: A few steps of each, to see that all of it runs.
    """
    from labstudio.runs.report import write_report
    from labstudio.runs.sweep import sweep as run_sweep
    from labstudio.runs.sweep_file import read_sweep
    from labstudio.runs.sweep_table import SweepTable

    plan = read_sweep(file)
    try:
        table = run_sweep(
            file,
            devices=devices.split(",") if devices else None,
            workers=workers,
            only=only.split(",") if only else (),
            smoke=smoke,
            watch=SweepTable(),
        )
    except KeyboardInterrupt:
        print("Stopped; checkpoints are saved. The same command goes on from there.")
        return 130
    failed = table[table["state"] == "failed"]
    for _, each in failed.iterrows():
        print(f"\n{each['run']} failed:\n{each['error']}")
    if len(failed) < len(table):
        print(f"Report: {write_report(plan.smoke().name if smoke else plan.name, log=not smoke)}")
    return 1 if len(failed) else 0
