"""What only a learner needs: checks of exercises, progress, and the lessons' log and journal."""

__all__ = ["check", "journal", "progress"]
