"""A run's figures for Prometheus, over HTTP: whoever scrapes can't slow what is watched."""

from kleash.integrations.prometheus.endpoint import Endpoint

__all__ = ["Endpoint"]
