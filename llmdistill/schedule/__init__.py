"""When `llmdistill refresh` runs: by systemd, cron or Kubernetes, or by a daemon of ours.

All four read the five fields of a cron line alike (`cron.py`); what one of them cannot say is refused, not bent.
A refresh leaves its outcome in `<run>/refresh/status.json` (`status.py`) and tells a webhook (`webhook.py`), whoever
started it. The daemon (`daemon.py`) promises that no firing is lost and none runs twice: each is claimed in SQLite
(`firings.py`) under its planned time before anything is started, and a process of its own (`firing.py`) carries it
out and writes down how it ended, also when the daemon is gone by then.
"""
