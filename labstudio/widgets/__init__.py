"""Widgets: playground, attention explorer, and a training that is watched while it runs."""

from labstudio.widgets.attention import AttentionExplorer, attention_figure
from labstudio.widgets.live_run import LiveRun
from labstudio.widgets.playground import SamplingPlayground
from labstudio.widgets.run_monitor import RunMonitor

__all__ = ["AttentionExplorer", "LiveRun", "RunMonitor", "SamplingPlayground", "attention_figure"]
