"""What only a learner needs: the log and the journal that the lessons write."""

from labkit.course import journal

__all__ = ["journal"]
