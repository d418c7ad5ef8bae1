"""How a lesson shows a figure."""

from __future__ import annotations

import base64
import io
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from labkit.io import output_dir


def show(figure: Figure, *, alt: str, save: str | None = None) -> None:
    """Display a figure, followed by its text alternative: what someone who cannot see it needs to know.

    save: a file name such as "03_training_curves.png", written under visualizations/.
    Raises ValueError for an empty alt, or a save that has folders in it.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("show: alt is empty. Say in a sentence what the figure shows.")
    if save is not None and (not save or Path(save).name != save or "\\" in save):
        raise ValueError(f"show: save={save!r} must be a file name without folders, like '03_loss.png'.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    if save is not None:
        path = output_dir() / "visualizations" / save
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    image = base64.b64encode(buffer.getvalue()).decode()
    display({"image/png": image, "text/plain": "<figure>"}, metadata={"image/png": {"alt": alt}}, raw=True)
    print(textwrap.fill(f"Figure: {alt}", 95, break_on_hyphens=False))
