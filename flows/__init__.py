"""Prefect flows that run the stages of dvc.yaml, which remains the only description of the chain."""

import os

from flows.addresses import avoid_proxies_on_loopback

# Before Prefect is imported: it reads both when it starts a temporary server.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
avoid_proxies_on_loopback()
