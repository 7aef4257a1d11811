"""Packaging: from what a launch script wants to run to what can be run."""

from nemo_run.xm_local.packaging.router import package

__all__ = ["package"]
