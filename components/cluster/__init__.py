"""Kubernetes as the pipelines' steps use it: settings, API calls that are retried, following a job, reading its end."""
