"""Prefect flows over dvc.yaml, which stays the only description of the chain."""

import os

from flows.addresses import avoid_proxies_on_loopback

# Before Prefect is imported: it reads both when it starts a server of its own.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
avoid_proxies_on_loopback()
