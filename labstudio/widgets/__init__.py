"""Widgets: playground, attention explorer, and a training that is watched while it runs."""

from labstudio.widgets.attention_pictures import attention_figure
from labstudio.widgets.attention_view import AttentionExplorer
from labstudio.widgets.live_run import LiveRun
from labstudio.widgets.playground import SamplingPlayground
from labstudio.widgets.run_monitor import RunMonitor

__all__ = ["AttentionExplorer", "LiveRun", "RunMonitor", "SamplingPlayground", "attention_figure"]
